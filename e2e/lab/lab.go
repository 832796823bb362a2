package lab

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lictor-ha/lictor/e2e/netns"
)

// Lab is a whole installation. Its exported fields and the lists that its
// methods return do not change once New has returned.
type Lab struct {
	// Options are those of New, with all defaults filled in.
	Options Options
	Dir     string // Options.Dir, absolute and without symbolic links
	Secrets Secrets

	record  *record
	spawner *spawner
	ports   *portBlock // Loopback
	network *network   // Netns
	clients *namespace // where the lab's own connections come from; nil on Loopback
	owner   owner
	http    *http.Client
	waiters sync.WaitGroup // one for each process

	hosts    []*Host
	shared   []*Host // Options.Hosts
	consul   []*ConsulServer
	shards   []*Shard
	bouncers []*Bouncer
	balancer *Balancer
	volumes  []*Volume

	// gate is held for reading while a process is started; once it is shut
	// nothing is started any more.
	gate     sync.RWMutex
	shut     bool
	stopOnce sync.Once
	stopErr  error
}

// Secrets are the passwords of one lab, made anew for each.
type Secrets struct {
	Superuser   string
	Replication string
	Rewind      string
	// App is the password of the role that the clients use.
	App string
	// Pooler is the password of PgBouncer's administrator.
	Pooler string
}

// The roles of a lab's PostgreSQL.
const (
	SuperuserRole   = "postgres"
	ReplicationRole = "replicator"
	RewindRole      = "rewinder"
	AppRole         = "app"
	PoolerRole      = "lictor"
)

// New lays a lab out: directories, network, configuration files. It starts
// nothing; the caller must call Close, also when a later step fails.
func New(ctx context.Context, opts Options) (*Lab, error) {
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	var err error
	if opts.Programs, err = opts.Programs.Find(); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	if opts.Database == nil {
		opts.Database = Lictor{}
	}
	if opts.Pooler == nil {
		opts.Pooler = LictorBouncer{}
	}
	l := &Lab{Options: opts, Dir: opts.Dir}
	if err := l.layOut(ctx); err != nil {
		// What was made so far is taken down; the first error is the one
		// that says what is wrong.
		return nil, errors.Join(fmt.Errorf("lab: %w", err), l.Close(context.WithoutCancel(ctx)))
	}
	return l, nil
}

func (l *Lab) layOut(ctx context.Context) error {
	if err := l.prepareDir(ctx); err != nil {
		return err
	}
	var err error
	if l.spawner, err = newSpawner(); err != nil {
		return fmt.Errorf("thread for starting processes: %w", err)
	}
	for _, secret := range []*string{&l.Secrets.Superuser, &l.Secrets.Replication, &l.Secrets.Rewind, &l.Secrets.App, &l.Secrets.Pooler} {
		*secret = rand.Text()
	}
	// Connections are not kept: one to a host that fell silent would hang.
	l.http = &http.Client{Transport: &http.Transport{DialContext: l.Dial, DisableKeepAlives: true}}

	if l.Options.Substrate == Netns {
		if l.network, err = newNetwork(ctx, l.record); err != nil {
			return err
		}
		if l.clients, err = l.network.addHost(ctx, "clients"); err != nil {
			return err
		}
	} else if l.ports, err = claimPorts(); err != nil {
		return err
	}
	// The balancer's port is the first of the block: it is what people type.
	if l.Options.Bouncers > 0 {
		if err := l.addBalancer(ctx); err != nil {
			return err
		}
	}
	if !l.Options.ConsulOnMembers {
		if err := l.addConsulHosts(ctx); err != nil {
			return err
		}
	}
	for i := range l.Options.Hosts {
		host, err := l.addHost(ctx, fmt.Sprintf("db%d", i+1))
		if err != nil {
			return err
		}
		l.shared = append(l.shared, host)
	}
	for i := range l.Options.Shards {
		if err := l.addShard(ctx, i); err != nil {
			return err
		}
	}
	if l.Options.ConsulOnMembers {
		for _, m := range l.Members()[:l.Options.ConsulServers] {
			if err := l.addConsul(m.Host); err != nil {
				return err
			}
		}
	}
	for i := range l.Options.Bouncers {
		if err := l.addBouncer(ctx, i); err != nil {
			return err
		}
	}
	return l.install()
}

// prepareDir makes the directory fit for a new lab and takes it into use.
func (l *Lab) prepareDir(ctx context.Context) error {
	dir, err := filepath.Abs(l.Dir)
	if err != nil {
		return fmt.Errorf("directory: %w", err)
	}
	// Processes are told apart by where they work, which the kernel gives
	// without symbolic links.
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("directory: %w", err)
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return fmt.Errorf("directory: %w", err)
	}
	if err := Clean(ctx, dir); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("directory: %w", err)
	}
	if len(entries) > 0 {
		return fmt.Errorf("directory %s is not empty and no lab left it (it holds %s, ...); choose another one", dir, entries[0].Name())
	}
	if l.owner, err = findOwner(); err != nil {
		return err
	}
	if l.owner.asRoot {
		if err := traversable(dir); err != nil {
			return err
		}
	}
	l.Dir = dir
	if l.record, err = openRecord(dir); err != nil {
		return err
	}
	for _, sub := range []string{hostsDir, logDir} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			return fmt.Errorf("directory: %w", err)
		}
	}
	return nil
}

// install writes the configuration files, once all addresses are known.
func (l *Lab) install() error {
	for _, s := range l.consul {
		specs, err := s.specs()
		if err != nil {
			return err
		}
		s.install(specs)
	}
	for _, m := range l.Members() {
		specs, err := l.Options.Database.Install(l, m)
		if err != nil {
			return fmt.Errorf("member %s: %w", m.Name, err)
		}
		m.install(specs)
	}
	for _, b := range l.bouncers {
		specs, err := l.Options.Pooler.Install(l, b)
		if err != nil {
			return fmt.Errorf("bouncer %s: %w", b.Name, err)
		}
		b.install(specs)
	}
	if l.balancer != nil {
		specs, err := l.balancer.specs()
		if err != nil {
			return err
		}
		l.balancer.install(specs)
	}
	return nil
}

// Start starts everything: Consul first, until it has a leader, then all other
// hosts at once. It returns when every process is ready; whether the shards
// serve is for AwaitHealthy and AwaitServing to say.
func (l *Lab) Start(ctx context.Context) error {
	if err := l.StartConsul(ctx); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, h := range l.hosts { // what runs already stays as it is
		group.Go(func() error { return h.Start(ctx) })
	}
	l.Options.Progress(fmt.Sprintf("starting %d members in %d shards, %d poolers", len(l.Members()), len(l.shards), len(l.bouncers)))
	return group.Wait()
}

// StartConsul starts the Consul servers alone and waits until they serve.
func (l *Lab) StartConsul(ctx context.Context) error {
	l.Options.Progress(fmt.Sprintf("starting %d Consul servers", len(l.consul)))
	begun := time.Now()
	group, groupCtx := errgroup.WithContext(ctx)
	for _, s := range l.consul {
		group.Go(func() error { return s.start(groupCtx, []*Process{s.Process(consulProcess)}) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if err := l.AwaitConsul(ctx); err != nil {
		return err
	}
	l.Options.Progress(fmt.Sprintf("Consul has a leader after %.1f s", time.Since(begun).Seconds()))
	return nil
}

// Close kills everything that the lab started and removes its data. It may be
// called more than once and from any goroutine. ctx bounds the waiting only.
func (l *Lab) Close(ctx context.Context) error {
	if err := l.Stop(ctx); err != nil {
		return fmt.Errorf("the lab in %s could not be stopped, its files stay: %w", l.Dir, err)
	}
	if l.record == nil {
		return nil
	}
	if err := emptyDir(l.Dir); err != nil {
		return err
	}
	// The directory itself goes too, if nobody put anything else there.
	_ = os.Remove(l.Dir)
	return nil
}

// Stop kills everything that the lab started and leaves its files: data, logs,
// configuration. A lab that was stopped cannot be started again.
func (l *Lab) Stop(ctx context.Context) error {
	l.stopOnce.Do(func() { l.stopErr = l.stop(ctx) })
	return l.stopErr
}

func (l *Lab) stop(ctx context.Context) error {
	if l.record == nil {
		return nil
	}
	l.gate.Lock()
	l.shut = true
	l.gate.Unlock()
	s := selector{dir: l.Dir, roots: map[int]uint64{}, netns: map[string]bool{}}
	for _, h := range l.hosts {
		for pid, start := range h.selector().roots {
			s.roots[pid] = start
		}
	}
	if l.network != nil {
		for _, ns := range l.network.hosts {
			s.netns[ns.inode] = true
		}
	}
	var errs []error
	for _, v := range l.volumes { // what hangs in a write cannot be killed
		errs = append(errs, v.Thaw())
	}
	killed := killAll(ctx, s)
	errs = append(errs, killed)
	if killed == nil {
		l.waiters.Wait()
	}
	removeSharedMemory(l.Dir)
	for _, v := range l.volumes {
		errs = append(errs, unmountVolume(ctx, v.Dir))
	}
	if l.spawner != nil {
		l.spawner.close()
	}
	if l.network != nil {
		errs = append(errs, l.network.close(ctx))
	}
	l.ports.release()
	// The record goes with what it named: files that are kept are nobody's
	// leftovers, a later lab must not remove them.
	if errors.Join(errs...) == nil {
		errs = append(errs, os.Remove(filepath.Join(l.Dir, recordName)))
	}
	return errors.Join(append(errs, l.record.close())...)
}

// Dial opens a connection from where the lab's clients are.
func (l *Lab) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	if l.clients == nil {
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	return netns.In(l.clients.file, func() (net.Conn, error) { return new(net.Dialer).DialContext(ctx, network, address) })
}

// HTTP is a client whose connections come from where the lab's clients are. It
// has no timeout of its own: give every request a context.
func (l *Lab) HTTP() *http.Client { return l.http }

// Shards lists the shards, in order of their names.
func (l *Lab) Shards() []*Shard { return slices.Clone(l.shards) }

// Shard returns the i-th shard, counted from 0.
func (l *Lab) Shard(i int) *Shard { return l.shards[i] }

// Members lists the members of all shards.
func (l *Lab) Members() []*Member {
	var all []*Member
	for _, s := range l.shards {
		all = append(all, s.members...)
	}
	return all
}

// ConsulServers lists the Consul servers.
func (l *Lab) ConsulServers() []*ConsulServer { return slices.Clone(l.consul) }

// BouncerHosts lists the hosts that run PgBouncer.
func (l *Lab) BouncerHosts() []*Bouncer { return slices.Clone(l.bouncers) }

// Balancer is the network load balancer, nil in a lab without bouncers.
func (l *Lab) Balancer() *Balancer { return l.balancer }

// Hosts lists every host.
func (l *Lab) Hosts() []*Host { return slices.Clone(l.hosts) }

// LogTail returns the last lines of every log of the lab, for a failed test: agents, bouncers and
// PostgreSQL before balancers and Consul, whose logs are long.
func (l *Lab) LogTail(lines int) string {
	var first, last strings.Builder
	tail := func(b *strings.Builder, title, path string) {
		content, err := os.ReadFile(path)
		if err != nil {
			return
		}
		all := strings.Split(strings.TrimRight(string(content), "\n"), "\n")
		fmt.Fprintf(b, "==> %s\n%s\n", title, strings.Join(all[max(0, len(all)-lines):], "\n"))
	}
	for _, s := range l.shards {
		for _, m := range s.members {
			tail(&first, m.Name+"/PostgreSQL", filepath.Join(filepath.Dir(m.DataDir), "."+filepath.Base(m.DataDir)+".lictor-postgres.log"))
		}
	}
	for _, h := range l.hosts {
		for _, p := range h.Processes() {
			b := &first
			if p.Name == "consul" || p.Name == "haproxy" {
				b = &last
			}
			tail(b, fmt.Sprintf("%s/%s (running: %v)", h.Name, p.Name, p.Running()), p.LogPath())
		}
	}
	return first.String() + last.String()
}
