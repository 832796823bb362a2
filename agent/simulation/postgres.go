package simulation

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/pg"
)

// postgres is one member's PostgreSQL with its data directory.
type postgres struct {
	host *host
	at   position
	// running: there are processes; ready: SQL is answered; writable: commits are
	// accepted.
	running, ready, writable, stopping bool
	primary                            bool   // outside recovery; of a stopped one: by its files
	upstream, aim                      string // whom it follows, and whom by the file that the next reload reads
	streaming                          bool
	waits, wanted                      waits   // in force, and in the file that the next reload reads
	asked                              waits   // what the agent has asked for last: whatever is written late writes that
	pending                            []int64 // commits that wait for standbys
	life                               int     // so that what was begun in an earlier one ends without effect
	// parent is the watcher of the guard that has started it; nil: no guard has.
	parent *watcher
	// empty: there is nothing in the data directory; loss, losses: loss.go; cloned: what is
	// unfinished is a clone.
	empty  bool
	cloned bool
	ruined bool // a rewind was cut short
	consistency
	made   work   // bootstrap.go
	system string // its system identifier
	aside  *setAside
	// version is the major version that the data are of; upgrade: upgrade.go.
	version int
	upgrade *upgrade
	wants   int // the version whose programs a copy into the empty place needs
	loss    *pg.Loss
	losses  int
	// checkpoint is where the last one is that was made when it was shut down, or came with
	// what was copied.
	checkpoint int64
	clean      bool // it was shut down, and not started since
	// detachment is the note of an attempt at a takeover by quorum.
	detachment *pg.Detachment
	// messageAt is when the WAL receiver got something last, recovered where the last start as a primary has
	// begun to accept commits.
	messageAt instant
	repliedAt instant // when its WAL receiver could answer last
	recovered int64
	slots     []slot
	oldest    int64 // its WAL goes back to there
	// replayFrom and replayEnds: a standby that was just started replays what it has,
	// while it answers already; it receives nothing before it has.
	replayFrom              int64
	replayBegan, replayEnds instant

	// unsynchronous: synchronous_commit is off.
	unsynchronous bool
	// received: a WAL receiver has run in this life; trails is how much it has not replayed.
	received bool
	trails   int64
	lagging  int // faults that keep it from receiving
	// failing: faults that make starts break off and promotions fail; two: every
	// promotion, and no start.
	failing int
	slow    time.Duration
	// hung: the postmaster does nothing any more, and nothing but its end changes that;
	// served: it was seen to answer before; stuck: what waits for it.
	hung, served bool
	stuck        []stuck
	disk
	// orphans: the postmaster is gone, and backends go on. remains: killed processes wait for
	// their disk, and nothing can be started beside them.
	orphans, remains bool
	// stray: it was started by hand, and its agent does not know yet.
	stray bool
	// lingers, unkillable, workHangs: faults (faults_postgres.go). halfway: what hangs
	// half-way.
	lingers, unkillable, workHangs int
	halfway                        []func()
}

// consistency is what a standby waits for before it answers SQL.
type consistency struct {
	needs      position // up to where what was rewound must have WAL; zero: it is consistent
	recovering bool     // a standby waits for that
}

// reached ends the wait of a standby that has come to there; false: it did not wait, or has to.
func (c *consistency) reached(at position) bool {
	if !c.recovering || !at.holds(c.needs) {
		return false
	}
	*c = consistency{}
	return true
}

// stuck is a piece of work that a postmaster which hangs does not do.
type stuck struct{ do, lost func() }

// goOn ends a hang.
func (p *postgres) goOn() {
	p.hung = false
	left := p.stuck
	p.stuck = nil
	for _, s := range left {
		p.later(0, s.do, s.lost)
	}
}

// commit is synchronous_commit.
func (p *postgres) commit() string {
	if p.unsynchronous {
		return "off"
	}
	return "on"
}

// waits is synchronous_standby_names.
type waits struct {
	names []string
	any   int
}

func (s waits) value() string {
	if len(s.names) == 0 {
		return ""
	}
	return fmt.Sprintf("%d (%s)", s.any, strings.Join(s.names, ","))
}

var errStopped = errors.New("PostgreSQL was stopped meanwhile")

// takes is how long a piece of work of PostgreSQL takes.
func (p *postgres) takes(low, high time.Duration) time.Duration {
	return p.host.w.between(low, high) + p.host.w.between(0, p.slow)
}

// later goes on with a piece of work unless this life of PostgreSQL has ended by then.
func (p *postgres) later(d time.Duration, do func(), lost func()) {
	life := p.life
	p.host.w.after(d, func() {
		p.host.process(func() {
			switch {
			case p.life != life:
				lost()
			case p.hung:
				p.stuck = append(p.stuck, stuck{do, lost})
			default:
				do()
			}
		})
	})
}

// start starts the postmaster; done hears of it when SQL is answered.
func (p *postgres) start(primary bool, upstream string, sync *waits, done func(error)) {
	switch {
	case p.running || p.empty || p.ruined || p.made == workUnfinished || p.aside != nil && p.aside.old != nil || p.upgrade != nil || misfit(p):
		done(errors.New("it runs already, or there is nothing to start"))
		return
	case p.orphans || p.remains:
		done(errors.New("pre-existing shared memory block is still in use"))
		return
	case p.full > 0 && p.host.w.chance(0.7):
		done(errors.New("no space left on device"))
		return
	}
	if !p.writeFiles(primary, sync) {
		done(errBrokenOff)
		return
	}
	p.life++
	p.clean, p.received = false, false
	p.parent = p.host.guard.watcher
	p.running, p.stopping, p.primary, p.upstream, p.aim = true, false, primary, upstream, upstream
	p.later(p.takes(50*time.Millisecond, time.Second), func() {
		p.halfWay(func() {
			p.flush(func() {
				p.served = true
				if !primary && !p.at.holds(p.needs) {
					p.recovering = true
					p.later(acceptWithin, func() { done(nil) }, func() { done(errStopped) })
					return
				}
				if primary && !p.at.holds(p.needs) {
					p.host.w.judge.fail("I2", "%s is a primary whose data are not consistent: it lacks WAL that it was rewound to", p.host.name)
				}
				p.ready, p.needs = true, position{}
				if primary {
					p.recovered = p.at.lsn
					p.accept()
				} else {
					p.beginReplay()
				}
				p.host.answerStart(primary, done)
			}, func() { done(errStopped) })
		}, func() { done(errStopped) })
	}, func() { done(errStopped) })
}

// acceptWithin is how long a start waits for SQL to be answered (agent/postgres/start.go).
const acceptWithin = 5 * time.Second

var errBrokenOff = errors.New("it broke off")

// writeFiles writes standby.signal, or takes it away, and whom commits wait for. It may
// break off after each step (agent/postgres/start.go).
func (p *postgres) writeFiles(primary bool, sync *waits) bool {
	breaks := func() bool {
		return p.failing == 1 && p.host.w.chance(0.5) || p.host.w.mishap()
	}
	role := func() { p.primary = primary }
	names := func() {
		switch {
		case !primary:
			p.waits = waits{}
		case sync != nil && !p.host.w.mutant.StartUnfit:
			p.waits = *sync
		}
		p.wanted, p.asked = p.waits, p.waits
	}
	steps := []func(){names, role}
	if !primary && !p.host.w.mutant.StartUnfit {
		steps = []func(){role, names}
	}
	for _, step := range steps {
		if breaks() {
			return false
		}
		step()
	}
	return !breaks()
}

// beginReplay: a standby answers when it is consistent, which may be long before it
// has replayed what it received in an earlier life.
func (p *postgres) beginReplay() {
	w := p.host.w
	p.replayBegan, p.replayEnds = w.now, w.now
	if w.chance(0.5) {
		return
	}
	p.replayFrom = max(1, p.at.lsn-w.random.Int64N(200<<10))
	p.replayEnds += p.takes(0, 3*time.Second)
}

// replaying reports whether there is WAL left from an earlier life.
func (p *postgres) replaying() bool { return p.ready && !p.primary && p.host.w.now < p.replayEnds }

// replayed is how far a standby has replayed, as SQL tells.
func (p *postgres) replayed() position {
	if !p.replaying() {
		return p.at
	}
	share := float64(p.host.w.now-p.replayBegan) / float64(p.replayEnds-p.replayBegan)
	at := position{branch: p.at.branch, lsn: p.replayFrom + int64(share*float64(p.at.lsn-p.replayFrom))}
	for at.branch.parent != nil && at.lsn <= at.branch.fork {
		at.branch = at.branch.parent
	}
	return at
}

// follow points a running replica at another upstream.
func (p *postgres) follow(upstream string, done func(error)) {
	p.aim = upstream
	p.later(p.takes(time.Millisecond, 50*time.Millisecond), func() {
		p.upstream = p.aim // that of a later change, if there is one by now
		p.streaming = p.streaming && p.upstream != ""
		done(nil)
	}, func() { done(errStopped) })
}

// accept begins to accept commits.
func (p *postgres) accept() {
	p.writable = true
	p.host.w.judge.writable(p.host)
}

// refuse ends to accept commits.
func (p *postgres) refuse() {
	if p.writable {
		p.host.w.judge.tally.Interruptions++
	}
	p.writable, p.pending = false, nil
}

// promote ends recovery on a new timeline, with a number above one that may be taken.
// last is what must succeed when nothing is left but to ask PostgreSQL.
func (p *postgres) promote(above int, last func(then func(error)), done func(error)) {
	fails := func() bool { return p.failing > 0 && p.host.w.chance(0.5) || p.host.w.mishap() }
	if !p.ready || p.primary || p.stopping || fails() {
		done(errors.New("no replica runs, or it has no connection left"))
		return
	}
	last(func(err error) {
		switch {
		case err != nil:
			done(err)
		case fails() || p.failing > 1 || p.full > 0:
			if p.host.w.chance(0.5) { // it has been asked all the same
				p.ask(above, func(error) {})
			}
			p.host.w.after(p.host.w.between(0, 500*time.Millisecond), func() {
				p.host.process(func() { done(errors.New("the promotion failed")) })
			})
		default:
			p.halfWay(func() { p.ask(above, done) }, func() { done(errStopped) })
		}
	})
}

// ask has PostgreSQL end its recovery.
func (p *postgres) ask(above int, done func(error)) {
	if !p.ready || p.primary || p.stopping {
		done(errStopped)
		return
	}
	// What is left is replayed first.
	p.later(max(0, p.replayEnds-p.host.w.now)+p.takes(20*time.Millisecond, 800*time.Millisecond), func() {
		p.flush(func() { p.leaveRecovery(above, done) }, func() { done(errStopped) })
	}, func() { done(errStopped) })
}

// leaveRecovery is the end of a promotion.
func (p *postgres) leaveRecovery(above int, done func(error)) {
	if p.primary || p.stopping {
		done(errStopped)
		return
	}
	old := p.at
	p.at = position{branch: &branch{timeline: p.host.w.nextTimeline(old, above), parent: old.branch, fork: old.lsn}, lsn: old.lsn + 1}
	p.primary, p.streaming, p.upstream, p.loss, p.recovered = true, false, "", nil, 0
	p.host.w.judge.promoted(p.host, old)
	p.accept()
	done(nil)
}

// nextTimeline is the number that a promotion takes: after the highest of which there
// is a history file. With an archive that all share these are all of them.
func (w *world) nextTimeline(from position, above int) int {
	if w.schedule.NoArchive {
		return max(from.branch.timeline, above) + 1
	}
	w.timeline++
	return w.timeline
}

// stop is a fast shutdown: clients are thrown out, standbys get what is left.
func (p *postgres) stop(done func(error)) {
	ended := func() { done(p.killOrphans()) }
	if !p.running {
		ended()
		return
	}
	if p.stopping {
		p.later(p.takes(20*time.Millisecond, 500*time.Millisecond), func() { p.stop(done) }, ended)
		return
	}
	p.stopping, p.ready = true, false
	p.later(p.host.w.between(0, 30*time.Millisecond), p.refuse, func() {})
	p.later(p.takes(40*time.Millisecond, 600*time.Millisecond), func() {
		p.flush(func() { p.shutDown(); done(nil) }, ended)
	}, ended)
}

// shutDown makes the last checkpoint, and ends.
func (p *postgres) shutDown() {
	if p.primary {
		p.at.lsn += 120 // the shutdown checkpoint
		p.checkpoint = p.at.lsn - 120
		for _, s := range p.host.w.hosts {
			if s.pg.upstream == p.host.name && s.pg.lagging == 0 && s.pg.writes() && p.serves(&s.pg) {
				p.drainTo(s)
			}
		}
		p.drainToRemote()
	}
	p.clean = true
	p.end()
}

// killOrphans ends backends without a postmaster, if they can be told.
func (p *postgres) killOrphans() error {
	if p.orphans && p.unkillable > 0 {
		return errNotKilled
	}
	p.endOrphans()
	return nil
}

// drainTo is the end of a walsender at a shutdown: it sends all that is left.
func (p *postgres) drainTo(s *host) {
	if s.up && !s.frozen && s.pg.ready && !s.pg.primary && !s.pg.replaying() && p.host.w.net.both(s.id, p.host.id) && p.at.holds(s.pg.at) {
		s.pg.at = p.at
	}
}

// kill ends all processes, whatever they do.
func (p *postgres) kill(done func()) {
	p.host.w.after(p.host.w.between(time.Millisecond, 15*time.Millisecond), func() {
		p.host.process(func() {
			if (p.running || p.orphans) && (p.lingers > 0 || p.diskHangs > 0 && p.host.w.chance(0.5)) {
				p.remains = true
			}
			p.end()
			done()
		})
	})
}

// end is that of all processes.
func (p *postgres) end() {
	was := p.running
	p.refuse()
	p.life++
	p.running, p.ready, p.stopping, p.streaming, p.recovering = false, false, false, false, false
	p.hung, p.served, p.parent, p.orphans, p.stray = false, false, nil, false, false
	p.abandon()
	if was && p.host.agent != nil {
		a := p.host.agent
		a.later(p.host.w.between(0, 3*time.Millisecond), a.postmasterGone)
	}
}

// setSync changes whom commits wait for to what was asked for last, and tells how far the WAL was afterwards.
// done is called with zero when it failed, whether it took effect or not.
func (p *postgres) setSync(done func(since int64)) {
	w := p.host.w
	p.wanted = p.asked
	p.later(p.takes(time.Millisecond, 30*time.Millisecond), func() {
		if !p.ready || w.chance(0.05) && w.chance(0.5) {
			done(0)
			return
		}
		p.waits = p.wanted // a later change, if there is one by now
		failed := w.chance(0.02)
		p.later(p.takes(time.Millisecond, 20*time.Millisecond), func() {
			if failed || !p.ready {
				done(0)
				return
			}
			done(p.at.lsn)
		}, func() { done(0) })
	}, func() { done(0) })
}

// observe is PostgreSQL as it is seen at one moment.
func (p *postgres) observe() pg.State {
	o := pg.State{Running: p.running && !p.stray}
	if p.stray {
		return o
	}
	if p.hung {
		o.Silent = true
		return o
	}
	if !p.ready || p.stopping {
		o.Stopping = p.stopping
		return o
	}
	at := p.replayed()
	o.Accepting, o.InRecovery, o.Replaying, o.Timeline = true, !p.primary, p.replaying(), at.branch.timeline
	o.SyncNames, o.Slots = p.waits.value(), p.observedSlots()
	o.SynchronousCommit, o.Fsync, o.ServerVersion = p.commit(), true, 180000
	if p.streaming && p.messageAt > 0 {
		o.MessageAge = max(p.host.w.now-p.messageAt, 1)
	}
	if p.streaming {
		o.ReplicationState = pg.Streaming
	}
	if !p.primary {
		o.ReplayedLSN = at.lsn
		if p.received { // else it is NULL: no WAL receiver has run since the start
			o.ReceivedLSN, o.ReplayedLSN = at.lsn, p.behind()
		}
		return o
	}
	o.WriteLSN = at.lsn
	for _, s := range p.host.w.hosts {
		if !p.streamsTo(s) {
			continue
		}
		sync := "async"
		if slices.Contains(p.waits.names, s.name) {
			sync = "sync"
		}
		o.Standbys = append(o.Standbys, pg.StandbyState{
			ApplicationName: s.name, ClientAddr: s.name, State: pg.Streaming, SyncState: sync,
			WriteLSN: s.pg.at.lsn, FlushLSN: s.pg.at.lsn, ReplayLSN: s.pg.behind(),
		})
	}
	return o
}
