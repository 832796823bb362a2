package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// Shard is one replication cluster of the lab. Its database, which the clients
// use, has its name.
type Shard struct {
	Name string
	Keys cluster.Keys

	lab     *Lab
	members []*Member
}

// Member is a member of a shard on a database host, whose name it has. Without
// Options.Hosts the host is its own.
type Member struct {
	*Host
	Shard *Shard
	// Dir is the member's directory: the host's, or one below it.
	Dir string

	Postgres string // host:port
	REST     string // host:port
	DataDir  string
	// SocketDir is where PostgreSQL puts its unix socket.
	SocketDir string
	// Volume is the file system of DataDir; nil without Options.VolumeMB.
	Volume *Volume
}

// The usual ports of a host that has an address of its own.
const (
	postgresPort  = 5432
	restPort      = 8008
	pgbouncerPort = 6432
	bouncerPort   = 8009
	balancerPort  = 5432
)

func (l *Lab) addShard(ctx context.Context, number int) error {
	s := &Shard{Name: "shard" + strconv.Itoa(number+1), lab: l}
	s.Keys = cluster.NewKeys("", s.Name, "")
	for i := range l.Options.Members {
		m, err := l.newMember(ctx, s, number, i)
		if err != nil {
			return err
		}
		if err := checkSocketPath(m.SocketDir); err != nil {
			return err
		}
		if l.Options.VolumeMB > 0 {
			if m.Volume, err = l.addVolume(ctx, m.Host); err != nil {
				return err
			}
			m.DataDir = filepath.Join(m.Volume.Dir, dataDir)
		}
		next := 0 // members on one host have ports of their own
		if len(l.shared) > 0 {
			next = number
		}
		if m.Postgres, err = m.ListenAddress(postgresPort + next); err != nil {
			return err
		}
		if m.REST, err = m.ListenAddress(restPort + next); err != nil {
			return err
		}
		s.members = append(s.members, m)
	}
	l.shards = append(l.shards, s)
	return nil
}

// newMember finds or makes the host of a shard's i-th member, and its directory.
func (l *Lab) newMember(ctx context.Context, s *Shard, number, i int) (*Member, error) {
	if len(l.shared) == 0 {
		host, err := l.addHost(ctx, fmt.Sprintf("%s-db%d", s.Name, i+1))
		if err != nil {
			return nil, err
		}
		return &Member{Host: host, Shard: s, Dir: host.Dir, DataDir: filepath.Join(host.Dir, dataDir), SocketDir: host.Dir}, nil
	}
	host := l.shared[(number+i)%len(l.shared)]
	dir := filepath.Join(host.Dir, s.Name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, fmt.Errorf("directory of %s on %s: %w", s.Name, host.Name, err)
	}
	if err := l.owner.own(dir); err != nil {
		return nil, err
	}
	return &Member{Host: host, Shard: s, Dir: dir, DataDir: filepath.Join(dir, dataDir), SocketDir: dir}, nil
}

// processName is the name of the member's process on its host.
func (m *Member) processName(program string) string {
	if m.Dir == m.Host.Dir {
		return program
	}
	return program + "-" + m.Shard.Name
}

// Process returns the member's process of that name, nil when there is none.
func (m *Member) Process(name string) *Process { return m.Host.Process(m.processName(name)) }

// ListenAddress is host:port for a service of this host: the usual port where the
// host has an address of its own, else one that nothing else uses.
func (h *Host) ListenAddress(usual int) (string, error) {
	port, err := h.port(usual)
	if err != nil {
		return "", err
	}
	return net.JoinHostPort(h.Address, strconv.Itoa(port)), nil
}

// Members lists the shard's members, in order of their names.
func (s *Shard) Members() []*Member { return slices.Clone(s.members) }

// Member returns the member of that name, nil when there is none.
func (s *Shard) Member(name string) *Member {
	for _, m := range s.members {
		if m.Name == name {
			return m
		}
	}
	return nil
}

// Leader is the member that holds the shard's leader lock in Consul.
func (s *Shard) Leader(ctx context.Context) (*Member, error) {
	snapshot, err := s.Snapshot(ctx)
	if err != nil {
		return nil, err
	}
	name := snapshot.LeaderName()
	if name == "" {
		return nil, fmt.Errorf("shard %s: nobody holds the leader lock", s.Name)
	}
	m := s.Member(name)
	if m == nil {
		return nil, fmt.Errorf("shard %s: the leader is %q, which is not a member of the lab", s.Name, name)
	}
	return m, nil
}

// Replicas are all members but the leader.
func (s *Shard) Replicas(ctx context.Context) ([]*Member, error) {
	leader, err := s.Leader(ctx)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(s.Members(), func(m *Member) bool { return m == leader }), nil
}

// awaitInterval is how often members are asked while something is awaited:
// Patroni's REST API cannot notify.
const awaitInterval = 100 * time.Millisecond

// AwaitLeader waits until a member other than those named leads and serves as a
// primary, and returns it.
func (s *Shard) AwaitLeader(ctx context.Context, other ...*Member) (*Member, error) {
	var found *Member
	err := poll(ctx, awaitInterval, func(ctx context.Context) error {
		leader, err := s.Leader(ctx)
		if err != nil {
			return err
		}
		if slices.Contains(other, leader) {
			return fmt.Errorf("the leader is still %s", leader.Name)
		}
		if err := leader.serving(ctx); err != nil {
			return err
		}
		found = leader
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("shard %s has no leader that serves: %w", s.Name, err)
	}
	return found, nil
}

// serving checks what a load balancer would: that the member is the primary.
func (m *Member) serving(ctx context.Context) error {
	status, body, err := m.Get(ctx, "/primary")
	if err != nil {
		return fmt.Errorf("member %s: %w", m.Name, err)
	}
	if status != 200 {
		return fmt.Errorf("member %s: GET /primary answers %d: %.200s", m.Name, status, body)
	}
	return nil
}

// AwaitHealthy waits until the shard is whole: one leader that serves, and
// every other member of the lab streaming from it on its timeline. Members that
// are named in except are left out of account.
func (s *Shard) AwaitHealthy(ctx context.Context, except ...*Member) (*Member, error) {
	var leader *Member
	err := poll(ctx, awaitInterval, func(ctx context.Context) (err error) {
		leader, err = s.healthy(ctx, except)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("shard %s is not whole: %w", s.Name, err)
	}
	return leader, nil
}

func (s *Shard) healthy(ctx context.Context, except []*Member) (*Member, error) {
	leader, err := s.Leader(ctx)
	if err != nil {
		return nil, err
	}
	if err := leader.serving(ctx); err != nil {
		return nil, err
	}
	primary, err := leader.Status(ctx)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, m := range s.members {
		if m == leader || slices.Contains(except, m) {
			continue
		}
		errs = append(errs, m.followsWell(ctx, primary))
	}
	return leader, errors.Join(errs...)
}

func (m *Member) followsWell(ctx context.Context, primary NodeStatus) error {
	status, err := m.Status(ctx)
	if err != nil {
		return err
	}
	streams := slices.ContainsFunc(primary.Replication, func(r Replica) bool {
		// PostgreSQL folds nothing here, Patroni compares without case.
		return strings.EqualFold(r.ApplicationName, m.Name) && r.State == "streaming"
	})
	switch {
	case status.Primary() || status.State != cluster.StateRunning:
		return fmt.Errorf("member %s: role %s, state %s", m.Name, status.Role, status.State)
	case status.Timeline != primary.Timeline:
		return fmt.Errorf("member %s: timeline %d, the leader's is %d", m.Name, status.Timeline, primary.Timeline)
	case !streams:
		return fmt.Errorf("member %s: does not stream from the leader", m.Name)
	case status.Lictor != nil && status.ReplicationState != "streaming": // the primary sees it first
		return fmt.Errorf("member %s: says %q of its replication", m.Name, status.ReplicationState)
	}
	return nil
}

// AwaitSync waits until the shard's leader has a synchronous standby: from then
// on no acknowledged commit depends on one host. It must not be called in a lab
// with Options.Async.
func (s *Shard) AwaitSync(ctx context.Context) error {
	err := poll(ctx, awaitInterval, func(ctx context.Context) error {
		snapshot, err := s.Snapshot(ctx)
		if err != nil {
			return err
		}
		leader, sync := snapshot.LeaderName(), snapshot.Sync
		if leader == "" || !sync.OK() || sync.Value.Leader != leader || len(sync.Value.Standbys()) == 0 {
			return fmt.Errorf("the leader is %q, the sync key says leader %q with standbys %q", leader, sync.Value.Leader, sync.Value.Standbys())
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("shard %s has no synchronous standby: %w", s.Name, err)
	}
	return nil
}

// PostmasterPID is the process id of the member's postmaster, from its lock
// file.
func (m *Member) PostmasterPID() (int, error) {
	content, err := os.ReadFile(filepath.Join(m.DataDir, "postmaster.pid"))
	if err != nil {
		return 0, fmt.Errorf("postmaster of %s: %w", m.Name, err)
	}
	first, _, _ := strings.Cut(string(content), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(first))
	if err != nil {
		return 0, fmt.Errorf("postmaster of %s: its lock file begins with %q", m.Name, first)
	}
	return pid, nil
}

// Connect opens a connection of the superuser to this member's PostgreSQL,
// past all poolers. The caller closes it.
func (m *Member) Connect(ctx context.Context, database string) (*pgx.Conn, error) {
	return m.lab.connect(ctx, m.Postgres, SuperuserRole, m.lab.Secrets.Superuser, database)
}

// connectTimeout is how long a client waits for a connection.
const connectTimeout = 2 * time.Second

func (l *Lab) connect(ctx context.Context, address, user, password, database string) (*pgx.Conn, error) {
	config, err := l.connConfig(address, user, password, database)
	if err != nil {
		return nil, err
	}
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("connecting to %s on %s as %s: %w", database, address, user, err)
	}
	return conn, nil
}

// connConfig is made from parts and never from the environment's PG* variables.
func (l *Lab) connConfig(address, user, password, database string) (*pgx.ConnConfig, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("address of PostgreSQL: %w", err)
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("address of PostgreSQL: %w", err)
	}
	config, err := pgx.ParseConfig("sslmode=disable")
	if err != nil {
		return nil, fmt.Errorf("configuration of the client: %w", err)
	}
	config.Host, config.Port, config.Database = host, uint16(number), database
	config.User, config.Password = user, password
	config.Fallbacks = nil
	config.RuntimeParams = map[string]string{}
	config.ConnectTimeout = connectTimeout
	config.DialFunc = l.Dial
	// Poolers in transaction mode know no prepared statements before 1.21.
	config.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	return config, nil
}

// Prepare makes the application's role, database and table on the leader.
func (s *Shard) Prepare(ctx context.Context) error {
	leader, err := s.Leader(ctx)
	if err != nil {
		return err
	}
	if err := s.prepareOn(ctx, leader); err != nil {
		return fmt.Errorf("preparing the database of %s: %w", s.Name, err)
	}
	return nil
}

func (s *Shard) prepareOn(ctx context.Context, leader *Member) error {
	admin, err := leader.Connect(ctx, "postgres")
	if err != nil {
		return err
	}
	defer admin.Close(context.WithoutCancel(ctx))
	for _, statement := range []string{
		fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD '%s'", AppRole, s.lab.Secrets.App),
		fmt.Sprintf("CREATE DATABASE %s OWNER %s", pgx.Identifier{s.Name}.Sanitize(), AppRole),
	} {
		if _, err := admin.Exec(ctx, statement); err != nil {
			return err
		}
	}
	app, err := s.lab.connect(ctx, leader.Postgres, AppRole, s.lab.Secrets.App, s.Name)
	if err != nil {
		return err
	}
	defer app.Close(context.WithoutCancel(ctx))
	_, err = app.Exec(ctx, "CREATE TABLE writes (client text, id bigint, at timestamptz NOT NULL, PRIMARY KEY (client, id))")
	return err
}
