package events

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// View is what a recorder gets to see, each time that the loop has come round.
type View struct {
	Now  cluster.Instant
	Wall time.Time
	Self string

	// Leads says that this member holds the lease.
	Leads bool
	// Leader holds the lock; Gone says that nobody leads as far as this member
	// can tell: no lock, a lease that was released or has run out.
	Leader string
	Gone   bool
	// Beat is the last one in Consul, nil when there is none, and BeatSeen when
	// it was first seen.
	Beat     *cluster.Beat
	BeatSeen cluster.Instant
	// Request is what an operator wants, empty when nothing; Refused why the last
	// request came to nothing.
	Request cluster.Failover
	Refused string
	// Reason is the last decision in words.
	Reason string

	// Primary says that the own PostgreSQL accepts writes, Down that it ended
	// without being told to, Routed that the open route in Consul leads to it.
	Primary, Down, Routed bool
	Timeline              int
	// Wrote is when the first transaction that wrote has ended since the
	// promotion; zero: none has been seen.
	Wrote cluster.Instant

	Paused, Failsafe bool
	// WatchersLost counts the watchers of this member's guard that have ended.
	WatchersLost int
	// ArchiveTrouble says why WAL does not get into the archive; empty: it does.
	ArchiveTrouble string
	// BackupTrouble says what is wrong with the shard's backups; empty: nothing.
	BackupTrouble string
	// Others are the other members that run.
	Others []string
	// Made says how the members' data were made last, by name.
	Made map[string]string
	// Stranded says why members cannot go on with their data, by name.
	Stranded map[string]string
	// Config is the dynamic configuration, ConfigIndex what Consul counts its
	// changes with.
	Config      map[string]any
	ConfigIndex uint64
}

// Recorder turns what one member sees into events. Only a leader's events count:
// they are what Pending returns. The zero value is ready.
type Recorder struct {
	last  View
	began bool

	// Of the reign before: what may become a change of leader.
	leader   string
	beat     *cluster.Beat
	beatSeen cluster.Instant
	noticed  cluster.Instant
	asked    moment // when a request was first seen
	request  cluster.Failover

	pending []*Event
	change  *opened // the change of leader under way
	crash   *opened
	failing *opened
	archive *opened
	backups *opened
	dirty   bool

	known   map[string]string // of each member, View.Made as it was last
	watched bool              // they were seen once
}

// moment is one reading of both clocks.
type moment struct {
	at   cluster.Instant
	wall time.Time
}

// opened is an event that is not over.
type opened struct {
	*Event
	start cluster.Instant
}

func (o *opened) mark(phase string, at cluster.Instant) {
	o.Phases = append(o.Phases, Phase{Name: phase, AtMS: max(0, at.Sub(o.start)).Milliseconds()})
}

// changeLimit is how long a change of leader is watched for its last phases.
const changeLimit = time.Minute

// Observe takes in what is so now.
func (r *Recorder) Observe(v View) {
	if !r.began {
		r.began, r.last = true, v // an agent that was restarted may lead on: that is no change of leader
	}
	switch {
	case v.Leads && !r.last.Leads:
		r.beginReign(v)
	case v.Leads:
		r.reign(v)
	default:
		r.follow(v)
	}
	r.made(v)
	r.stranded(v)
	r.last = v
}

// Pending are the events that are not in Consul yet, in their present state, and
// Took says which of them are by now.
func (r *Recorder) Pending() []Event {
	if !r.dirty {
		return nil
	}
	out := make([]Event, 0, len(r.pending))
	for _, e := range r.pending {
		copied := *e
		copied.Phases = slices.Clone(e.Phases)
		out = append(out, copied)
	}
	return out
}

// Writing says that what Pending returned is being written; Failed that it must be
// tried again.
func (r *Recorder) Writing() { r.dirty = false }

// Failed says that writing has failed.
func (r *Recorder) Failed() { r.dirty = len(r.pending) > 0 }

// Watching reports whether a change of leader waits for its first write.
func (r *Recorder) Watching() bool { return r.change != nil }

// follow is what a member remembers that does not lead.
func (r *Recorder) follow(v View) {
	r.close(v)
	// Our own takeover may show in Consul before its answer is here: then the beat
	// before it is the one that tells whom we follow. What is left of an earlier
	// reign of ours counts.
	ours := v.Beat != nil && v.Beat.Owner == v.Self
	if v.Beat != nil && v.Beat.Owner != "" && (!ours || r.last.Leads || r.beat == nil || r.beat.Owner == v.Self) {
		r.beat, r.beatSeen = v.Beat, v.BeatSeen
	}
	switch {
	case !v.Gone && v.Leader == v.Self:
	case !v.Gone:
		r.noticed = 0
		if v.Leader != "" {
			r.leader = v.Leader
		}
	case r.noticed.IsZero():
		r.noticed = v.Now
	}
	r.noteRequest(v)
}

func (r *Recorder) noteRequest(v View) {
	due := !v.Request.Empty() && (v.Request.ScheduledAt == nil || !v.Wall.Before(*v.Request.ScheduledAt))
	switch {
	case due && r.asked.at.IsZero():
		r.asked, r.request = moment{v.Now, v.Wall}, v.Request
	case due:
		r.request = v.Request
	case !v.Gone || v.Leads:
		r.asked, r.request = moment{}, cluster.Failover{}
	}
}

// beginReign records how this member came to lead.
func (r *Recorder) beginReign(v View) {
	if r.noticed.IsZero() {
		r.noticed = v.Now
	}
	e := Event{By: v.Self, To: v.Self, Outcome: UnderWay, Timeline: v.Timeline}
	start := r.noticed
	switch b := r.beat; {
	case b == nil && r.leader == "":
		e.Kind = Bootstrap
	case b != nil && b.Released && b.Successor == v.Self && !r.overridden(v):
		e.Kind, e.From, e.Cause = Switchover, b.Owner, "asked for by an operator"
		if !r.asked.at.IsZero() {
			start = r.asked.at
		}
	case b != nil && b.Owner == v.Self:
		e.Kind, e.From, e.Cause = Resumed, v.Self, "nobody else has led meanwhile"
		start = r.beatSeen
	default:
		e.Kind, e.From = Failover, r.leader
		if b != nil {
			e.From = b.Owner
			start = r.beatSeen
		}
		e.Cause = r.whyFailed(v)
	}
	if start.IsZero() || v.Now.Before(start) {
		start = v.Now
	}
	e.At = v.Wall.Add(-v.Now.Sub(start)).UTC().Truncate(time.Millisecond)
	r.change = r.open(e, start)
	r.change.mark(Noticed, max(r.noticed, start))
	r.change.mark(Elected, v.Now)
	r.noticed, r.asked, r.request = 0, moment{}, cluster.Failover{}
	r.advance(v)
}

// overridden reports whether the lease was given to this member by an operator, who
// overrode its owner, and not by the owner, who has this member receive all of its WAL
// before.
func (r *Recorder) overridden(v View) bool {
	return !r.asked.at.IsZero() && r.request.Leader == "" && r.request.Candidate == v.Self && !r.beat.Complete
}

func (r *Recorder) whyFailed(v View) string {
	switch b := r.beat; {
	case !r.asked.at.IsZero() && r.request.Candidate == v.Self:
		return "an operator asked for a failover to " + v.Self
	case b == nil:
		return r.leader + " does not hold the lock any more"
	case b.Released:
		return b.Owner + " gave the lead up"
	default:
		return fmt.Sprintf("no sign of life from %s for %.1f s, more than its lease of %.0f s",
			b.Owner, v.Now.Sub(r.beatSeen).Seconds(), b.Lease().Seconds())
	}
}

// open begins an event and keeps it.
func (r *Recorder) open(e Event, start cluster.Instant) *opened {
	o := &opened{Event: &e, start: start}
	r.pending = append(r.pending, o.Event)
	if len(r.pending) > keep {
		r.pending = slices.Clone(r.pending[len(r.pending)-keep:])
	}
	r.dirty = true
	return o
}

func (r *Recorder) note(v View, e Event) {
	e.At, e.By = v.Wall.UTC().Truncate(time.Millisecond), v.Self
	e.Cause = shorten(e.Cause)
	r.open(e, v.Now)
}

func shorten(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) <= causeLimit {
		return s
	}
	return strings.ToValidUTF8(s[:causeLimit], "") + "..."
}

// reign records what happens while this member leads.
func (r *Recorder) reign(v View) {
	r.advance(v)
	r.requests(v)
	r.crashes(v)
	r.lasts(v, &r.failing, v.Failsafe, Event{Kind: Failsafe, Cause: "Consul does not answer; all members let the lease go on"})
	r.lasts(v, &r.archive, v.ArchiveTrouble != "", Event{Kind: ArchiveFails, Cause: v.ArchiveTrouble})
	r.lasts(v, &r.backups, v.BackupTrouble != "", Event{Kind: BackupsMissing, Cause: v.BackupTrouble})
	if v.Paused != r.last.Paused {
		r.note(v, Event{Kind: map[bool]Kind{true: Paused, false: Unpaused}[v.Paused]})
	}
	if v.WatchersLost > r.last.WatchersLost {
		r.note(v, Event{Kind: WatcherLost, To: v.Self, Cause: "the guard's watcher was killed or has crashed"})
	}
	for _, name := range missing(r.last.Others, v.Others) {
		r.note(v, Event{Kind: MemberLost, To: name})
	}
	for _, name := range missing(v.Others, r.last.Others) {
		r.note(v, Event{Kind: MemberBack, To: name})
	}
	if v.ConfigIndex == r.last.ConfigIndex || r.last.Config == nil {
		return
	}
	if changed := changes(r.last.Config, v.Config, ""); len(changed) > 0 && !onlyPause(changed) {
		r.note(v, Event{Kind: Configured, Cause: strings.Join(changed, ", ")})
	}
}

// made records members whose data were made anew.
func (r *Recorder) made(v View) {
	for _, name := range slices.Sorted(maps.Keys(v.Made)) {
		made := v.Made[name]
		if made == r.known[name] {
			continue
		}
		if r.known == nil {
			r.known = map[string]string{}
		}
		r.known[name] = made
		if v.Leads && r.watched {
			_, how, _ := strings.Cut(made, " ") // the time is the event's own
			r.note(v, Event{Kind: MemberMade, To: name, Cause: how})
		}
	}
	r.watched = true
}

// stranded records members that cannot go on, once for each time that they say so.
func (r *Recorder) stranded(v View) {
	for _, name := range slices.Sorted(maps.Keys(v.Stranded)) {
		if _, before := r.last.Stranded[name]; v.Leads && !before {
			r.note(v, Event{Kind: MemberStranded, To: name, Cause: v.Stranded[name]})
		}
	}
}

// advance notes the phases that a change of leader has reached.
func (r *Recorder) advance(v View) {
	c := r.change
	if c == nil {
		return
	}
	has := func(phase string) bool { _, is := c.Phase(phase); return is }
	reach := func(phase string, is bool, at cluster.Instant) {
		if is && !has(phase) {
			c.mark(phase, at)
			r.dirty = true
		}
	}
	reach(Promoted, v.Primary, v.Now)
	reach(Routed, v.Routed && has(Promoted), v.Now)
	if has(Promoted) && v.Timeline > 0 {
		c.Timeline = v.Timeline
	}
	if routed, is := c.Phase(Routed); is {
		c.Outcome, c.TookMS = Done, routed.Milliseconds()
	}
	reach(FirstWrite, !v.Wrote.IsZero() && has(Routed), v.Wrote)
	if has(FirstWrite) || has(Routed) && v.Now.Sub(c.start) > changeLimit+c.Took() {
		r.change = nil
	}
}

// close ends what is open when this member leads no more.
func (r *Recorder) close(v View) {
	if c := r.change; c != nil && c.Outcome == UnderWay {
		c.Outcome, c.Cause = "", shorten(c.Cause+"; "+v.Self+" has lost the lead again: "+v.Reason)
		r.dirty = true
	}
	for _, o := range []*opened{r.failing, r.archive, r.backups} {
		if o != nil {
			o.TookMS = v.Now.Sub(o.start).Milliseconds()
			o.Cause = "ended with the lead: " + shorten(v.Reason)
			r.dirty = true
		}
	}
	r.change, r.crash, r.failing, r.archive, r.backups = nil, nil, nil, nil, nil
}

// requests records a switchover that came to nothing: one that succeeds ends the
// reign, and its successor records it.
func (r *Recorder) requests(v View) {
	before, asked := r.request, r.asked
	r.noteRequest(v)
	if asked.at.IsZero() || !r.asked.at.IsZero() {
		return
	}
	outcome, cause := Conclude(v.Refused)
	if outcome == "" || before.Candidate == v.Self {
		return // it leads already: by this very request, most likely
	}
	e := Event{Kind: Switchover, By: v.Self, From: v.Self, To: before.Candidate, Outcome: outcome, Cause: shorten(cause)}
	e.At = asked.wall.UTC().Truncate(time.Millisecond)
	e.TookMS = v.Now.Sub(asked.at).Milliseconds()
	r.open(e, asked.at)
}

// Conclude reads an agent's words about a request that came to nothing; the outcome
// is empty when they do not say so.
func Conclude(words string) (o Outcome, cause string) {
	for prefix, outcome := range map[string]Outcome{
		"the switchover is refused: ": Refused, "rolled back: ": RolledBack, "the switchover has failed: ": RolledBack,
	} {
		if cause, found := strings.CutPrefix(words, prefix); found {
			return outcome, cause
		}
	}
	return "", words
}

func (r *Recorder) crashes(v View) {
	switch {
	case v.Down && !r.last.Down:
		r.note(v, Event{Kind: Crash, To: v.Self, Outcome: UnderWay, Cause: "PostgreSQL does not run any more; its log, or the agent's, says why"})
		r.crash = &opened{Event: r.pending[len(r.pending)-1], start: v.Now}
	case r.crash != nil && v.Primary:
		r.crash.mark(Recovered, v.Now)
		r.crash.Outcome, r.crash.TookMS = Done, v.Now.Sub(r.crash.start).Milliseconds()
		r.crash, r.dirty = nil, true
	}
}

// lasts records something about this member that goes on for a while: e when it begins, and
// its end.
func (r *Recorder) lasts(v View, o **opened, is bool, e Event) {
	switch {
	case is && *o == nil:
		e.To, e.Outcome = v.Self, UnderWay
		r.note(v, e)
		*o = &opened{Event: r.pending[len(r.pending)-1], start: v.Now}
	case *o != nil && !is:
		(*o).Outcome, (*o).TookMS = Done, v.Now.Sub((*o).start).Milliseconds()
		*o, r.dirty = nil, true
	}
}

// missing are the names of a that b lacks.
func missing(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(name string) bool { return slices.Contains(b, name) })
}

// changes are the names of the settings in which two configurations differ. Their
// values are nobody's business here: some are secrets.
func changes(a, b map[string]any, prefix string) []string {
	var names []string
	keys := slices.Collect(maps.Keys(a))
	for key := range b {
		if _, both := a[key]; !both {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	for _, key := range keys {
		below, isMap := a[key].(map[string]any)
		above, areMaps := b[key].(map[string]any)
		switch {
		case isMap && areMaps:
			names = append(names, changes(below, above, prefix+key+".")...)
		case !same(a[key], b[key]):
			names = append(names, prefix+key)
		}
	}
	return names
}

func same(a, b any) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && string(x) == string(y)
}

func onlyPause(names []string) bool { return len(names) == 1 && names[0] == "pause" }
