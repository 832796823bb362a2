// Package agent wires one member together. Its loop drives the state machine (package
// member), which lets package ha decide; here are the goroutines that listen and act for it:
//
//	agent.go     what an agent is made of; start and end
//	loop.go      the loop: one goroutine that owns all state, woken by events
//	observe.go   looks at the data directory, and what the API shows
//	ports.go     what the state machine (package member) reaches the world through
//	handover.go  what bouncers are told: of a planned change of primary, of routes
//	failsafe.go  what other members ask of this one
//	configure.go the dynamic configuration and the agent's own file, taken up and again
//	catalogue.go the member's service in Consul's catalogue
//	events.go    what has happened, as the shard remembers it
//	led.go       that this agent may have led with the PostgreSQL that runs
//	disk.go      whether the data directory can be written
//	only.go      that one agent looks after a data directory, and no other
//	guardian.go, watchdog.go
//	             the guard and the watchdog device
//	secret.go    what members prove themselves to each other with
//	watch.go     the goroutines that listen: Consul, PostgreSQL, peers, session
//	requests.go, restart.go
//	             what operators ask for through the REST API
//	schedule.go  a restart that they ask for at some time
//	callbacks.go what the operators' scripts are told (package callbacks)
//	service.go   what systemd is told
//	adapt.go     one package's words turned into another's
//
// Nothing in the loop waits: every effect runs in a goroutine of its own with a
// deadline that derives from the lease, and posts its result back.
package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/callbacks"
	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/consul"
	"github.com/lictor-ha/lictor/agent/fence"
	"github.com/lictor-ha/lictor/agent/logging"
	"github.com/lictor-ha/lictor/agent/member"
	"github.com/lictor-ha/lictor/agent/metrics"
	"github.com/lictor-ha/lictor/agent/osuser"
	"github.com/lictor-ha/lictor/agent/postgres"
	"github.com/lictor-ha/lictor/agent/proof"
	"github.com/lictor-ha/lictor/agent/systemd"
)

// Agent runs one member of a shard.
type Agent struct {
	cfg     config.Config
	source  config.Source
	version string
	log     zerolog.Logger

	keys     cluster.Keys
	store    *consul.Store
	pg       *postgres.Instance
	guard    *guardian
	watchdog *fence.Watchdog
	probe    *postgres.DiskProbe
	// catalogue is nil where no service is registered.
	catalogue *catalogue
	// runnable tells whether the binary installed by now can be run.
	runnable func(context.Context) error
	logging  *logging.Log
	systemd  *systemd.Notifier
	meter    *metrics.Meter
	// callbacks runs the operator's scripts, each within scriptLimit.
	callbacks   *callbacks.Runner
	scriptLimit time.Duration
	peers       *api.Client
	poolers     *api.BouncerClient
	secrets     *proof.Keeper
	clock       fence.Clock

	// ctx ends when the agent must end at once; work counts its goroutines.
	ctx    context.Context
	end    context.CancelFunc
	work   sync.WaitGroup
	events chan func()

	// What other goroutines may read of the loop's state.
	shown   atomic.Pointer[api.State]
	dynamic atomic.Pointer[cluster.Dynamic]
	cloned  atomic.Pointer[cloned]
	changed *broadcast

	looking      chan struct{} // holds one while the data directory is looked at
	reloading    chan struct{} // holds one while the configuration file is read anew
	kickPostgres chan struct{}
	kickSession  chan struct{}

	m loopState
}

// Options are what an agent needs besides its configuration.
type Options struct {
	Source  config.Source
	Version string
	Log     zerolog.Logger
	// GuardCommand is the program and arguments that run a guard; the agent
	// adds the guard's own flags.
	GuardCommand []string
	// ProbeCommand is the program and arguments that run a disk probe.
	ProbeCommand []string
	// Runnable tells whether the binary that is installed by now can be run.
	Runnable func(context.Context) error
	// Logging is where Log comes from: a reload changes its level. It may be nil.
	Logging *logging.Log
	// Systemd hears how the agent fares; nil: nobody does.
	Systemd *systemd.Notifier
}

// Signals are an agent's wishes from outside. Stop is closed, the others send.
type Signals struct {
	Stop    <-chan struct{} // stop PostgreSQL in an orderly way, and end
	Reload  <-chan struct{} // read the configuration file again
	Upgrade <-chan struct{} // leave everything as it is, and end with ErrUpgrade
}

// ErrUpgrade: the agent has ended so that another binary goes on in its place. Its
// PostgreSQL runs, its lease is with the guard.
var ErrUpgrade = errors.New("another binary takes over")

// New makes an agent. Nothing is started and nobody is contacted yet.
func New(cfg config.Config, o Options) (*Agent, error) {
	clients, err := cfg.Consul.ClientConfigs()
	if err != nil {
		return nil, err
	}
	meter := metrics.New()
	for _, c := range clients {
		c.HttpClient.Transport = meter.Timed(c.HttpClient.Transport)
	}
	store, err := consul.New(clients, cfg.Keys())
	if err != nil {
		return nil, err
	}
	peers, err := api.NewClient(cfg.Ctl, cfg.RestAPI)
	if err != nil {
		return nil, err
	}
	poolers, err := api.NewBouncerClient(cfg.Ctl, cfg.RestAPI)
	if err != nil {
		return nil, err
	}
	dynamic, _, err := cfg.Lictor.Rules().Parse(cfg.Bootstrap.DCS)
	if err != nil {
		return nil, fmt.Errorf("bootstrap.dcs: %w", err)
	}
	cfg.Bootstrap.DCS = inForce(cfg, dynamic, cfg.Bootstrap.DCS)
	a := &Agent{
		cfg: cfg, source: o.Source, version: o.Version, log: o.Log,
		keys: cfg.Keys(), store: store, peers: peers, secrets: &proof.Keeper{}, poolers: poolers, clock: fence.Now, runnable: o.Runnable,
		logging: o.Logging, systemd: o.Systemd, meter: meter,
		events:       make(chan func(), 64),
		changed:      newBroadcast(),
		looking:      make(chan struct{}, 1),
		reloading:    make(chan struct{}, 1),
		kickPostgres: make(chan struct{}, 1),
		kickSession:  make(chan struct{}, 1),
	}
	peers.ProveWith(a.secrets)
	var files osuser.User
	if os.Geteuid() == 0 {
		credential, err := postgres.Credential(cfg.Lictor.OSUser, filepath.Clean(cfg.Postgres.DataDir))
		if err != nil {
			return nil, err
		}
		files = osuser.As(credential)
	}
	a.guard = newGuardian(cfg, o, files)
	a.watchdog = newWatchdog(cfg, files)
	a.pg, err = postgres.New(postgresSettings(cfg, o.Log, a.guard))
	if err != nil {
		return nil, err
	}
	a.guard.client.Postmaster = a.pg.PID
	a.catalogue = newCatalogue(store, cfg.Consul, cfg.Scope, cfg.Name)
	a.probe = a.pg.DiskProbe(o.ProbeCommand)
	a.scriptLimit = cfg.Lictor.ScriptLimit()
	a.callbacks = callbacks.New(o.Log)
	a.callbacks.Keep = a.pg.KeepTold
	a.callbacks.Run = func(ctx context.Context, action, role, command string) error {
		began := time.Now()
		err := a.pg.Callback(ctx, a.scriptLimit, command, action, role)
		outcome := "done"
		if err != nil {
			outcome = "failed"
		}
		meter.Callbacks.WithLabelValues(action, outcome).Observe(time.Since(began).Seconds())
		return err
	}
	a.callbacks.Ended = func() { a.post(func() {}) } // an upgrade may wait for them
	host, port := splitAddress(cfg.Postgres.ConnectAddress)
	a.m.Member = member.New(member.Settings{
		Name: cfg.Name, SessionName: a.sessionName(), Keys: a.keys, Version: publicVersion(o.Version), PrimaryWord: primaryWord(cfg),
		ConnURL: connURL(cfg.Postgres.ConnectAddress), ProxyURL: connURL(cfg.Postgres.ProxyAddress), APIURL: apiURL(cfg), Host: host, Port: port,
		Tags: cfg.Tags, Margins: margins(cfg), ScriptLimit: a.scriptLimit,
		MayRewind: a.pg.UsePgRewind, MayRemove: a.mayRemoveData, Decided: a.note, Log: o.Log,
	}, a.ports(), shell{a}, dynamic)
	a.m.reasons = map[string]cluster.Instant{}
	a.dynamic.Store(&dynamic)
	return a, nil
}

// Run runs the agent until it is told to stop and PostgreSQL has been stopped in
// an orderly way, or to make room for another binary (ErrUpgrade), or until ctx
// ends, which leaves everything as it is, too.
func (a *Agent) Run(ctx context.Context, signals Signals) error {
	a.ctx, a.end = context.WithCancel(ctx)
	defer a.guard.client.Close()
	defer a.awaitWork()
	defer a.end()
	defer a.finishCallbacks()
	release, err := onlyAgent(a.cfg, a.guard.led.files)
	if err != nil {
		return err
	}
	defer release()

	server, err := api.NewServer(a.cfg.RestAPI, a, a.log)
	if err != nil {
		return err
	}
	server.ProveWith(a.secrets)
	server.Compat = a.cfg.Lictor.Speaks()
	server.Collectors = a.meter.Collectors()
	// A port that is taken must end this agent before it has touched anything.
	if err := server.Listen(a.ctx); err != nil {
		return err
	}
	a.show("starting")
	session, err := a.adopt(a.ctx)
	if err != nil {
		return err
	}
	if !a.m.PG.Running {
		if err := a.nameIsFree(a.ctx); err != nil {
			return err
		}
	}
	serverFailed := make(chan error, 1)
	a.goDo(func(ctx context.Context) {
		if err := server.Serve(ctx); err != nil && !errors.Is(err, context.Canceled) {
			serverFailed <- err
		}
	})
	a.goDo(func(ctx context.Context) { a.keepSession(ctx, session) })
	a.goDo(a.watchConsul)
	a.goDo(a.watchRoute)
	a.goDo(a.keepSecret)
	a.goDo(a.watchPostgres)
	a.goDo(func(ctx context.Context) { a.watchReload(ctx, signals.Reload) })
	a.goDo(a.watchDisk)
	a.goDo(a.watchdog.Run)
	a.goDo(a.keepCatalogue)
	a.goDo(a.callbacks.Work)
	a.goDo(a.tellSystemd)
	a.goDo(a.keepAlive)
	a.systemd.Ready()
	a.tellLastReset()
	return a.loop(signals, serverFailed)
}

// goDo runs f in a goroutine that Run waits for at its end.
func (a *Agent) goDo(f func(context.Context)) {
	a.work.Add(1)
	go func() {
		defer a.work.Done()
		f(a.ctx)
	}()
}

// workLimit is how long the end of the agent waits for what is under way.
const workLimit = 5 * time.Second

// awaitWork waits for all goroutines. One that waits for a disk that hangs cannot be
// ended: it ends with the process.
func (a *Agent) awaitWork() {
	done := make(chan struct{})
	go func() { // ends with them
		a.work.Wait()
		close(done)
	}()
	limit := time.NewTimer(workLimit)
	defer limit.Stop()
	select {
	case <-done:
	case <-limit.C:
		a.log.Error().Dur("limit", workLimit).Msg("something still waits, for a disk that hangs perhaps; the agent ends without it")
	}
}

// post hands f to the loop, which alone may touch a.m.
func (a *Agent) post(f func()) {
	select {
	case a.events <- f:
	case <-a.ctx.Done():
	}
}

// broadcast wakes everybody who waits for the loop to come round.
type broadcast struct {
	mu sync.Mutex
	ch chan struct{}
}

func newBroadcast() *broadcast { return &broadcast{ch: make(chan struct{})} }

func (b *broadcast) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ch
}

func (b *broadcast) send() {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.ch)
	b.ch = make(chan struct{})
}

func kick(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
