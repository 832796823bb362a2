package bouncer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
	"github.com/lictor-ha/lictor/bouncer/routes"
)

// process is one PgBouncer and the loop that keeps it right. Where several share a port
// (so_reuseport) each has its own: one that hangs or is away holds up none of the others.
type process struct {
	config     config.Config
	link       *pooler.Link
	reconciler *reconciler
	front      *pooler.Front
}

// processes are all PgBouncers behind one port, mostly one. What is said of them together
// is said for clients, who may come to any of them.
type processes struct {
	all       []*process
	handovers *routes.Handovers

	mu sync.Mutex
	// answers are the last to each handover, by process.
	answers map[config.ShardID][]cluster.HandoverAnswer
}

// name tells processes apart in what is said of them.
func (p *process) name() string { return p.config.PgBouncer.Admin }

func (ps *processes) notify() {
	for _, p := range ps.all {
		p.reconciler.notify()
	}
}

// anyPaused reports whether any process holds clients of a database for no known reason.
func (ps *processes) anyPaused(names []string) bool {
	return slices.ContainsFunc(ps.all, func(p *process) bool { return p.reconciler.anyPaused(names) })
}

// holding reports whether any process holds clients.
func (ps *processes) holding() bool {
	return slices.ContainsFunc(ps.all, func(p *process) bool { return p.reconciler.holding.Load() })
}

// present are those that clients may come to: all but those that surely are not there.
// When none is, they are all of them.
func (ps *processes) present() []*process {
	if list := slices.DeleteFunc(slices.Clone(ps.all), func(p *process) bool {
		link := p.link.Now()
		return !link.Up && link.Absent
	}); len(list) > 0 {
		return list
	}
	return ps.all
}

// version is the oldest that runs, zero when none is known to.
func (ps *processes) version() (oldest pgbouncer.Version) {
	for _, p := range ps.all {
		if link := p.link.Now(); link.Up && (oldest == (pgbouncer.Version{}) || slices.Compare(link.Version[:], oldest[:]) < 0) {
			oldest = link.Version
		}
	}
	return oldest
}

// responder takes the answers of process number i to leaders of handovers.
func (ps *processes) responder(i int) func(config.ShardID, cluster.HandoverAnswer) {
	return func(id config.ShardID, a cluster.HandoverAnswer) {
		ps.mu.Lock()
		defer ps.mu.Unlock()
		if ps.answers[id] == nil {
			ps.answers[id] = make([]cluster.HandoverAnswer, len(ps.all))
		}
		ps.answers[id][i] = a
		ps.handovers.Respond(id, ps.together(ps.answers[id], a))
	}
}

// together is the answer of all processes, of which last is the newest: clients are held when
// each holds its own, and nothing runs when nothing runs in any.
func (ps *processes) together(answers []cluster.HandoverAnswer, last cluster.HandoverAnswer) cluster.HandoverAnswer {
	whole := cluster.HandoverAnswer{ID: last.ID, Bouncer: last.Bouncer, Paused: true}
	present := ps.present()
	for i, p := range ps.all {
		a := answers[i]
		switch {
		case !slices.Contains(present, p):
			continue // no client can ask for the shard there
		case a.ID != last.ID:
			a = cluster.HandoverAnswer{Problem: "PgBouncer has not accepted PAUSE yet"}
		}
		whole.Paused = whole.Paused && a.Paused
		whole.Busy += a.Busy
		whole.ClientsWaiting += a.ClientsWaiting
		if whole.Problem == "" && a.Problem != "" {
			whole.Problem = ps.prefix(p) + a.Problem
		}
	}
	return whole
}

// prefix begins what is said of one process where there are others.
func (ps *processes) prefix(p *process) string {
	if len(ps.all) == 1 {
		return ""
	}
	return p.name() + ": "
}

// unfit tells why clients should not come here; nothing: they should. A process that takes
// none is no reason as long as another does: the kernel sends them there.
func (ps *processes) unfit(ctx context.Context) (reasons []string) {
	closed := 0
	said := map[string]int{}
	var all, elsewhere []*process
	of := map[*process][]string{}
	for _, p := range ps.all {
		why, gone := p.front.Look(ctx)
		if of[p] = append(p.reconciler.ready(), why...); len(of[p]) > 0 && gone {
			closed++
			elsewhere = append(elsewhere, p)
			continue
		}
		all = append(all, p)
	}
	if closed == len(ps.all) {
		all = elsewhere
	}
	for _, p := range all {
		for _, reason := range of[p] {
			said[reason]++
		}
	}
	for _, p := range all {
		for _, reason := range of[p] {
			if said[reason] < len(all) {
				reason = ps.prefix(p) + reason
			}
			if !slices.Contains(reasons, reason) {
				reasons = append(reasons, reason)
			}
		}
	}
	if n := ps.strangers(); n > 0 {
		reasons = append(reasons, fmt.Sprintf("%d sockets at PgBouncer's port are of no process that answers at an admin of pgbouncer.processes, and get clients, too", n))
	}
	return reasons
}

// warnings are what is wrong with the configuration and takes nothing from clients.
func (ps *processes) warnings() (list []string) {
	for _, p := range ps.all {
		for _, warning := range p.reconciler.warnings() {
			if !slices.Contains(list, warning) {
				list = append(list, warning)
			}
		}
	}
	return list
}

// strangers counts the sockets at the port that are of no listed process.
func (ps *processes) strangers() int {
	if !ps.all[0].config.Listed() {
		return 0
	}
	links := make([]*pooler.Link, len(ps.all))
	for i, p := range ps.all {
		links[i] = p.link
	}
	return pooler.Strangers(links)
}

// shards is how every shard stands for a client who may come to any process.
func (ps *processes) shards() map[config.ShardID]ShardStatus {
	present := ps.present()
	if len(present) == 1 {
		return present[0].reconciler.shards()
	}
	whole, in := map[config.ShardID]ShardStatus{}, map[config.ShardID]int{}
	for _, p := range present {
		for id, s := range p.reconciler.shards() {
			if in[id]++; in[id] > 1 {
				s = s.with(whole[id])
			}
			whole[id] = s
		}
	}
	for id, s := range whole {
		if in[id] < len(present) {
			s.VerifiedAt = nil // not everywhere
			whole[id] = s
		}
	}
	return whole
}

// with is how a shard stands that stands as s in one process and as o in another.
func (s ShardStatus) with(o ShardStatus) ShardStatus {
	if o.Timeline < s.Timeline {
		s, o = o, s // whoever is behind
	}
	switch {
	case s.VerifiedAt == nil || o.VerifiedAt == nil || s.Host != o.Host || s.Port != o.Port || s.Timeline != o.Timeline:
		s.VerifiedAt = nil
	case o.VerifiedAt.After(*s.VerifiedAt):
		s.VerifiedAt = o.VerifiedAt
	}
	if o.HoldUntil != nil && (s.HoldUntil == nil || o.HoldUntil.After(*s.HoldUntil)) {
		s.HoldUntil = o.HoldUntil
	}
	s.Held = s.Held || o.Held
	s.Paused, s.AnyPaused = s.Paused && o.Paused, s.AnyPaused || o.AnyPaused
	s.Unhealthy = s.Unhealthy || o.Unhealthy
	if s.Handover == "" {
		s.Handover = o.Handover
	}
	if s.Operator == nil {
		s.Operator = o.Operator
	}
	if s.Error == "" {
		s.Error = o.Error
	}
	return s
}

// problems are what keeps shards from being offered, by shard or what it is.
func (ps *processes) problems() map[string]string {
	whole := map[string]string{}
	for _, p := range ps.all {
		for what, problem := range p.reconciler.problems() {
			whole[what] = problem
		}
	}
	return whole
}

// clients counts those of all processes, nil when that is not known.
func (ps *processes) clients() *pooler.ClientCounts {
	whole := &pooler.ClientCounts{Waiting: map[string]int{}}
	for _, p := range ps.present() {
		seen := p.reconciler.healthProber.Clients()
		if seen == nil {
			return nil
		}
		whole.Clients += seen.Clients
		for database, n := range seen.Waiting {
			whole.Waiting[database] += n
		}
	}
	return whole
}

// status is what /status says of PgBouncer: that it answers when every process does that
// clients may come to.
func (ps *processes) status() pgbouncerStatus {
	present := ps.present()
	whole := present[0].status()
	for _, p := range present[1:] {
		one := p.status()
		if one.Since.After(whole.Since) && one.Answers == whole.Answers || whole.Answers && !one.Answers {
			whole.Since = one.Since
		}
		if whole.Answers = whole.Answers && one.Answers; whole.Error == "" {
			whole.Error = one.Error
		}
	}
	if whole.Version = ""; whole.Answers {
		whole.Version = ps.version().String()
	}
	for _, p := range ps.all {
		if !p.config.Listed() {
			return whole
		}
		s := processStatus{Admin: p.name(), pgbouncerStatus: p.status()}
		for _, shard := range p.reconciler.shards() {
			s.Shards++
			if shard.VerifiedAt != nil {
				s.Verified++
			}
		}
		if seen := p.reconciler.healthProber.Clients(); seen != nil {
			s.Clients = &seen.Clients
		}
		whole.Processes = append(whole.Processes, s)
	}
	return whole
}

func (p *process) status() pgbouncerStatus {
	link := p.link.Now()
	s := pgbouncerStatus{Answers: link.Up, Since: link.Since.UTC()}
	if link.Up {
		s.Version = link.Version.String()
	} else if link.Err != nil {
		s.Error = link.Err.Error()
	}
	return s
}

// processStatus is what /status says of one process among several.
type processStatus struct {
	Admin string `json:"admin"`
	pgbouncerStatus
	// Clients is the number of clients that are connected to it, absent: it is not known.
	Clients *int `json:"clients,omitempty"`
	// Shards is how many it should serve, Verified how many of them are known to lead to
	// their primaries.
	Shards   int `json:"shards"`
	Verified int `json:"verified"`
}

// logFor is the log of one process.
func logFor(log zerolog.Logger, c, one config.Config) zerolog.Logger {
	if len(c.PgBouncer.Processes) == 0 {
		return log
	}
	return log.With().Str("process", one.PgBouncer.Admin).Logger()
}

// eachFile writes what is made for each process, under the path of its file where there are
// several.
func eachFile(c config.Config, write func(one config.Config, title string) error) error {
	var errs []error
	for _, one := range c.Each() {
		title := ""
		if one.Listed() {
			title = fmt.Sprintf(";; %s\n", one.PgBouncer.Config)
		}
		errs = append(errs, write(one, title))
	}
	return errors.Join(errs...)
}
