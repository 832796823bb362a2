package agent

import (
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/fence"
	"github.com/lictor-ha/lictor/agent/member"
	"github.com/lictor-ha/lictor/agent/osuser"
	"github.com/lictor-ha/lictor/agent/postgres"
)

// guardSupervisor is the guard process as the agent talks to it, and the mark beside the data.
// When it is told what is the state machine's (member.GuardSupervisor).
type guardSupervisor struct {
	client *fence.GuardClient
	log    zerolog.Logger
	led    ledMark
}

// statePrefix is how the names of the files begin that are kept beside the data
// directory.
func statePrefix(cfg config.Config) string {
	dataDir := filepath.Clean(cfg.Postgres.DataDir)
	dir := cfg.Lictor.StateDir
	if dir == "" {
		dir = filepath.Dir(dataDir)
	}
	return filepath.Join(dir, "."+filepath.Base(dataDir)+".lictor")
}

func newGuardSupervisor(cfg config.Config, o Options, files osuser.User) *guardSupervisor {
	dataDir := filepath.Clean(cfg.Postgres.DataDir)
	prefix := statePrefix(cfg) + "-guard"
	g := &guardSupervisor{
		client: fence.NewGuardClient(o.GuardCommand, fence.GuardOptions{Socket: prefix + ".sock", DataDir: dataDir}, prefix+".log"),
		led:    ledMark{path: statePrefix(cfg) + "-led", files: files},
		log:    o.Log,
	}
	g.client.Files = files
	return g
}

// Start makes the guard the postmaster's parent (postgres.Launcher).
func (g *guardSupervisor) Start(ctx context.Context, c postgres.Command) (int, error) {
	return g.client.Start(ctx, fence.GuardStart{
		Path: c.Path, Args: c.Args, Env: c.Env, Dir: c.Dir, Credential: c.Credential, LogFile: c.LogFile, Primary: c.Primary,
	})
}

// awake ends a guard that does not answer, before PostgreSQL is started: it guards nothing
// by then, and the next one is started when it is needed.
func (g *guardSupervisor) awake(ctx context.Context) error {
	if _, err := g.client.Status(ctx); err == nil {
		return nil
	}
	return g.endHung(ctx)
}

// endHung ends a guard that does not answer. Its PostgreSQL has been killed.
func (g *guardSupervisor) endHung(ctx context.Context) error {
	ended, err := g.client.EndHung(ctx)
	if ended {
		g.log.Warn().Msg("the guard did not answer and was ended, as no PostgreSQL runs; another one is started")
	}
	return err
}

// cancelStarts makes sure that no start comes up any more which was asked for before, and
// reports whether one may have since PostgreSQL was killed.
func (g *guardSupervisor) cancelStarts(ctx context.Context) (started bool, err error) {
	held, err := g.client.CancelStarts(ctx)
	if err == nil {
		return held != 0, nil
	}
	if err := g.endHung(ctx); err != nil {
		return true, err
	}
	_, err = g.client.CancelStarts(ctx)
	return true, err
}

// killForGood kills PostgreSQL and makes sure that no start comes up which the guard was asked
// for before.
func killForGood(ctx context.Context, kill func(context.Context) error, cancelStarts func(context.Context) (bool, error)) error {
	if err := kill(ctx); err != nil && !errors.Is(err, fence.ErrLingering) {
		return err
	}
	started, err := cancelStarts(ctx)
	if err != nil || !started {
		return err
	}
	return kill(ctx)
}

// Held is the postmaster that a guard which runs holds (postgres.Launcher).
func (g *guardSupervisor) Held(ctx context.Context) int {
	ctx, cancel := context.WithTimeout(ctx, heldWithin)
	defer cancel()
	status, err := g.client.Recall(ctx)
	if err != nil {
		return 0
	}
	return status.Postmaster
}

// heldWithin is how long a guard may take to say whom it holds; one that does not
// say is found by its children.
const heldWithin = time.Second

// Parent is the guard, of which PostgreSQL's processes descend (postgres.Launcher).
func (g *guardSupervisor) Parent() int { return g.client.PID() }

// guarded is member.GuardPort.
type guarded struct {
	*runner
	*guardSupervisor
	marking chan struct{} // is closed when the mark beside the data is as it was asked for last
}

// answerWithin is how long an order to the guard may take. Its client waits two seconds for an
// answer, and ten before that for a guard that has to be started first.
const answerWithin = 12 * time.Second

func (g *guarded) tell(work func(context.Context) error, done func(error)) {
	order(g.runner, answerWithin, work, done)
}

func (g *guarded) Arm(m member.PersistedState, grant bool, done func(error)) {
	arm := g.client.Arm
	if grant {
		arm = g.client.Grant
	}
	persisted := encodePersisted(m)
	g.tell(func(ctx context.Context) error { return arm(ctx, m.KillAt, persisted) }, done)
}

func (g *guarded) Disarm(done func(error)) { g.tell(g.client.Disarm, done) }

func (g *guarded) StandDown(m member.PersistedState, done func(error)) {
	persisted := encodePersisted(m)
	g.tell(func(ctx context.Context) error { return g.client.StandDown(ctx, persisted) }, done)
}

func (g *guarded) Remember(m member.PersistedState, done func(error)) {
	persisted := encodePersisted(m)
	g.tell(func(ctx context.Context) error { return g.client.Remember(ctx, persisted) }, done)
}

// awakeWithin bounds it: a guard that was killed may wait for a disk, and a start that waits
// for it fails and is tried again.
const awakeWithin = time.Minute

func (g *guarded) Awake(w *member.Work, done func(error)) {
	work(g.runner, w, awakeWithin, g.awake, done)
}

// cancelStartsWithin bounds it: a guard that hangs is ended for it.
const cancelStartsWithin = 6 * time.Second

// CancelStarts goes on even when the agent is told to end meanwhile.
func (g *guarded) CancelStarts(done func(bool, error)) {
	g.goDo(func(context.Context) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(g.ctx), cancelStartsWithin)
		defer cancel()
		started, err := g.cancelStarts(ctx)
		g.post(func() { done(started, err) })
	})
}

// recallWithin bounds the question to a guard that may not answer.
const recallWithin = 2 * time.Second

func (g *guarded) Recall(done func(member.Recalled)) {
	g.goDo(func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, recallWithin)
		defer cancel()
		r, _ := g.recall(ctx)
		g.post(func() { done(r) })
	})
}

func (g *guarded) Mark(until cluster.Instant, paused bool, done func(error)) {
	g.mark(func() error {
		if paused {
			return g.led.rests()
		}
		return g.led.leads(until)
	}, done)
}

// unmarkWithin is how long the end of a lease waits for the disk that the mark is on: a
// lease is given up because of such a disk, too.
const unmarkWithin = 250 * time.Millisecond

func (g *guarded) Unmark(done func()) {
	over := false
	end := func(err error) {
		if over {
			return
		}
		over = true
		if err != nil {
			g.log.Warn().Err(err).Str("file", g.led.path).Msg("the mark that this member leads stays")
		}
		done()
	}
	g.mark(g.led.ends, end)
	g.afterwards(unmarkWithin, func() { end(errMarkStays) })
}

var errMarkStays = errors.New("its disk has not answered (it may hang); it is changed when that does")

// mark changes the mark when the loop has heard of what was asked for before.
func (g *guarded) mark(change func() error, done func(error)) {
	before, changed := g.marking, make(chan struct{})
	g.marking = changed
	g.goDo(func(context.Context) {
		if before != nil {
			<-before
		}
		err := change()
		g.post(func() { done(err) })
		close(changed)
	})
}

// recall asks the guard that an earlier run of this agent left; none: no guard runs.
func (g *guardSupervisor) recall(ctx context.Context) (r member.Recalled, none bool) {
	status, err := g.client.Recall(ctx)
	none = errors.Is(err, fence.ErrNoGuard)
	says := member.GuardSays{Runs: !none, Answers: err == nil, Fired: status.Fired, Until: status.Until}
	if err != nil && !none {
		g.log.Error().Err(err).Msg("the guard runs, but does not answer")
	}
	var m member.PersistedState
	if len(status.PersistedState) > 0 && json.Unmarshal(status.PersistedState, &m) == nil {
		says.PersistedState = &m
	}
	return member.Recall(says, g.led.read()), none
}

func encodePersisted(m member.PersistedState) json.RawMessage {
	b, err := json.Marshal(m)
	if err != nil {
		return nil // a persisted state holds nothing that could not be encoded
	}
	return b
}

// dismiss ends the guard of an agent that has stopped its PostgreSQL.
func (g *guardSupervisor) dismiss(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if err := g.client.Quit(ctx); err != nil {
		g.log.Debug().Err(err).Msg("the guard stays")
	}
}

// tellOfWatcher tells of what the guard has said of its watcher with its last answer.
func (a *Agent) tellOfWatcher() {
	w := a.guard.client.Watched()
	if w.Lost > a.m.watchersLost {
		a.log.Warn().Int("lost", w.Lost).Int("watcher", w.By).Msg("the guard's watcher has ended; the guard starts another one")
	}
	a.m.watchersLost = w.Lost // a new guard begins anew
	a.m.Problem("watcher", "nobody watches the guard, which has the deadline alone", w.Why)
}
