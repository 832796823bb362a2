package bouncer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/cluster/httpserver"
	"github.com/lictor-ha/lictor/agent/environ"
	"github.com/lictor-ha/lictor/agent/osuser"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/consul"
	"github.com/lictor-ha/lictor/bouncer/install"
	"github.com/lictor-ha/lictor/bouncer/pooler"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
	"github.com/lictor-ha/lictor/bouncer/render"
	"github.com/lictor-ha/lictor/bouncer/routes"
)

// followPause is the pause after a configuration that could not be followed: what was in
// the way of one may be in that of the other, too.
const followPause = 100 * time.Millisecond

// Page is the fleet page (`web: true`): the listener has it answer what it does not answer itself.
type Page interface {
	http.Handler
	// Run reads what the page shows until ctx ends.
	Run(ctx context.Context)
}

// NewPage makes the page of a configuration, for those whom access lets read. A bouncer knows of
// shards what it needs for PgBouncer, so whoever runs it brings the page.
type NewPage func(c config.Config, access httpserver.Access) (Page, error)

// Run keeps PgBouncer right until ctx is done, and leaves it running as it is,
// unless it started it itself. It returns an error only for what cannot get better
// by itself: an address that cannot be listened on, a client certificate that
// cannot be read. A configuration that comes through changes takes the place of c
// at once; PgBouncer and its clients notice nothing. One that cannot be followed for
// such a reason is given up for the one before. nil: none will come. manager
// is told of each configuration once that it stands; page makes the fleet page of those that
// want it.
func Run(ctx context.Context, c config.Config, changes <-chan config.Config, manager Manager, page NewPage, log zerolog.Logger) error {
	// consul-template says what it does, values included, to the standard
	// logger, which nothing else of Lictor uses.
	stdlog.SetOutput(io.Discard)
	defer stdlog.SetOutput(os.Stderr)
	c = pooler.Probed(ctx, c)
	if len(c.PgBouncer.Command) > 0 {
		supervised, end := context.WithCancel(ctx)
		var running sync.WaitGroup
		defer running.Wait()
		defer end()
		s := pooler.NewSupervisor(c, log)
		running.Go(func() { s.Run(supervised) })
	}
	good := c // ran until it was changed
	var (
		address keptListener
		before  *bouncer // with the configuration before
	)
	defer address.close()
	for restarted := false; ; restarted = true {
		next, err := runUntilChanged(ctx, c, &address, &before, changes, manager, page, restarted, log)
		switch {
		case err != nil && (!restarted || ctx.Err() != nil):
			return err
		case err != nil:
			// PgBouncer, and whoever is connected to it, goes on.
			log.Error().Err(err).Msg("the configuration cannot be followed; the one before goes on")
			c = good
			select {
			case <-time.After(followPause):
			case <-ctx.Done():
			}
			continue
		case next == nil:
			return nil
		}
		good = c
		log.Info().Msg("the configuration has changed")
		if !slices.Equal(next.PgBouncer.Command, c.PgBouncer.Command) {
			log.Warn().Msg("another pgbouncer.command takes effect at the bouncer's next start")
			next.PgBouncer.Command = c.PgBouncer.Command
		}
		c = pooler.Probed(ctx, *next)
	}
}

// runUntilChanged runs with one configuration and returns the one to go on with,
// nil when ctx is done.
func runUntilChanged(
	parent context.Context, c config.Config, address *keptListener, before **bouncer, changes <-chan config.Config, manager Manager, page NewPage, restarted bool, log zerolog.Logger,
) (*config.Config, error) {
	clients, err := consul.NewClients(c)
	if err != nil {
		return nil, err
	}
	pool, err := consul.NewPool(clients)
	if err != nil {
		return nil, err
	}
	defer pool.Close()
	listener, err := address.listen(parent, c.Listen)
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	url, err := c.URL(listener.Addr().String())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(parent)
	defer cancel()
	var (
		next    atomic.Pointer[config.Config]
		waiting sync.WaitGroup
	)
	waiting.Go(func() {
		select {
		case changed := <-changes:
			next.Store(&changed)
			cancel()
		case <-ctx.Done():
		}
	})
	log.Info().Str("name", c.Name).Str("listen", listener.Addr().String()).Str("url", url).
		Strs("config", configFiles(c)).Msg("bouncer starts")
	if left := environ.Withheld(c.PassEnvironment); len(left) > 0 && c.RunsPrograms() {
		log.Info().Strs("variables", left).Msg("environment variables are not handed on to PgBouncer and commands; name in pass_environment those that they need")
	}
	manager.MayHang(c.MaxHold() + pooler.DeadmanGrace)
	b := newBouncer(c, log, pool, url)
	if *before != nil {
		b.goOn(*before)
	}
	*before = b
	b.presence.stays = func() bool {
		changed := next.Load()
		return changed != nil && parent.Err() == nil && samePresence(c, *changed)
	}
	if c.Web {
		if b.api.page, err = page(c, pageAccess(c)); err != nil {
			return nil, fmt.Errorf("the fleet page (web): %w", err)
		}
	}
	for i, m := range managers(manager, len(b.processes.all)) {
		co := b.processes.all[i].reconciler
		co.manager, co.restarted = m, restarted
		co.ending = func() bool { return parent.Err() != nil }
		co.dropped = func() bool { changed := next.Load(); return changed != nil && !looksAfter(*changed, co.config) }
	}
	err = b.run(ctx, listener)
	cancel()
	waiting.Wait()
	return next.Load(), err
}

// goOn takes over what was known with the configuration before, as far as this one still has it.
func (b *bouncer) goOn(before *bouncer) {
	b.presence.session = cmp.Or(before.presence.session, b.presence.session)
	if b.config.RoutesPrefix == before.config.RoutesPrefix {
		b.handovers.GoOn(before.handovers)
	}
	for _, p := range b.processes.all {
		for _, old := range before.processes.all {
			if looksAfter(p.config, old.config) {
				p.reconciler.goOn(old.reconciler)
			}
		}
	}
}

// looksAfter reports whether a configuration has the process of PgBouncer that is the only one
// in another.
func looksAfter(c, process config.Config) bool {
	wanted, err := process.Admin()
	return err == nil && slices.ContainsFunc(c.Each(), func(one config.Config) bool {
		options, err := one.Admin()
		return err == nil && options.Address == wanted.Address
	})
}

// bouncer is all parts of a running bouncer.
type bouncer struct {
	config    config.Config
	log       zerolog.Logger
	table     *routes.Table
	handovers *routes.Handovers
	watcher   *routes.Watcher
	patroni   *routes.PatroniFollower
	processes *processes
	operators *operatorPauses
	presence  *presence
	api       *listenerAPI
	state     *stateWriter
	files     []*fileWriter
}

func newBouncer(c config.Config, log zerolog.Logger, pool *consul.Pool, url string) *bouncer {
	b := &bouncer{config: c, log: log, table: routes.NewTable(c)}
	b.state = &stateWriter{log: log, config: c, table: b.table, wake: make(chan struct{}, 1), urgent: make(chan struct{}, 1)}
	path := findState(c)
	saved, err := loadState(path, c.RoutesPrefix)
	if path != c.StateFile {
		log.Info().Str("from", path).Str("state_file", c.StateFile).Msg("the state of before is taken over")
	}
	if err != nil {
		log.Error().Err(err).Msg("starting without the last good routes")
	}
	b.table.Restore(saved.Routes)
	b.state.session, b.state.pauses, b.state.strangers, b.state.due, b.state.kept = saved.Session, saved.Pauses, saved.Strangers, saved.Due, !saved.isEmpty()
	b.state.tried, b.state.holds = saved.Strangers, map[string]map[config.ShardID]savedHold{}
	b.state.proven.Store(saved.isProven())
	b.handovers = routes.NewHandovers(c.Keys(), b.table.Serves)

	passes := newPasses(c.Name)
	b.processes = &processes{handovers: b.handovers, answers: map[config.ShardID][]cluster.HandoverAnswer{}}
	for i, one := range c.Each() {
		b.processes.all = append(b.processes.all, b.newProcess(i, one, logFor(log, c, one), pool, passes))
	}
	b.state.settled = b.processes.notify
	b.operators = &operatorPauses{
		pauses: saved.Pauses, keep: b.state.keepPauses, remember: b.state.rememberPauses,
		releases: make([][]config.ShardID, len(b.processes.all)), changed: b.processes.notify,
	}
	for _, p := range b.processes.all {
		p.reconciler.operators = b.operators
		p.reconciler.stood = b.state.rememberConfig
		p.reconciler.proven, p.reconciler.prove = b.state.proven.Load, b.state.rememberProof
		file := p.config.PgBouncer.Config
		p.reconciler.strangers = saved.Strangers[file]
		if held := saved.Holds[file]; len(held) > 0 {
			b.state.holds[file], p.reconciler.noted, p.reconciler.heldOf = held, held, maps.Clone(held)
		}
		p.reconciler.keepHolds = func(holds map[config.ShardID]savedHold) { b.state.keepHolds(file, holds) }
		p.reconciler.keepStrangers = func(names []string) { b.state.keepStrangers(file, names) }
		p.reconciler.strangerKept = func(name string) bool { return b.state.strangerKept(file, name) }
	}
	for id, p := range saved.Pauses {
		log.Warn().Str("shard", string(id)).Str("by", p.By).Time("since", p.Since).Msg("still paused by an operator, as before: `lictor bouncer resume` ends it")
	}
	b.files = newFileWriters(c, log, b.table, b.processes, pool, b.state)
	changed := func() {
		b.processes.notify()
		b.state.notify()
		for _, f := range b.files {
			f.notify()
		}
	}
	b.watcher = routes.NewWatcher(log, pool, b.table, b.handovers, changed)
	b.watcher.Holding = b.processes.holding
	for _, f := range b.files {
		f.answered = b.watcher.HasAnswered
	}
	b.patroni = routes.NewPatroniFollower(c, log, pool, b.table, changed, b.watcher.HasAnswered)
	b.presence = &presence{
		log: log, pool: pool, key: c.Keys().Bouncers() + c.Name, name: c.Name, node: c.Consul.Node, session: saved.Session,
		change: make(chan struct{}, 1), remember: b.state.rememberSession,
		value: func() cluster.Bouncer {
			value := presenceOf(c, url, b.processes.version())
			value.Draining = b.api.draining.Load()
			return value
		},
		appliedKey: c.Keys().BouncersApplied() + c.Name, applied: func() map[string]cluster.BouncerShard { return appliedOf(b.processes.shards()) },
	}
	pool.Moved = b.presence.notify
	for _, p := range b.processes.all {
		p.reconciler.answered, p.reconciler.applied = b.watcher.HasAnswered, b.presence.notify
		prober := p.reconciler.healthProber
		prober.Refresh, prober.Connected = b.watcher.Refresh, func() bool { return b.watcher.Status().Connected }
	}
	b.state.draining = saved.Draining
	b.api = &listenerAPI{keep: b.drained, config: c, log: log, processes: b.processes, operators: b.operators, watcher: b.watcher, table: b.table, handovers: b.handovers, files: b.files, passes: passes, access: accessOf(c)}
	b.api.draining.Store(saved.Draining)
	if saved.Draining {
		log.Warn().Msg("still draining, as before: `lictor bouncer undrain` ends it")
	}
	return b
}

// drained keeps for a restart, and tells operators, whether the load balancer is to send no more clients.
func (b *bouncer) drained(on bool) {
	b.state.rememberDraining(on)
	b.presence.notify()
}

// newProcess makes the parts that one PgBouncer has to itself.
func (b *bouncer) newProcess(i int, c config.Config, log zerolog.Logger, pool *consul.Pool, passes prometheus.Observer) *process {
	console := pooler.NewConsole(c)
	co := &reconciler{
		config: c, log: log, table: b.table, renderer: render.NewRenderer(c, pool, ""), viewer: render.NewViewer(c), checker: render.NewChecker(c), console: console,
		applier: pooler.NewApplier(c, console), file: install.NewConfig(c.PgBouncer.Config), deadman: pooler.NewDeadman(c, log),
		handovers: b.handovers, number: i, passes: passes, respond: b.processes.responder(i), wake: make(chan struct{}, 1), holds: map[config.ShardID]*hold{}, ours: map[string]time.Time{},
	}
	co.syncer = &configSyncer{log: log, file: co.file, wake: make(chan struct{}, 1), changed: co.notify}
	var err error
	if co.good, err = co.file.Good(); err != nil {
		log.Error().Err(err).Msg("starting without a configuration to go back to")
	}
	co.link, co.pauser, co.connCloser = pooler.NewLink(c, log, co.notify), pooler.NewPauser(c, co.notify), pooler.NewConnCloser(c, log)
	co.healthProber = pooler.NewHealthProber(c, log, co.link)
	co.healthProber.Primaries, co.healthProber.Changes = func() []pooler.Primary { return primariesOf(co.viewed()) }, func() uint64 { return co.viewed().number }
	co.healthProber.Notify = co.notify
	co.connCloser.Primaries = co.healthProber.Primaries
	front := pooler.NewFront(c, co.link, co.served, co.listening)
	return &process{config: c, link: co.link, reconciler: co, front: front}
}

// configFiles are the paths of all files that PgBouncer reads.
func configFiles(c config.Config) (paths []string) {
	for _, one := range c.Each() {
		paths = append(paths, one.PgBouncer.Config)
	}
	return paths
}

// routesOf is what the table knows of every shard, as it is rendered.
func routesOf(b *routes.Table) (list map[config.ShardID]render.ShardRoute, changes uint64) {
	return updateRoutes(nil, b)
}

// updateRoutes is routesOf in a list that was made of the table before: of a thousand shards few
// have changed.
func updateRoutes(list map[config.ShardID]render.ShardRoute, b *routes.Table) (_ map[config.ShardID]render.ShardRoute, changes uint64) {
	known, changes := b.Each(func(id config.ShardID, k *routes.Known) {
		if before, have := list[id]; have && before.Revision == k.Revision {
			return
		}
		if list == nil {
			list = map[config.ShardID]render.ShardRoute{}
		}
		list[id] = render.ShardRoute{Route: k.Route, Index: k.ModifyIndex, CreateIndex: k.CreateIndex, First: k.First, Confirmed: k.Confirmed, Revision: k.Revision}
	})
	if len(list) > known {
		return routesOf(b)
	}
	return list, changes
}

// primariesOf are the primaries of all shards that are offered.
func primariesOf(known *viewed) []pooler.Primary {
	list := make([]pooler.Primary, len(known.views))
	for i, v := range known.views {
		list[i] = pooler.Primary{
			ID: v.ID, Leader: v.Route.Leader, DBName: v.Databases[0].DBName, Databases: v.Written(), Offered: v.Offered(), Writers: v.Databases, Fallback: v.Fallback,
		}
	}
	return list
}

// run runs all parts and waits for all of them.
func (b *bouncer) run(parent context.Context, listener net.Listener) error {
	ctx, cancel := context.WithCancel(parent)
	// A part may hang, on a disk for one, with clients held: the timers go on until all have ended.
	endless, end := context.WithCancel(context.WithoutCancel(parent))
	var parts, timers sync.WaitGroup
	for _, p := range b.processes.all {
		timers.Go(func() { p.reconciler.deadman.Run(endless) })
	}
	running := []func(context.Context){
		b.watcher.Watch, b.watcher.WatchHandovers, b.watcher.Serve, b.watcher.Pace, b.patroni.Run, b.presence.run, b.state.run,
	}
	for _, p := range b.processes.all {
		running = append(running, p.reconciler.run, p.reconciler.connCloser.Run, p.reconciler.healthProber.Run, p.link.Run)
	}
	for _, part := range running {
		parts.Go(func() { part(ctx) })
	}
	for _, f := range b.files {
		parts.Go(func() { f.run(ctx) })
	}
	if b.api.page != nil {
		parts.Go(func() { b.api.page.Run(ctx) })
	}
	err := b.api.serve(ctx, listener)
	cancel()
	parts.Wait()
	end()
	timers.Wait()
	for _, p := range b.processes.all {
		p.reconciler.renderer.Close()
	}
	b.log.Info().Msg("bouncer ends; PgBouncer goes on with what it has")
	return err
}

// keepAfter is how much later than a change the state file is written, keepRetry when that is
// tried again after it has failed.
const (
	keepAfter = 500 * time.Millisecond
	keepRetry = 2 * time.Second
)

// stateWriter writes the state file, apart from the way of a change to PgBouncer.
type stateWriter struct {
	log    zerolog.Logger
	config config.Config
	table  *routes.Table
	wake   chan struct{}
	// urgent asks for a write at once.
	urgent chan struct{}

	// writing: one write after another.
	writing sync.Mutex
	file    *install.Config
	// kept: the file has something, or may have, which must not stay in it.
	kept bool

	// stands: PgBouncer has what this configuration says, configKept: its file was kept.
	stands     atomic.Bool
	configKept bool
	// proven: clients were rightly sent here, in this run or an earlier one.
	proven atomic.Bool

	mu       sync.Mutex
	session  string
	draining bool
	pauses   map[config.ShardID]OperatorPause
	// strangers, holds and due are replaced, never changed.
	strangers map[string][]string
	holds     map[string]map[config.ShardID]savedHold
	due       []string
	// tried are the strangers as they are written, or it was tried; settled is called when they are others.
	tried   map[string][]string
	settled func()
}

func (k *stateWriter) notify() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

func (k *stateWriter) rememberDraining(on bool) {
	k.mu.Lock()
	k.draining = on
	k.mu.Unlock()
	k.hurry()
}

// hurry has the state written at once.
func (k *stateWriter) hurry() {
	select {
	case k.urgent <- struct{}{}:
	default:
	}
}

func (k *stateWriter) rememberSession(session string) {
	k.mu.Lock()
	k.session = session
	k.mu.Unlock()
	k.notify()
}

// rememberProof has it written down that clients were rightly sent here.
func (k *stateWriter) rememberProof() {
	k.proven.Store(true)
	k.notify()
}

// rememberConfig has the bouncer's own file written down, for a start with one that is wrong.
func (k *stateWriter) rememberConfig() {
	if !k.stands.Swap(true) {
		k.notify()
	}
}

// rememberPauses has the pauses of operators written as soon as that can be.
func (k *stateWriter) rememberPauses(pauses map[config.ShardID]OperatorPause) {
	k.mu.Lock()
	k.pauses = pauses
	k.mu.Unlock()
	k.notify()
}

// keepStrangers has it written down which databases of a PgBouncer somebody else has paused: soon, and at
// once that one is none any more, as the bouncer may have to pause it. file is that PgBouncer's.
func (k *stateWriter) keepStrangers(file string, names []string) {
	k.mu.Lock()
	gone := slices.ContainsFunc(k.strangers[file], func(name string) bool { return !slices.Contains(names, name) })
	next := map[string][]string{}
	maps.Copy(next, k.strangers)
	if next[file] = names; len(names) == 0 {
		delete(next, file)
	}
	k.strangers = next
	k.mu.Unlock()
	if gone {
		k.hurry()
	} else {
		k.notify()
	}
}

// keepHolds has the holds of a PgBouncer written down. file is that PgBouncer's.
func (k *stateWriter) keepHolds(file string, holds map[config.ShardID]savedHold) {
	k.mu.Lock()
	next := map[string]map[config.ShardID]savedHold{}
	maps.Copy(next, k.holds)
	if next[file] = holds; len(holds) == 0 {
		delete(next, file)
	}
	k.holds = next
	k.mu.Unlock()
	k.notify()
}

// strangerKept reports whether a database is written down as paused by somebody else, and it was not yet
// tried to write anything else.
func (k *stateWriter) strangerKept(file, name string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Contains(k.tried[file], name)
}

// keepDue writes down whether the command of a further file is to be run, at once where it is.
func (k *stateWriter) keepDue(path string, due bool) {
	k.mu.Lock()
	had := slices.Contains(k.due, path)
	next := slices.DeleteFunc(slices.Clone(k.due), func(other string) bool { return other == path })
	if due {
		next = append(next, path)
	}
	k.due = next
	k.mu.Unlock()
	if had != due && (!due || k.write() != nil) {
		k.notify() // which says what is wrong, and tries again
	}
}

// run writes until ctx is done, and once more then. What could not be written is tried again.
func (k *stateWriter) run(ctx context.Context) {
	failed := false
	var retry <-chan time.Time
	for last := false; !last; {
		select {
		case <-k.wake:
			select { // a burst is written once, and PgBouncer is served first
			case <-time.After(keepAfter):
			case <-k.urgent:
			case <-ctx.Done():
				last = true
			}
		case <-k.urgent:
		case <-retry:
		case <-ctx.Done():
			last = true
		}
		k.keepConfig()
		err := k.write()
		switch {
		case err != nil && !failed:
			k.log.Error().Err(err).Msg("routes, pauses and drain are not kept for a restart; trying again")
		case err == nil && failed:
			k.log.Info().Msg("routes, pauses and drain are kept for a restart again")
		}
		failed, retry = err != nil, nil
		if failed {
			retry = time.After(keepRetry)
		}
	}
}

// write writes the state as it is now, unless there is nothing to keep.
func (k *stateWriter) write() error {
	k.writing.Lock()
	defer k.writing.Unlock()
	k.mu.Lock()
	s := savedState{Version: stateVersion, RoutesPrefix: k.config.RoutesPrefix, Name: k.config.Name, Listen: k.config.Listen, Session: k.session, Draining: k.draining, Pauses: k.pauses, Strangers: k.strangers, Holds: k.holds, Due: k.due}
	proven := k.proven.Load()
	s.Proven = &proven
	s.Routes, _ = k.table.Known()
	k.mu.Unlock()
	if !k.kept && s.isEmpty() {
		return nil
	}
	k.kept = true
	if k.file == nil {
		k.file = install.NewConfig(k.config.StateFile)
	}
	err := s.save(k.file)
	k.mu.Lock()
	changed := !maps.EqualFunc(k.tried, s.Strangers, slices.Equal[[]string])
	k.tried = s.Strangers
	k.mu.Unlock()
	if changed {
		k.settled()
	}
	return err
}

// keepConfig writes the bouncer's own file down once it is known to be good. It is tried once: where
// that may not be written it may not the next time.
func (k *stateWriter) keepConfig() {
	path, text := k.config.LastGood()
	if k.configKept || path == "" || !k.stands.Load() {
		return
	}
	k.configKept = true
	if err := osuser.Keeper(path).Replace(path, text, 0o600); err != nil {
		k.log.Warn().Err(err).Msg("the bouncer's own file is not kept for a start with one that is wrong; systemd's StateDirectory is a place for that")
	}
}

// keepPauses writes the pauses of operators at once; after an error those before stand.
func (k *stateWriter) keepPauses(pauses map[config.ShardID]OperatorPause) error {
	k.mu.Lock()
	before := k.pauses
	k.pauses = pauses
	k.mu.Unlock()
	err := k.write()
	if err != nil {
		k.rememberPauses(before) // another write may have taken the new ones along meanwhile
	}
	return err
}

// Render writes to w what would be installed now: from Consul's routes or, when
// Consul does not answer, from the last good ones. What is wrong with it is the
// error; the text is written nevertheless.
func Render(ctx context.Context, c config.Config, w io.Writer) error {
	return eachFile(pooler.Probed(ctx, c), func(c config.Config, title string) error {
		version := pooler.AskVersion(ctx, c)
		text, views, err := renderOnce(ctx, c, "", version)
		if text == nil {
			return err
		}
		if _, e := w.Write(append([]byte(title), text...)); e != nil {
			return fmt.Errorf("writing what was rendered: %w", e)
		}
		file, unfit := render.Check(text, views, c, version)
		return errors.Join(err, unfit, render.CheckFallback(file, views...))
	})
}

// RenderTemplate does the same with any other template, such as the shipped ones
// for userlist.txt and haproxy.cfg (package templates), without the checks that
// belong to pgbouncer.ini.
func RenderTemplate(ctx context.Context, c config.Config, template string, w io.Writer) error {
	c = pooler.Probed(ctx, c).Each()[0]
	text, _, err := renderOnce(ctx, c, template, pooler.AskVersion(ctx, c))
	if text == nil {
		return err
	}
	if _, e := w.Write(text); e != nil {
		return fmt.Errorf("writing what was rendered: %w", e)
	}
	return err
}

// renderOnce renders the configured template, or another one. An error beside a
// text says what was left out.
func renderOnce(ctx context.Context, c config.Config, template string, version pgbouncer.Version) ([]byte, []*render.Shard, error) {
	stdlog.SetOutput(io.Discard)
	defer stdlog.SetOutput(os.Stderr)
	clients, err := consul.NewClients(c)
	if err != nil {
		return nil, nil, err
	}
	pool, err := consul.NewPool(clients)
	if err != nil {
		return nil, nil, err
	}
	defer pool.Close()
	b := routes.NewTable(c)
	saved, stateErr := loadState(findState(c), c.RoutesPrefix)
	b.Restore(saved.Routes)
	a, err := routes.NewWatcher(zerolog.Nop(), pool, b, routes.NewHandovers(c.Keys(), b.Serves), func() {}).ReadAll(ctx)
	if err == nil {
		b.Merge(a)
	}
	shards, _ := routesOf(b)
	if err != nil && len(shards) == 0 {
		return nil, nil, errors.Join(err, stateErr)
	}
	r := render.NewRenderer(c, pool, "")
	defer r.Close()
	source := []byte(template)
	if template == "" {
		if source, err = r.Template(); err != nil {
			return nil, nil, err
		}
	}
	views, left := render.View(c, shards, version)
	text, err := r.RenderWhenReady(ctx, source, views, version)
	if err != nil {
		return nil, nil, err
	}
	var errs []error
	for _, p := range left {
		errs = append(errs, p.Err)
	}
	for _, problem := range b.Trouble() {
		errs = append(errs, problem)
	}
	return text, views, errors.Join(errs...)
}
