package simulation

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/member"
)

// Schedule is one run: what the shard is like, and what happens to it. Everything
// that is left open (latencies, durations, which request is lost) follows from Seed.
type Schedule struct {
	Seed       uint64
	Members    int
	Drift      []float64 // by how much each host's clock runs fast
	NoFailover []int     // members with that tag
	NoStream   []int     // members that get WAL from the archive alone
	Patroni    []int     // members that run Patroni
	Fresh      bool      // nobody has made the shard yet
	Standby    bool      // the shard is the standby of another one from its beginning
	Sites      bool      // another site is the standby of this one from its beginning
	Adopted    bool      // a's PostgreSQL runs before its agent first comes: no guard has started it
	Config     map[string]any
	// KillBefore is fence.kill_before of every member, half of fence.demote_before;
	// zero: their defaults.
	KillBefore time.Duration
	// Margins are kill_before of single members, as a part of the ttl: their files differ.
	Margins []float64
	// Cascade are members that replicate from the one given, while it runs.
	Cascade map[int]int
	// ConsulDNS: members find each other by names that Consul has.
	ConsulDNS bool
	// NoArchive: members know only of the timelines that reached them, so that two
	// of them may promote to one number.
	NoArchive bool
	// Keeps is how many bytes of WAL every member keeps besides what its slots ask for, SlotKeeps
	// what it keeps for a slot at the most; zero: all. No archive has the rest.
	Keeps, SlotKeeps int64
	// Logical: there is a permanent logical slot, which needs Keeps.
	Logical bool
	// Operator: an operator clones anew whoever needs WAL that is gone, where the policy is to do so
	// only when that takes long.
	Operator bool
	// NoRewind are members with use_pg_rewind off, Replaces those with
	// remove_data_directory_on_rewind_failure.
	NoRewind, Replaces []int
	// KeepsClones: a clone that was cut short is gone on with.
	KeepsClones bool
	// Calm: no start and no promotion breaks off without a fault.
	Calm   bool
	Events []Event
	// Length is how long faults go on; then all of them end, and the shard has Rest
	// to become whole again.
	Length, Rest time.Duration
}

// Event is a fault or an operator's wish.
type Event struct {
	At, For time.Duration
	Kind    Kind
	// Member and Other are the numbers of members, Consul the one after the last.
	Member, Other int
	Value         int    // for the kinds that say so
	Text          string // for the kinds that say so
}

// Kind names what an event does.
type Kind string

// String is the schedule in words.
func (s Schedule) String() string {
	var b strings.Builder
	config, err := json.Marshal(s.Config)
	if err != nil {
		config = []byte(err.Error())
	}
	fmt.Fprintf(&b, "seed %d, %d members, config %s", s.Seed, s.Members, config)
	for i, d := range s.Drift {
		if d != 0 {
			fmt.Fprintf(&b, ", clock of %s %+.2f%%", memberName(i), d*100)
		}
	}
	for _, i := range s.NoFailover {
		fmt.Fprintf(&b, ", %s nofailover", memberName(i))
	}
	for _, i := range s.NoStream {
		fmt.Fprintf(&b, ", %s nostream", memberName(i))
	}
	for _, i := range s.Patroni {
		fmt.Fprintf(&b, ", %s runs Patroni", memberName(i))
	}
	for i := range s.Members {
		if from, cascades := s.Cascade[i]; cascades {
			fmt.Fprintf(&b, ", %s replicates from %s", memberName(i), memberName(from))
		}
	}
	if len(s.Margins) > 0 {
		fmt.Fprintf(&b, ", kill_before %.2f of ttl", s.Margins)
	}
	for _, i := range s.NoRewind {
		fmt.Fprintf(&b, ", %s without pg_rewind", memberName(i))
	}
	for _, i := range s.Replaces {
		fmt.Fprintf(&b, ", %s replaces what cannot be rewound", memberName(i))
	}
	if s.ConsulDNS {
		b.WriteString(", names by Consul")
	}
	if s.Keeps > 0 {
		fmt.Fprintf(&b, ", WAL of %d bytes, %d for a slot", s.Keeps, s.SlotKeeps)
	}
	if s.Logical {
		b.WriteString(", a logical slot")
	}
	if s.KeepsClones {
		b.WriteString(", clones are kept")
	}
	if s.Fresh {
		b.WriteString(", a new shard")
	}
	if s.Standby {
		b.WriteString(", a standby shard")
	}
	if s.Sites {
		b.WriteString(", another site")
	}
	if s.Adopted {
		b.WriteString(", PostgreSQL of a is adopted")
	}
	b.WriteByte('\n')
	for _, e := range s.Events {
		fmt.Fprintf(&b, "  %s\n", s.words(e))
	}
	return b.String()
}

func (s Schedule) words(e Event) string {
	who := func(n int) string {
		if n >= s.Members {
			return "Consul"
		}
		return memberName(n)
	}
	line := fmt.Sprintf("%9.3fs  %s", e.At.Seconds(), e.Kind)
	if f, is := known()[e.Kind]; is {
		if f.member {
			line += " " + who(e.Member)
		}
		if f.other {
			line += " -> " + who(e.Other)
		}
		if f.value {
			line += fmt.Sprintf(" %d", e.Value)
		}
	}
	if e.Text != "" {
		line += " " + e.Text
	}
	if e.For > 0 {
		line += fmt.Sprintf(" for %.3fs", e.For.Seconds())
	}
	return line
}

func memberName(i int) string { return string(rune('a' + i)) }

// maximumLag is maximum_lag_on_failover of all schedules: low enough to matter.
const maximumLag = 128 << 10

func (s Schedule) bootConfig() cluster.Dynamic {
	d, _, err := cluster.ParseDynamic(map[string]any{"ttl": s.Config["ttl"]})
	if err != nil {
		panic("simulation: " + err.Error())
	}
	return d
}

// margins are those of a member.
func (s Schedule) margins(member int, ttl time.Duration) ha.FenceMargins {
	if member < len(s.Margins) {
		k := time.Duration(s.Margins[member] * float64(ttl))
		return ha.FenceMargins{DemoteBefore: 2 * k, KillBefore: k}
	}
	if k := s.KillBefore; k > 0 {
		return ha.FenceMargins{DemoteBefore: 2 * k, KillBefore: k}
	}
	return ha.FenceMargins{DemoteBefore: ttl / 4, KillBefore: ttl / 10}
}

// Result is how a run ended.
type Result struct {
	Violation *Violation // nil: none
	Tally     Tally
	// Whole is how long the shard took to become whole after the faults ended.
	Whole time.Duration
}

// Options are for tests.
type Options struct {
	Mutant Mutant
	// Trace hears what happens, in words.
	Trace func(at time.Duration, line string)
}

// Run runs a schedule.
func Run(s Schedule, o Options) Result {
	w := newWorld(s, o)
	for _, e := range s.Events {
		if e.At < s.Length {
			w.at(e.At, func() { w.inject(e) })
		}
	}
	w.run(s.Length)
	ended := w.now
	w.healAll()
	whole := w.awaitWhole(s.Length + s.Rest)
	if w.judge.violation == nil && !whole && !w.judge.wentBack { // an operator must decide whom to believe
		w.judge.fail("I4", "%s after the last fault: %s", s.Rest, w.judge.whole())
	}
	return Result{Violation: w.judge.violation, Tally: w.judge.tally, Whole: w.now - ended}
}

// awaitWhole lets time pass until the shard has been whole for a while.
func (w *world) awaitWhole(limit instant) bool {
	const calm = 2 * time.Second
	var since instant
	for w.now < limit && w.judge.violation == nil {
		w.run(min(limit, w.now+200*time.Millisecond))
		switch {
		case w.judge.whole() != "":
			since = 0
		case since == 0:
			since = w.now
		case w.now-since >= calm:
			return true
		}
	}
	return false
}

func newWorld(s Schedule, o Options) *world {
	w := &world{
		schedule: s, mutant: o.Mutant, trace: o.Trace,
		random: rand.New(rand.NewPCG(s.Seed, 0x9e3779b97f4a7c15)),
		parsed: map[uint64]cluster.Dynamic{}, timeline: 1, archived: map[*branch]int64{},
	}
	if s.Config["takeover"] == "quorum" {
		w.starts = rand.New(rand.NewPCG(s.Seed, 4))
	}
	w.judge.w = w
	w.consul = consul{w: w, keys: map[string]kv{}, index: 10}
	nodes := s.Members + 2 // Consul, and the primary at another site
	w.net = network{w: w, nodes: nodes, cut: make([]int, nodes*nodes), slow: make([]time.Duration, nodes*nodes), late: make([]time.Duration, nodes), status: make([]int, nodes)}
	w.config = map[string]any{"maximum_lag_on_failover": maximumLag}
	w.reconfigure(s.Config)
	if s.Logical {
		w.reconfigure(feedConfig())
	}
	if s.Standby {
		w.reconfigure(map[string]any{"standby_cluster": standbyConfig()})
	}
	if s.Sites {
		w.reconfigure(map[string]any{"other_site": otherSiteConfig()})
	}
	w.root = &branch{timeline: 1}
	w.remote = newRemote(w, s.Members+1)
	for i := range s.Members {
		h := &host{w: w, id: i, name: memberName(i), rate: 1, offset: w.between(time.Hour, 1000*time.Hour), up: true, tags: map[string]any{"zone": i % 2}}
		if i < len(s.Drift) {
			h.rate = 1 + s.Drift[i]
		}
		if slices.Contains(s.NoFailover, i) {
			h.tags["nofailover"] = true
		}
		if slices.Contains(s.NoStream, i) {
			h.tags["nostream"] = true
		}
		if from, cascades := s.Cascade[i]; cascades {
			h.tags["replicatefrom"] = memberName(from)
		}
		h.pg = postgres{host: h, at: position{w.root, 1000}, primary: i == 0 && !s.Standby, system: systemIdentifier}
		if s.Fresh {
			h.pg = postgres{host: h, at: position{branch: w.root}, empty: true}
		}
		h.guard = guard{host: h}
		w.hosts = append(w.hosts, h)
	}
	if s.Adopted {
		pg := &w.hosts[0].pg
		pg.running, pg.ready, pg.served = true, true, true
		pg.accept()
	}
	for _, h := range w.hosts {
		w.after(w.between(0, time.Second), h.startAgent)
	}
	w.clients()
	if s.Operator {
		w.operator()
	}
	return w
}

// reconfigure is an operator's change of the dynamic configuration; nil removes a
// setting.
func (w *world) reconfigure(patch map[string]any) {
	w.config = cluster.MergePatch(w.config, patch)
	value, err := json.Marshal(w.config)
	if err != nil {
		panic("simulation: " + err.Error())
	}
	w.consul.put(keyConfig, value)
}

// parse reads the dynamic configuration, once for all members.
func (w *world) parse(e cluster.Entry[[]byte]) (cluster.Dynamic, error) {
	if d, found := w.parsed[e.ModifyIndex]; found {
		return d, nil
	}
	d, _, err := cluster.ParseDynamicJSON(e.Value)
	if err != nil {
		return d, err
	}
	w.parsed[e.ModifyIndex] = d
	return d, nil
}

// remembered is the dynamic configuration that a guard remembers.
func (w *world) remembered(m *member.PersistedState, otherwise cluster.Dynamic) cluster.Dynamic {
	d, _, err := cluster.ParseDynamicJSON(m.Config)
	if err != nil {
		return otherwise
	}
	return d
}
