package bouncer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/install"
	"github.com/lictor-ha/lictor/bouncer/pooler"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
	"github.com/lictor-ha/lictor/bouncer/render"
	"github.com/lictor-ha/lictor/bouncer/routes"
)

const (
	// reconcilePace is how often PgBouncer is compared with what it should be,
	// though nothing has happened: somebody else may have changed it.
	reconcilePace = 10 * time.Second
	// retryLeast and retryMost limit the pause before something that failed is
	// tried again with nothing new.
	retryLeast = 250 * time.Millisecond
	retryMost  = 30 * time.Second
	// lookAgain is the pause before PgBouncer is looked at again, when that has failed.
	lookAgain = time.Second
)

// reconciler brings PgBouncer to what is known of the shards. One goroutine does
// it, in passes; each pass looks at everything and does what is missing, so
// that it does not matter which event woke it, or how many did. What comes
// while a pass runs is dealt with by the next one: a burst becomes one RELOAD.
type reconciler struct {
	config   config.Config
	log      zerolog.Logger
	table    *routes.Table
	renderer *render.Renderer
	link     *pooler.Link
	console  *pooler.Console
	applier  *pooler.Applier
	file     *install.Config
	syncer   *configSyncer
	// good is the configuration to go back to: the last one that was verified.
	good         []byte
	pauser       *pooler.Pauser
	connCloser   *pooler.ConnCloser
	healthProber *pooler.HealthProber
	handovers    *routes.Handovers
	operators    *operatorPauses
	// respond takes the answer to the leader of a handover.
	respond func(config.ShardID, cluster.HandoverAnswer)
	deadman *pooler.Deadman
	// keepStrangers has strangers written down, beside the passes; strangerKept reports whether one
	// is written down, and it was not tried yet to write that it is none.
	keepStrangers func(names []string)
	strangerKept  func(name string) bool
	// keepHolds has holds written down.
	keepHolds func(map[config.ShardID]savedHold)
	// passes is told how long each took.
	passes prometheus.Observer
	// number is that of its process.
	number int
	// answered reports whether Consul has answered since the start.
	answered func() bool
	// applied is called after a pass that changed what is applied.
	applied func()
	wake    chan struct{}
	manager Manager
	// ending reports whether this bouncer ends, and not only its configuration.
	ending func() bool
	// proven reports whether clients were ever rightly sent here, prove says that they are.
	proven func() bool
	prove  func()
	// stood is told that PgBouncer has this configuration.
	stood func()
	// dropped reports whether the next configuration does not have this process.
	dropped func() bool
	// restarted: with another configuration, in a bouncer that ran already.
	restarted bool

	// Of the goroutine alone:
	holds map[config.ShardID]*hold
	// heldOf are holds of an earlier bouncer that were not met again yet, noted all as they are
	// written down.
	heldOf, noted map[config.ShardID]savedHold
	viewer        *render.Viewer
	checker       *render.Checker
	known         map[config.ShardID]render.ShardRoute
	// confirmed: Consul has confirmed all that was restored. kept is what was made of the
	// others; undecided: PgBouncer could not be asked where it leads to.
	confirmed, undecided bool
	kept                 map[config.ShardID]keptRoute
	last                 *rendering
	generation           int // of the PgBouncer that has taken loaded
	loaded               []byte
	standing             map[string]pgbouncer.Database
	installed            *pgbouncer.File // what is in the file; nil: it was not looked at yet
	readBack             time.Time       // when loaded was verified
	published            time.Time       // when the status was made public
	// ours are the databases that are paused, or may be, by PAUSE of this bouncer or of
	// one before it, and must be resumed. The value is when a PAUSE was sent whose
	// acceptance is not known, which may take effect late.
	ours map[string]time.Time
	// strangers are the databases that somebody else has paused, on the console, as they
	// are written down.
	strangers []string
	// doubted are the databases that an earlier bouncer has left paused, by where they led at the first
	// look, until their primary is asked.
	doubted      map[string]pgbouncer.Address
	observed     bool // PgBouncer was, since it came up
	everObserved bool // any was
	unheld       bool // a PAUSE has to be tried again
	// soon is when something is tried that waits for logins, PAUSE or RESUME.
	soon    time.Time
	program pooler.Installed
	// counting is when transactions and clients are to be counted again, for a
	// handover that holds them; 0: not at all.
	counting  time.Duration
	unfit     string // what PgBouncer did not take, routes aside
	refusal   error  // its word on it
	lastBack  *rendering
	retry     time.Duration
	retryAt   time.Time
	reconcile time.Time
	told      bool // the manager knows that this configuration stands

	// seen is set by the goroutine alone.
	seen atomic.Pointer[viewed]
	// holding: clients of some shard are held.
	holding atomic.Bool

	mu     sync.Mutex
	status map[config.ShardID]ShardStatus
	shown  int               // the generation of the PgBouncer that status is about
	left   map[string]string // shards that cannot be offered, and why; it was said
	stray  []string          // databases that are paused without a hold
	listen pooler.Listening  // where PgBouncer listens
	err    error
	unkept error // why what is in place may not last
}

// goOn takes over what the loop of the configuration before knew of the same PgBouncer: a hold lasts no longer,
// and begins no more once it is over, because a file was read again, nor does a dead primary live.
func (c *reconciler) goOn(before *reconciler) {
	latest := time.Now().Add(c.config.MaxHold())
	for _, h := range before.holds {
		if h.deadline.After(latest) {
			h.deadline = latest
		}
	}
	c.holds, c.heldOf, c.ours, c.doubted, c.everObserved = before.holds, before.heldOf, before.ours, before.doubted, before.everObserved
	c.healthProber.GoOn(before.healthProber)
}

// notify wakes the reconciler.
func (c *reconciler) notify() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// run reconciles until ctx is done.
func (c *reconciler) run(ctx context.Context) {
	var syncing sync.WaitGroup
	defer syncing.Wait()
	endless, end := context.WithCancel(context.WithoutCancel(ctx)) // it goes on after the last pass
	defer end()
	syncing.Go(func() { c.syncer.run(endless) })
	defer c.console.Close()
	defer c.pauser.Close()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			switch unbound := context.WithoutCancel(ctx); {
			case c.ending():
				c.leave(unbound)
			case c.dropped():
				c.drop(unbound)
			}
			return
		case <-c.wake:
		case <-c.renderer.News():
		case <-timer.C:
		}
		begun := time.Now()
		wait := c.pass(ctx)
		c.passes.Observe(time.Since(begun).Seconds())
		timer.Reset(wait)
	}
}

// pass does all that is to do now and returns when to look again.
func (c *reconciler) pass(ctx context.Context) time.Duration {
	c.soon = time.Time{}
	link := c.link.Now()
	version := c.version(ctx, link)
	if link.Generation != c.generation {
		c.reset(link)
	}
	if !link.Up { // it may wait for its clients to go, of which each connection is one
		c.console.Close()
		c.pauser.Forget()
		c.connCloser.Forget()
	}
	c.observe(ctx, link)
	known, pauses := c.views(version), c.operators.all()
	c.doubt(known)
	views, all := make([]*shard, len(known.views)), make([]shard, len(known.views))
	for i, v := range known.views {
		all[i] = shard{Shard: v, unhealthy: c.healthProber.Unhealthy(v.ID, v.Route.Leader), handover: c.handovers.Holds(v.ID, v.Route, v.Index)}
		if _, paused := pauses[v.ID]; paused {
			p := pauses[v.ID]
			all[i].operator = &p
		}
		views[i] = &all[i]
	}
	c.forgetHolds(views)
	c.endWanted(views)
	c.hold(ctx, link, views)
	c.deadman.Set(c.deadlines(views))
	c.noteHolds()
	c.answer(ctx, link, views)
	err := c.apply(ctx, link, known)
	// A database that PgBouncer did not have before can be held only now.
	c.hold(ctx, link, views)
	if e := c.release(ctx, link, views); err == nil {
		err = e
	}
	c.deadman.Set(c.deadlines(views))
	c.noteHolds()
	if link.Up && len(c.loaded) > 0 {
		c.connCloser.Look()
	}
	c.noteStrangers(link)
	// Nobody waits for this: it is for the next failure.
	if len(c.loaded) > 0 {
		c.syncer.good(c.loaded)
	}
	c.noteUnkept(c.syncer.failure())
	c.scheduleRetry(err)
	c.holding.Store(len(c.holds) > 0)
	c.publish(views, known.left)
	c.report(link, views, err)
	return c.next(link, views)
}

// doubt has the primaries asked to which clients led that an earlier bouncer has left waiting, perhaps as they
// do not answer: until then nobody is released for one. A shard that Consul says something else of has no such
// primary, or will have one that Consul has just told of.
func (c *reconciler) doubt(known *viewed) {
	maps.DeleteFunc(c.doubted, func(name string, _ pgbouncer.Address) bool { _, ours := c.ours[name]; return !ours })
	if len(c.doubted) == 0 {
		return
	}
	for _, v := range known.views {
		leader := pgbouncer.Address{Host: v.Route.Leader.Host, Port: v.Route.Leader.Port}
		for _, name := range c.written(&shard{Shard: v}) {
			at, doubted := c.doubted[name]
			leads := at == leader && v.Route.State == cluster.RouteOpen
			if doubted && leads {
				c.healthProber.Doubt(v.ID, v.Route.Leader, known.number)
			}
			if leads || v.Confirmed {
				delete(c.doubted, name)
			}
		}
	}
}

// forgetHolds lets the holds go of shards that there are no more.
func (c *reconciler) forgetHolds(views []*shard) {
	if len(c.holds) == 0 && len(c.heldOf) == 0 {
		return
	}
	ids := make(map[config.ShardID]bool, len(views))
	for _, v := range views {
		ids[v.ID] = true
	}
	maps.DeleteFunc(c.holds, func(id config.ShardID, _ *hold) bool { return !ids[id] })
	maps.DeleteFunc(c.heldOf, func(id config.ShardID, _ savedHold) bool { return !ids[id] })
}

// views is what is known of the shards, made anew only when that has changed: the
// regular look at PgBouncer must cost little at a thousand shards.
func (c *reconciler) views(version pgbouncer.Version) *viewed {
	seen, unknown := c.seen.Load(), c.config.UsersOfNoPassword(version)
	if seen == nil || seen.changes != c.table.Version() || seen.version != version || !slices.Equal(seen.unknown, unknown) || c.undecided && c.standing != nil {
		number := c.viewed().number + 1
		var changes uint64
		c.known, changes = updateRoutes(c.known, c.table)
		views, left := c.viewer.View(c.keepUnconfirmed(), version)
		left = slices.Clone(left)
		for _, name := range unknown {
			path := "pgbouncer.users." + name
			left = append(left, render.LeftOut{What: path, Err: fmt.Errorf(
				"%s is not written: auth_file %s has no such user, and PgBouncer before 1.23 would make one without a password", path, c.config.Setting("auth_file"))})
		}
		seen = &viewed{views, left, changes, version, number, unknown}
		c.seen.Store(seen)
	}
	return seen
}

// viewed is what is known of the shards as of the last pass, nothing before the first.
func (c *reconciler) viewed() *viewed {
	if seen := c.seen.Load(); seen != nil {
		return seen
	}
	return &viewed{}
}

// viewed is what view made of the table.
type viewed struct {
	views   []*render.Shard
	left    []render.LeftOut
	changes uint64
	version pgbouncer.Version
	// number is another one for each.
	number uint64
	// unknown are users whose options are not written.
	unknown []string
}

// shard is one shard in a pass.
type shard struct {
	*render.Shard
	// unhealthy: the primary does not answer PgBouncer.
	unhealthy bool
	// handover is the planned switchover that holds the clients, if any.
	handover *cluster.Handover
	// operator is the pause of an operator, if there is one.
	operator *OperatorPause
}

// reset begins with a PgBouncer that may have been started anew.
func (c *reconciler) reset(link pooler.LinkState) {
	c.pauser.Forget()
	c.console.Close()
	c.generation, c.loaded, c.standing, c.observed = link.Generation, nil, nil, false
	c.retryAt = time.Time{}
	if link.Up && c.config.Frees(link.Version) == config.FreeByTimeout {
		c.log.Warn().Msg("clients of a lost primary are freed by TCP's timeouts only, after 30 s: give the bouncer CAP_NET_ADMIN, or take PgBouncer 1.24")
	}
}

// observe reads the databases as they stand, before anything is done.
func (c *reconciler) observe(ctx context.Context, link pooler.LinkState) {
	if !link.Up || c.standing != nil && len(c.holds) == 0 && time.Now().Before(c.reconcile) {
		return // nothing is held, and the last look is recent
	}
	standing, err := c.console.Databases(ctx)
	if err != nil {
		c.log.Debug().Err(err).Msg("looking at PgBouncer failed")
		c.standing = nil // the link will tell whether it is gone
		c.reconcile = time.Now().Add(lookAgain)
		return
	}
	c.standing, c.reconcile = standing, time.Now().Add(reconcilePace)
	if !c.observed {
		// What is paused when a bouncer begins is what an earlier one held, unless that one
		// has written down that it did not.
		for name, d := range standing {
			if d.Paused && !c.everObserved && !slices.Contains(c.strangers, name) {
				c.ours[name] = time.Time{}
				if c.doubted == nil {
					c.doubted = map[string]pgbouncer.Address{}
				}
				c.doubted[name] = addressOf(d)
			}
		}
		c.observed, c.everObserved = true, true
		c.pauser.Warm(ctx)
	}
	maps.DeleteFunc(c.ours, func(name string, sent time.Time) bool {
		return !mayBePaused(standing, name) && time.Since(sent) > lateMost
	})
}

// mayBePaused reports whether a database is paused, or not shown: one that PgBouncer has made by its database * it
// puts away when its last client has gone, and it comes back paused with the next one.
func mayBePaused(standing map[string]pgbouncer.Database, name string) bool {
	d, shown := standing[name]
	return d.Paused || !shown
}

// noteStrangers looks who is paused by somebody else after a pass.
func (c *reconciler) noteStrangers(link pooler.LinkState) {
	if !link.Up || c.standing == nil || !c.observed {
		return
	}
	var names []string
	for name, d := range c.standing {
		if _, ours := c.ours[name]; d.Paused && !ours {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	c.setStrangers(names)
}

// setStrangers has the databases written down that somebody else has paused, so that the next
// bouncer does not take them for held.
func (c *reconciler) setStrangers(names []string) {
	if slices.Equal(names, c.strangers) {
		return
	}
	c.strangers = names
	c.keepStrangers(names)
}

// pausable are those of databases that may be paused now. One that somebody else had paused is written
// down as that for a moment longer: the next bouncer would leave its clients waiting. The others do not wait for it.
func (c *reconciler) pausable(names []string) []string {
	c.setStrangers(slices.DeleteFunc(slices.Clone(c.strangers), func(name string) bool { return slices.Contains(names, name) }))
	now := slices.DeleteFunc(slices.Clone(names), c.strangerKept)
	c.unheld = c.unheld || len(now) < len(names)
	return now
}

// apply makes file and PgBouncer say what is known. What cannot be rendered, or was
// refused by PgBouncer, keeps no shard from its primary: settings and template are the
// last good ones then, with the newest routes.
func (c *reconciler) apply(ctx context.Context, link pooler.LinkState, known *viewed) error {
	if len(known.views) == 0 && !c.mayBeEmpty() {
		return nil
	}
	missing := c.missing()
	if len(missing) > 0 && !link.Up && link.Err == nil || c.undecided && (link.Up || link.Err == nil) {
		return nil // what PgBouncer has of them will be known in a moment
	}
	text, file, err := c.rendered(known)
	if err == nil && len(missing) > 0 {
		text, file, err = c.keepMissing(text, file, missing, known.version)
	}
	if err == nil {
		if c.unfit == "" || c.last.recipe(c.config) != c.unfit || link.Up && !time.Now().Before(c.retryAt) {
			if err = c.stand(ctx, link, text, file, known.views); !pooler.IsRefusal(err) {
				return err
			}
			c.unfit, c.refusal = c.last.recipe(c.config), err
		}
		err = c.refusal
	}
	return c.fallBack(ctx, link, known, err)
}

// errStandIn says that nothing is lost by what could not be applied.
var errStandIn = errors.New("the last good configuration is in place, with the newest routes")

// fallBack makes the last good settings and template stand, for cause.
func (c *reconciler) fallBack(ctx context.Context, link pooler.LinkState, known *viewed, cause error) error {
	if len(c.good) == 0 {
		return fmt.Errorf("%w; there is no other good configuration to go back to", cause)
	}
	if c.lastBack == nil || c.lastBack.changes != known.changes || c.lastBack.version != known.version {
		text, err := render.WithRoutes(c.good, known.views, known.version)
		if err != nil {
			return fmt.Errorf("%w; going back to the last good configuration failed: %w", cause, err)
		}
		file, err := c.checker.CheckTaken(text, known.views, known.version)
		if err != nil {
			return fmt.Errorf("%w; going back to the last good configuration failed: %w", cause, err)
		}
		c.lastBack = &rendering{version: known.version, changes: known.changes, text: text, file: file}
	}
	if err := c.stand(ctx, link, c.lastBack.text, c.lastBack.file, known.views); err != nil {
		return fmt.Errorf("%w; going back to the last good configuration failed: %w", cause, err)
	}
	return fmt.Errorf("%w; %w", cause, errStandIn)
}

// stand installs a checked text, and makes PgBouncer take it unless it has.
func (c *reconciler) stand(ctx context.Context, link pooler.LinkState, text []byte, file pgbouncer.File, views []*render.Shard) error {
	kept, err := c.file.KeepBefore()
	if err != nil {
		return err
	}
	if kept != "" {
		c.log.Warn().Str("file", c.config.PgBouncer.Config).Str("kept", kept).Msg("this file was not the bouncer's; it is kept under another name and replaced")
	}
	written, err := c.file.Put(text)
	if err != nil {
		return err
	}
	c.installed = &file
	if written {
		// What takes as long as a RELOAD of a few databases comes after it.
		defer func() {
			c.syncer.sync()
			c.log.Info().Str("file", c.config.PgBouncer.Config).Int("shards", len(views)).Msg("configuration written")
		}()
	}
	if !link.Up || c.standing == nil {
		return nil
	}
	if !written && c.hasLoaded(text) && len(pooler.Differences(file, c.standing)) == 0 {
		return nil
	}
	return c.reload(ctx, text, file, views)
}

// rendering is a checked text and what it was made from.
type rendering struct {
	source           string
	version          pgbouncer.Version
	changes, arrived uint64
	unknown          []string
	text             []byte
	file             pgbouncer.File
}

// recipe is what a text was made of besides the routes.
func (r *rendering) recipe(c config.Config) string {
	return fmt.Sprintf("%v %d %v\n%s", r.version, r.arrived, c.Settings(r.version), r.source)
}

// rendered renders and checks, unless nothing has changed that it depends on: at
// a thousand shards the regular look at PgBouncer would cost too much.
func (c *reconciler) rendered(known *viewed) ([]byte, pgbouncer.File, error) {
	source, err := c.renderer.Template()
	if err != nil {
		return nil, pgbouncer.File{}, err
	}
	now := rendering{source: string(source), version: known.version, changes: known.changes, arrived: c.renderer.Arrived(), unknown: known.unknown}
	if last := c.last; last != nil && last.source == now.source && last.version == known.version &&
		last.changes == known.changes && last.arrived == now.arrived && slices.Equal(last.unknown, now.unknown) {
		return last.text, last.file, nil
	}
	if now.text, err = c.renderer.Render(source, known.views, known.version); err != nil {
		return nil, pgbouncer.File{}, err
	}
	if now.file, err = c.checker.Check(now.text, known.views, known.version); err != nil {
		return nil, pgbouncer.File{}, err
	}
	c.last = &now
	return now.text, now.file, nil
}

// version is that of the PgBouncer that the file is for: the one that runs, else the
// one that would be started.
func (c *reconciler) version(ctx context.Context, link pooler.LinkState) pgbouncer.Version {
	if link.Up {
		return link.Version
	}
	return c.program.Version(ctx, c.config)
}

// mayBeEmpty reports whether a file without any shard may be written: as the very
// first one, so that PgBouncer can start, or when the operator allows it.
func (c *reconciler) mayBeEmpty() bool {
	if _, err := os.Stat(c.config.PgBouncer.Config); errors.Is(err, fs.ErrNotExist) {
		return true
	}
	return c.config.AllowEmpty && c.answered()
}

// hasLoaded reports whether a text is the one that PgBouncer has taken.
func (c *reconciler) hasLoaded(text []byte) bool {
	return len(c.loaded) > 0 && bytes.Equal(c.loaded, text)
}

// reload makes PgBouncer take an installed text.
func (c *reconciler) reload(ctx context.Context, text []byte, file pgbouncer.File, views []*render.Shard) error {
	before, begun := c.standing, time.Now()
	c.connCloser.Spare(file)
	standing, err := c.applier.Take(ctx, file)
	taken := time.Now()
	if standing != nil {
		c.standing = standing
	}
	c.connCloser.Depose(moved(views, before, c.standing)) // of a file that is refused a part may stand
	if c.lastBack != nil && bytes.Equal(c.lastBack.text, text) && errors.Is(err, pooler.ErrStands) {
		err = nil // what RELOAD has failed for is why this file stands in for another
	}
	if err != nil {
		c.loaded = nil
		return err
	}
	c.loaded, c.readBack, c.good = text, taken, text
	if c.lastBack == nil || !bytes.Equal(c.lastBack.text, text) {
		c.unfit, c.refusal, c.lastBack = "", nil, nil
	}
	c.log.Info().Dur("took", time.Since(begun)).Int("shards", len(views)).Msg("RELOAD done and read back")
	return nil
}

// noteUnkept notes why what is in place may not be there after a restart; nil: it will be. Clients find
// their primaries all the same.
func (c *reconciler) noteUnkept(err error) {
	c.mu.Lock()
	before := c.unkept
	c.unkept = err
	c.mu.Unlock()
	switch {
	case err != nil && (before == nil || before.Error() != err.Error()):
		c.log.Error().Err(err).Msg("the configuration is in place, but not kept for a restart; trying again")
	case err == nil && before != nil:
		c.log.Info().Msg("the configuration is kept for a restart again")
	}
}

// scheduleRetry decides when a failure is tried again.
func (c *reconciler) scheduleRetry(err error) {
	c.mu.Lock()
	before := c.err
	c.err = err
	c.mu.Unlock()
	if err == nil {
		c.retry, c.retryAt = 0, time.Time{}
		if before != nil {
			c.log.Info().Msg("the configuration is applied again")
		}
		return
	}
	if !errors.Is(err, render.ErrWaiting) && time.Now().After(c.retryAt) {
		c.retry = min(max(2*c.retry, retryLeast), retryMost)
		c.retryAt = time.Now().Add(c.retry)
	}
	if before == nil || before.Error() != err.Error() {
		c.log.Error().Err(err).Msg("the configuration could not be applied; PgBouncer keeps what it has")
	}
}

// next is the time until the next pass if nothing happens.
func (c *reconciler) next(link pooler.LinkState, views []*shard) time.Duration {
	now := time.Now()
	at := now.Add(time.Hour)
	sooner := func(t time.Time) {
		if !t.IsZero() && t.Before(at) {
			at = t
		}
	}
	if link.Up {
		sooner(c.reconcile)
		if c.unheld {
			sooner(now.Add(retryLeast))
		}
	}
	if !link.Up { // another PgBouncer may be installed meanwhile
		sooner(now.Add(lookAgain))
	}
	if every := c.manager.KeepAliveEvery(); every > 0 {
		sooner(now.Add(every))
	}
	sooner(c.soon)
	sooner(c.retryAt)
	for _, v := range views { // of a shard without clients nobody waits for the end
		if v.handover != nil {
			sooner(c.handovers.Until(v.ID))
		}
	}
	sooner(c.handovers.Unknown())
	if c.counting > 0 {
		sooner(now.Add(c.counting))
	}
	for _, h := range c.holds {
		if !h.expired {
			sooner(h.deadline)
		}
	}
	return max(at.Sub(now), time.Millisecond)
}

// moved lists what databases led to before and do not now, where that was the primary of a shard
// of views and is one no more.
func moved(views []*render.Shard, before, now map[string]pgbouncer.Database) (list []pooler.Deposed) {
	left := map[pgbouncer.Address]bool{}
	for _, v := range views {
		for _, d := range v.Databases {
			old, had := before[d.Name]
			if had && old.Host != "" && (old.Host != v.Route.Leader.Host || old.Port != v.Route.Leader.Port) {
				left[addressOf(old)] = true
			}
		}
	}
	if len(left) == 0 {
		return nil
	}
	for name, d := range before { // readers', a template's own, those made by *
		from, to := addressOf(d), addressOf(now[name])
		if left[from] && from != to {
			list = append(list, pooler.Deposed{Database: name, From: from, To: to})
		}
	}
	return list
}

// addressOf is where a database leads.
func addressOf(d pgbouncer.Database) pgbouncer.Address {
	return pgbouncer.Address{Host: d.Host, Port: d.Port}
}
