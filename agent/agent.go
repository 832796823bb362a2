// Package agent wires one member together. Its loop drives the state machine (package
// member), which lets package ha decide; here are the goroutines that listen and act for it:
//
//	agent.go     what an agent is made of; start and end
//	run.go       goroutines, what they hand to the loop, and what they may read of it
//	loop.go      the loop: one goroutine that owns all state, woken by events
//	adopt.go     what runs already when the agent begins
//	observe.go   looks at the data directory, and what the API shows
//	ports.go     what the state machine (package member) reaches the world through
//	handover.go  what bouncers are told: of a planned change of primary, of routes
//	configure.go the dynamic configuration and the agent's own file, taken up and again
//	service_registrar.go the member's service in Consul's catalogue
//	event_log.go what has happened, as the shard remembers it
//	led.go       that this agent may have led with the PostgreSQL that runs
//	probe.go     whether another member's host is there
//	disk.go      whether the data directory can be written
//	archive.go   whether WAL gets into the archive
//	backups.go   what backups the shard has
//	only.go      that one agent looks after a data directory, and no other
//	guard_supervisor.go, watchdog.go
//	             the guard and the watchdog device
//	secret.go    what members prove themselves to each other with
//	watch.go     the goroutines that listen: Consul, PostgreSQL, peers, session
//	requests.go, restart.go, failsafe.go
//	             what operators and other members ask for through the REST API
//	sites.go     what the other site says to a change of the configuration
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

// Agent runs one member of a shard. Its methods run on the goroutine of the loop, but for
// those that Run begins in goroutines of their own and that say so.
type Agent struct {
	*board
	cfg     config.Config
	version string
	log     zerolog.Logger

	store    *consul.Store
	pg       *postgres.Instance
	data     *dataLooker
	guard    *guardSupervisor
	watchdog *watchdog
	conf     *dynamicConfig
	eventLog *eventLog
	bouncers *bouncers
	node     *node
	// registrar is nil where no service is registered.
	registrar *serviceRegistrar
	// runnable reports whether the binary installed by now can be run.
	runnable func(context.Context) error
	systemd  *systemd.Notifier
	metrics  *metrics.Metrics
	// callbacks runs the operator's scripts, each within scriptLimit.
	callbacks   *callbacks.Runner
	scriptLimit time.Duration
	peers       *api.Client
	secrets     *proof.Keeper
	probe       *postgres.DiskProbe
	clock       fence.Clock

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
	// Runnable reports whether the binary that is installed by now can be run.
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
	counted := metrics.New()
	for _, c := range clients {
		c.HttpClient.Transport = counted.Timed(c.HttpClient.Transport)
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
	cfg.Bootstrap.DCS = inForce(cfg.Lictor.Speaks(), dynamic, cfg.Bootstrap.DCS)
	run := &runner{events: make(chan func(), 64)}
	a := &Agent{
		cfg: cfg, version: o.Version, log: o.Log, board: newBoard(run),
		store: store, peers: peers, secrets: &proof.Keeper{}, clock: fence.Now, runnable: o.Runnable,
		systemd: o.Systemd, metrics: counted,
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
	a.guard = newGuardSupervisor(cfg, o, files)
	a.watchdog = newWatchdog(cfg, files, o.Log)
	a.pg, err = postgres.New(postgresSettings(cfg, o.Log, a.guard))
	if err != nil {
		return nil, err
	}
	a.guard.client.Postmaster = a.pg.PID
	a.data = &dataLooker{runner: run, pg: a.pg, busy: make(chan struct{}, 1)}
	a.bouncers = &bouncers{namespace: cfg.Namespace, scope: cfg.Scope, client: poolers, store: store, pg: a.pg, log: o.Log}
	a.conf = &dynamicConfig{board: a.board, cfg: &a.cfg, rules: cfg.Lictor.Rules(), pg: a.pg, logging: o.Logging, kick: a.kickPostgres, log: o.Log}
	a.registrar = newServiceRegistrar(store, cfg.Consul, cfg.Scope, cfg.Name)
	a.probe = a.pg.DiskProbe(o.ProbeCommand)
	a.scriptLimit = cfg.Lictor.ScriptLimit()
	a.callbacks = callbacks.New(o.Log)
	a.callbacks.Keep = a.pg.KeepCallbackState
	a.callbacks.Run = func(ctx context.Context, action, role, command string) error {
		began := time.Now()
		err := a.pg.Callback(ctx, a.scriptLimit, command, action, role)
		outcome := "done"
		if err != nil {
			outcome = "failed"
		}
		counted.Callbacks.WithLabelValues(action, outcome).Observe(time.Since(began).Seconds())
		return err
	}
	a.callbacks.Ended = func() { a.post(func() {}) } // an upgrade may wait for them
	host, port := splitAddress(cfg.Postgres.ConnectAddress)
	a.m.Member = member.New(member.Settings{
		Name: cfg.Name, SessionName: cfg.Scope + "-" + cfg.Name, Keys: cfg.Keys(), Version: publicVersion(o.Version), PrimaryWord: primaryWord(cfg),
		ConnURL: connURL(cfg, cfg.Postgres.ConnectAddress), ProxyURL: connURL(cfg, cfg.Postgres.ProxyAddress), APIURL: apiURL(cfg), Host: host, Port: port,
		Tags: cfg.Tags, Margins: margins(cfg), ScriptLimit: a.scriptLimit,
		MayRewind: a.pg.UsePgRewind, MayRemove: a.conf.mayRemoveData, Decided: a.note, Log: o.Log,
	}, a.ports(), shell{a}, dynamic)
	a.m.reasons = map[string]cluster.Instant{}
	a.conf.m, a.watchdog.m = a.m.Member, a.m.Member
	a.eventLog = &eventLog{
		runner: run, m: a.m.Member, name: cfg.Name, key: a.m.Keys.Events(), store: store, pg: a.pg, metrics: counted, clock: a.clock, log: o.Log,
	}
	a.node = &node{
		board: a.board, m: &a.m, conf: a.conf, compat: cfg.Lictor.Speaks(), source: o.Source, show: func() { a.show(a.m.Reason) },
		keys: a.m.Keys, store: store, pg: a.pg, backups: cfg.Lictor.Backup.InForce(), upgradeBinDir: cfg.Lictor.UpgradeBinDir, checkingUpgrade: make(chan struct{}, 1),
		kickPostgres: a.kickPostgres, reloading: make(chan struct{}, 1), systemd: o.Systemd, metrics: counted, log: o.Log,
	}
	a.dynamic.Store(&dynamic)
	return a, nil
}

// Run runs the agent until it is told to stop and PostgreSQL has been stopped in
// an orderly way, or to make room for another binary (ErrUpgrade), or until ctx
// ends, which leaves everything as it is, too.
func (a *Agent) Run(ctx context.Context, signals Signals) error {
	a.ctx, a.end = context.WithCancel(ctx)
	defer a.guard.client.Close()
	defer a.awaitWork(a.log)
	defer a.end()
	defer a.finishCallbacks()
	release, err := onlyAgent(a.cfg, a.guard.led.files)
	if err != nil {
		return err
	}
	defer release()

	server, err := api.NewServer(a.cfg.RestAPI, a.node, a.log)
	if err != nil {
		return err
	}
	server.ProveWith(a.secrets)
	server.Compat = a.cfg.Lictor.Speaks()
	server.Collectors = a.metrics.Collectors()
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
	watch := &watcher{
		board: a.board, m: a.m.Member, store: a.store, pg: a.pg, data: a.data, clock: a.clock, log: a.log,
		node: a.cfg.Consul.Node, checks: a.cfg.Consul.Checks, kickSession: a.kickSession, kickPostgres: a.kickPostgres,
	}
	a.goDo(func(ctx context.Context) { watch.session(ctx, session) })
	a.goDo(watch.consul)
	a.goDo(watch.route)
	a.goDo(watch.postgres)
	a.goDo((&secretKeeper{board: a.board, key: a.m.Keys.Secret(), store: a.store, pg: a.pg, secrets: a.secrets, log: a.log}).keep)
	a.goDo((&diskWatch{board: a.board, m: a.m.Member, probe: a.probe, clock: a.clock, log: a.log}).run)
	a.goDo((&archiveWatch{board: a.board, m: &a.m, pg: a.pg, log: a.log}).run)
	if a.cfg.Lictor.Backup.Stanza != "" {
		backups := &backupWatch{board: a.board, m: &a.m, pg: a.pg, cfg: a.cfg.Lictor.Backup.InForce()}
		a.goDo(backups.run)
		a.goDo(backups.notes)
	}
	a.goDo(func(ctx context.Context) { a.node.watchReload(ctx, signals.Reload) })
	a.goDo(a.watchdog.Run)
	if a.registrar != nil {
		a.goDo(func(ctx context.Context) { a.registrar.keep(ctx, a.board, a.log) })
	}
	a.goDo(a.callbacks.Work)
	a.goDo(a.tellSystemd)
	a.goDo(a.keepAlive)
	a.systemd.Ready()
	a.watchdog.tellLastReset()
	defer a.finishFence()
	return a.loop(signals, serverFailed)
}
