package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/fence"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/osuser"
	"github.com/lictor-ha/lictor/agent/postgres"
)

// guardian keeps the guard's deadline in step with the lease. The loop leaves
// the latest deadline with it and goes on; tasks that must be sure wait.
type guardian struct {
	client *fence.GuardClient
	log    zerolog.Logger
	post   chan struct{} // a deadline was left

	// order makes what tasks ask for and what the loop left reach the guard one
	// after another, so that an old deadline never arms it after a disarm.
	order sync.Mutex

	mu     sync.Mutex
	left   orders          // by the loop, not yet sent
	newest memo            // the latest of those that anybody passed on
	known  cluster.Instant // what the guard has
	may    cluster.Instant // the latest deadline that it may have: not each order is answered
	broken string
	// resting: the guard may remember that a pause is in force.
	resting bool
	led     ledMark
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

func newGuardian(cfg config.Config, o Options, files osuser.User) *guardian {
	dataDir := filepath.Clean(cfg.Postgres.DataDir)
	prefix := statePrefix(cfg) + "-guard"
	g := &guardian{
		client: fence.NewGuardClient(o.GuardCommand, fence.GuardOptions{Socket: prefix + ".sock", DataDir: dataDir}, prefix+".log"),
		led:    ledMark{path: statePrefix(cfg) + "-led", files: files},
		log:    o.Log, post: make(chan struct{}, 1),
	}
	g.client.Files = files
	return g
}

// Start makes the guard the postmaster's parent (postgres.Launcher).
func (g *guardian) Start(ctx context.Context, c postgres.Command) (int, error) {
	return g.client.Start(ctx, fence.GuardStart{
		Path: c.Path, Args: c.Args, Env: c.Env, Dir: c.Dir, Credential: c.Credential, LogFile: c.LogFile, Primary: c.Primary,
	})
}

// awake ends a guard that does not answer, before PostgreSQL is started: it guards nothing
// by then, and the next one is started when it is needed.
func (g *guardian) awake(ctx context.Context) error {
	if _, err := g.client.Status(ctx); err == nil {
		return nil
	}
	return g.endHung(ctx)
}

// endHung ends a guard that does not answer. Its PostgreSQL has been killed.
func (g *guardian) endHung(ctx context.Context) error {
	ended, err := g.client.EndHung(ctx)
	if ended {
		g.log.Warn().Msg("the guard did not answer and was ended, as no PostgreSQL runs; another one is started")
	}
	return err
}

// overtake makes sure that no start comes up any more which was asked for before, and
// reports whether one may have since PostgreSQL was killed.
func (g *guardian) overtake(ctx context.Context) (started bool, err error) {
	held, err := g.client.Overtake(ctx)
	if err == nil {
		return held != 0, nil
	}
	if err := g.endHung(ctx); err != nil {
		return true, err
	}
	_, err = g.client.Overtake(ctx)
	return true, err
}

// Held is the postmaster that a guard which runs holds (postgres.Launcher).
func (g *guardian) Held(ctx context.Context) int {
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
func (g *guardian) Parent() int { return g.client.PID() }

// orders are what the loop wants of the guard. The latest replace earlier ones.
type orders struct {
	grant  bool // of a new lease
	disarm bool
	memo   memo
}

// memo is what the guard is told: the deadline, and what it remembers for the agent.
type memo struct {
	ha.Memo
	// Config is the dynamic configuration in force: Consul may be away.
	Config json.RawMessage `json:"config,omitempty"`

	killAt  cluster.Instant // the deadline; zero: there is no lease
	version uint64          // counts the memos: tasks may pass on theirs late
}

// arm leaves a new deadline of the present lease for the guard.
func (g *guardian) arm(m memo) { g.leave(orders{memo: m}) }

// grant leaves the deadline of a new lease for the guard.
func (g *guardian) grant(m memo) { g.leave(orders{memo: m, grant: true}) }

// standDown leaves for the guard that nothing is to be guarded, as the shard is
// paused, and that it is to remember so.
func (g *guardian) standDown(m memo) {
	g.rests()
	g.leave(orders{disarm: true, memo: m})
}

func (g *guardian) leave(o orders) {
	if o.memo.killAt.IsZero() && !o.disarm {
		return
	}
	g.latest(o.memo)
	g.mu.Lock()
	o.grant = o.grant || g.left.grant && !o.disarm
	g.left = o
	g.mu.Unlock()
	kick(g.post)
}

// latest is the newest memo that anybody has passed on: m, or one by which the loop
// has overtaken the task that passes on m.
func (g *guardian) latest(m memo) memo {
	g.mu.Lock()
	defer g.mu.Unlock()
	if m.version > g.newest.version {
		g.newest = m
	}
	return g.newest
}

// armNow sets the deadline of a new lease and waits until the guard has it.
func (g *guardian) armNow(ctx context.Context, m memo) error {
	if err := g.led.leads(m.killAt); err != nil {
		return err
	}
	g.order.Lock()
	defer g.order.Unlock()
	return g.tell(ctx, m, g.client.Grant)
}

// leads makes sure, before a beat or takeover is sent, that a restarted agent will know
// of the lease: until is its end, should it succeed. What the guard remembers of a pause
// is forgotten before a status says that there is none.
func (g *guardian) leads(ctx context.Context, m memo, until cluster.Instant) error {
	g.mu.Lock()
	resting := g.resting
	g.mu.Unlock()
	if m.Paused && resting {
		return nil
	}
	if err := g.led.leads(until); err != nil || !resting {
		return err
	}
	g.order.Lock()
	defer g.order.Unlock()
	m = g.latest(m)
	var err error
	if m.killAt.IsZero() {
		err = g.client.Remember(ctx, encodeMemo(m))
	} else {
		err = g.tell(ctx, m, g.client.Arm)
	}
	if err != nil {
		return fmt.Errorf("the pause cannot end before the guard knows: %w", err)
	}
	g.mu.Lock()
	g.resting = false
	g.mu.Unlock()
	return nil
}

// shorten waits until the guard has no later deadline than this one: before a beat
// is sent which makes the lease shorter (design 5.1). It does
// not wait for a guard that has none.
func (g *guardian) shorten(ctx context.Context, m memo) error {
	m = g.latest(m)
	g.mu.Lock()
	late := m.killAt.Before(g.may)
	g.mu.Unlock()
	if m.killAt.IsZero() || !late {
		return nil
	}
	g.order.Lock()
	defer g.order.Unlock()
	if err := g.tell(ctx, m, g.client.Arm); err != nil {
		return fmt.Errorf("the lease cannot be made shorter before the guard knows: %w", err)
	}
	return nil
}

// tell has the guard take the latest deadline. The order is held.
func (g *guardian) tell(ctx context.Context, m memo, as func(context.Context, cluster.Instant, json.RawMessage) error) error {
	m = g.latest(m)
	g.mu.Lock()
	if g.may.Before(m.killAt) {
		g.may = m.killAt
	}
	g.mu.Unlock()
	err := as(ctx, m.killAt, encodeMemo(m))
	g.note(m.killAt, err)
	return err
}

// remember has the guard remember a memo, and waits until it does.
func (g *guardian) remember(ctx context.Context, m memo) error {
	g.order.Lock()
	defer g.order.Unlock()
	return g.client.Remember(ctx, encodeMemo(g.latest(m)))
}

// disarm takes the deadline away and waits until it is.
func (g *guardian) disarm(ctx context.Context) error {
	g.order.Lock()
	defer g.order.Unlock()
	g.mu.Lock()
	g.left = orders{}
	g.mu.Unlock()
	err := g.client.Disarm(ctx)
	g.note(0, err)
	if err == nil {
		g.mu.Lock()
		g.resting = false
		g.mu.Unlock()
		err = g.unmark(ctx)
	}
	return err
}

// unmark removes the mark that this member leads. On a disk that hangs it goes later:
// until then it says too much, which does no harm.
func (g *guardian) unmark(ctx context.Context) error {
	removed := make(chan error, 1)
	go func() { removed <- g.led.remove() }() // ends when the disk answers
	select {
	case err := <-removed:
		return err
	case <-ctx.Done():
		g.log.Warn().Str("file", g.led.path).Msg("the mark that this member leads cannot be removed yet (a disk that hangs?)")
		return nil
	}
}

// send passes on what the loop left last.
func (g *guardian) send(ctx context.Context) {
	g.order.Lock()
	defer g.order.Unlock()
	g.mu.Lock()
	o := g.left
	g.left = orders{}
	g.mu.Unlock()
	switch {
	case o.disarm:
		err := g.client.StandDown(ctx, encodeMemo(g.latest(o.memo)))
		if err == nil {
			err = g.led.rests()
		}
		g.note(0, err)
	case o.memo.killAt.IsZero():
	case o.grant:
		_ = g.tell(ctx, o.memo, g.client.Grant) // noted
	default:
		_ = g.tell(ctx, o.memo, g.client.Arm)
	}
}

// recalled is what the guard of an agent's earlier run knows.
type recalled struct {
	memo *memo // nil: nothing
	// until is the guard's deadline, zero when it is disarmed or when none runs.
	// It lies in the past when the guard has fired, or does not answer: then
	// nobody knows how long PostgreSQL may run.
	until cluster.Instant
	none  bool // no guard runs
	// paused: it rests on a pause that was in force. unled: no run of this agent has
	// led with the PostgreSQL that runs.
	paused, unled bool
}

// longAgo is a moment in the past.
const longAgo = cluster.Instant(1)

// recall asks the guard that an earlier run of this agent left.
func (g *guardian) recall(ctx context.Context) recalled {
	status, err := g.client.Recall(ctx)
	switch {
	case errors.Is(err, fence.ErrNoGuard):
		return g.marked(recalled{none: true})
	case err != nil:
		g.log.Error().Err(err).Msg("the guard runs, but does not answer")
		return recalled{until: longAgo}
	case status.Fired:
		return recalled{until: longAgo}
	}
	g.note(status.Until, nil)
	r := recalled{until: status.Until}
	var m memo
	if len(status.Memo) > 0 && json.Unmarshal(status.Memo, &m) == nil {
		r.memo = &m
	}
	switch {
	case !status.Until.IsZero():
	case r.memo != nil && r.memo.Paused:
		r.paused = true
		g.rests()
	default:
		r.memo = nil
		r = g.marked(r)
	}
	return r
}

// marked adds what the mark beside the data says, when no guard knows.
func (g *guardian) marked(r recalled) recalled {
	switch said := g.led.read(); {
	case said == nil:
		r.unled = true
	case said.paused:
		r.paused = true
		g.rests()
	default:
		r.until = said.until
	}
	return r
}

// rests notes that the guard, or the mark, may say that a pause is in force.
func (g *guardian) rests() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.resting = true
}

func encodeMemo(m memo) json.RawMessage {
	b, err := json.Marshal(m)
	if err != nil {
		return nil // a memo holds nothing that could not be encoded
	}
	return b
}

// idle tells whether the guard has been told all that the loop left.
func (g *guardian) idle() bool {
	if !g.order.TryLock() {
		return false
	}
	defer g.order.Unlock()
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.left.memo.killAt.IsZero() && !g.left.disarm
}

// note remembers what the guard has, and says once when it cannot be told.
func (g *guardian) note(until cluster.Instant, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err == nil {
		g.known, g.may = until, until
		if g.broken != "" {
			g.log.Info().Msg("the guard is told again")
		}
		g.broken = ""
		return
	}
	if g.broken == "" {
		g.log.Error().Err(err).Msg("the guard cannot be told the deadline; it keeps the one it has")
	}
	g.broken = err.Error()
}

// standsDown reports whether the guard is known to kill nothing on its own.
func (g *guardian) standsDown() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.known.IsZero() && g.broken == ""
}

// shown is the guard's state for the API.
func (g *guardian) shown(now cluster.Instant) (running bool, armedFor time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.known.IsZero() {
		armedFor = max(0, g.known.Sub(now))
	}
	return g.broken == "", armedFor
}

// watchGuard passes on the deadlines that the loop leaves. A guard that was
// killed is started again by the next one: it then has no parent-death signal
// on a PostgreSQL that runs already, but it has the deadline.
func (a *Agent) watchGuard(ctx context.Context) {
	defer a.guard.client.Close()
	for {
		select {
		case <-a.guard.post:
			limit, cancel := context.WithTimeout(ctx, a.dynamic.Load().RetryTimeout)
			a.guard.send(limit)
			cancel()
		case <-ctx.Done():
			return
		}
	}
}

// dismissGuard ends the guard of an agent that has stopped its PostgreSQL.
func (a *Agent) dismissGuard() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(a.ctx), time.Second)
	defer cancel()
	if err := a.guard.client.Quit(ctx); err != nil {
		a.log.Debug().Err(err).Msg("the guard stays")
	}
}

// memo is what must outlive this process.
func (a *Agent) memo() memo {
	a.m.memos++
	m := memo{Memo: a.m.tenure.Memo(a.m.session, a.m.Snapshot.Status.ModifyIndex), killAt: a.killAt(), version: a.m.memos}
	m.Paused = a.pauseInForce()
	if json.Valid(a.m.Snapshot.Config.Value) {
		m.Config = a.m.Snapshot.Config.Value
	}
	return m
}

// pauseInForce tells whether this member may rest on the pause (ha.View).
func (a *Agent) pauseInForce() bool {
	return ha.View{Name: a.cfg.Name, Config: a.m.dynamic, Cluster: a.m.Snapshot, Read: a.m.Read, AdoptedPaused: a.m.adoptedPaused}.PauseInForce()
}

// armGuard moves the guard's deadline with the lease. In pause nothing is killed
// on its own (I5), from the beat on that says so.
func (a *Agent) armGuard() {
	if a.pauseInForce() {
		a.guard.standDown(a.memo())
		return
	}
	a.guard.arm(a.memo())
}

// guardTold is what must have succeeded before a beat or takeover that is sent at t0 for
// a lease of ttl: the guard knows the end of a lease that is cut, and a restarted agent
// will know that there may be one.
func (a *Agent) guardTold(t0 cluster.Instant, ttl time.Duration) func(context.Context) error {
	memo, until := a.memo(), t0.Add(ttl-a.margins().KillBefore)
	memo.Paused = a.m.dynamic.Pause // as the status will say
	shorten := !a.pauseInForce() && !a.m.tenure.Until().IsZero()
	return func(ctx context.Context) error {
		if err := a.guard.leads(ctx, memo, until); err != nil {
			return err
		}
		if !shorten {
			return nil
		}
		return a.guard.shorten(ctx, memo)
	}
}
