package operator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/cluster/pgauth"
	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/postgres"
)

// QueryOptions say what is asked, of which member and as whom.
type QueryOptions struct {
	SQL      string
	Member   string
	Role     string // default: leader
	User     string // default: the superuser of the configuration file
	Password string
	Database string // default: postgresql.database
	// Delimiter stands between the columns of TSV; empty: a tab.
	Delimiter string
}

// DSN shows how to connect to a member.
func DSN(ctx context.Context, c *Console, s *Shard, member, role string) error {
	m, err := s.oneMember(ctx, member, role)
	if err != nil {
		return err
	}
	host, port, err := m.Address()
	if err != nil {
		return err
	}
	c.Say("host=%s port=%d", host, port)
	return nil
}

// oneMember is the named member, or the first that has a role (default: leads).
func (s *Shard) oneMember(ctx context.Context, name, role string) (cluster.Member, error) {
	if name != "" && role != "" {
		return cluster.Member{}, usagef("--member and --role exclude each other")
	}
	if err := checkRole(role); err != nil {
		return cluster.Member{}, err
	}
	snapshot, err := s.Read(ctx)
	if err != nil {
		return cluster.Member{}, err
	}
	var names []string
	switch {
	case name != "":
		names = []string{name}
	case role == "":
		return s.leader(snapshot)
	}
	members, err := s.members(snapshot, names, role)
	if err != nil {
		return cluster.Member{}, err
	}
	if i := slices.IndexFunc(members, func(m cluster.Member) bool { return m.State == cluster.StateRunning }); i > 0 {
		return members[i], nil
	}
	return members[0], nil
}

// Query runs SQL on a member and shows what it returns.
func Query(ctx context.Context, c *Console, s *Shard, o QueryOptions) error {
	if o.Delimiter != "" && c.Format != TSV {
		return usagef("--delimiter is for --output tsv")
	}
	if strings.ContainsAny(o.Delimiter, "\r\n") {
		return usagef("--delimiter must be of one line")
	}
	m, err := s.oneMember(ctx, o.Member, o.Role)
	if err != nil {
		return err
	}
	conn, err := s.site.connect(ctx, m, o)
	if err != nil {
		return err
	}
	defer hangUp(conn)
	rows, err := conn.Query(ctx, o.SQL)
	if err != nil {
		return fmt.Errorf("on %s: %w", m.Name, err)
	}
	defer rows.Close()
	var t Table
	for _, f := range rows.FieldDescriptions() {
		t.Columns = append(t.Columns, Column{Name: f.Name})
	}
	for rows.Next() {
		row := make([]Cell, len(t.Columns))
		for i, raw := range rows.RawValues() {
			row[i] = Cell{Text: string(raw)}
		}
		t.Rows = append(t.Rows, row)
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("on %s: %w", m.Name, err)
	}
	rows.Close()
	if len(t.Columns) == 0 {
		c.Say("%s", rows.CommandTag())
		return nil
	}
	t.Framed, t.Delimiter = true, o.Delimiter
	return c.Show(t)
}

// connectLimit bounds making a connection to PostgreSQL.
const connectLimit = 5 * time.Second

// connect connects to a member's PostgreSQL. What the options leave open comes from
// the configuration file's superuser, the rest from libpq's variables and files.
func (s *Site) connect(ctx context.Context, m cluster.Member, o QueryOptions) (*pgx.Conn, error) {
	host, port, err := m.Address()
	if err != nil {
		return nil, err
	}
	user := s.Postgres.Authentication.Superuser
	if o.User != "" && o.User != user.Username {
		user = config.PgUser{
			Username: o.User, SSLMode: user.SSLMode, SSLRootCert: user.SSLRootCert, SSLCRL: user.SSLCRL, SSLCRLDir: user.SSLCRLDir,
			SSLNegotiation: user.SSLNegotiation, ChannelBinding: user.ChannelBinding, RequireAuth: user.RequireAuth,
		}
	}
	if o.Password != "" {
		user.Password = o.Password
	}
	parsed, err := postgres.LoginConfig(host, port, user, cmp.Or(o.Database, s.Postgres.Database, config.DefaultDatabase))
	if err != nil {
		return nil, usagef("how to connect to %s: %w", m.Name, err)
	}
	parsed.RuntimeParams["application_name"] = "lictor"
	parsed.RuntimeParams["default_transaction_isolation"] = "read committed" // with serializable nothing can be asked of a standby
	parsed.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol            // every value comes as text
	parsed.DialFunc = (&net.Dialer{Timeout: connectLimit, KeepAlive: connectLimit}).DialContext
	limit, cancel := context.WithTimeout(ctx, connectLimit)
	defer cancel()
	conn, err := pgauth.Connect(&parsed.Config, func() (*pgx.Conn, error) { return pgx.ConnectConfig(limit, parsed) })
	if err != nil {
		hint := ""
		if parsed.Password == "" {
			hint = "; no password is known: name the agent's configuration file with --config, or set PGPASSWORD or ~/.pgpass"
		}
		return nil, fmt.Errorf("connecting to PostgreSQL of %s at %s as %s: %w%s", m.Name, net.JoinHostPort(host, strconv.Itoa(port)), parsed.User, cause(err), hint)
	}
	return conn, nil
}

// cause is what of a failed connection says most: the server's own word, or the
// network's. The library tells of every attempt, with and without TLS, in a line each.
func cause(err error) error {
	var own *pgconn.PgError
	var op *net.OpError
	switch {
	case errors.As(err, &own):
		return own
	case errors.As(err, &op):
		return op.Err
	}
	return err
}

func hangUp(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx) // nothing is left to be done about it
}

// OwnVersion shows the version of this program, and for others than people what it was built with and for.
func OwnVersion(c *Console, own string) error {
	if c.Format == Pretty {
		c.Say("lictor version %s", own)
		return nil
	}
	return c.Show(Table{
		Columns: []Column{{Name: "Program"}, {Name: "Version"}, {Name: "Go"}, {Name: "Platform"}},
		Rows:    [][]Cell{{text("lictor"), text(own), text(strings.TrimPrefix(runtime.Version(), "go")), text(runtime.GOOS + "/" + runtime.GOARCH)}},
	})
}

// Version shows the versions of this program and of the members' agents and
// PostgreSQL.
func Version(ctx context.Context, c *Console, s *Shard, own string, names []string) error {
	snapshot, err := s.Read(ctx)
	if err != nil {
		return err
	}
	members, err := s.members(snapshot, names, "")
	if err != nil {
		return err
	}
	t := Table{Columns: []Column{{Name: "Member"}, {Name: "Agent"}, {Name: "PostgreSQL"}}}
	if c.Format == Pretty {
		c.Say("lictor version %s", own)
	}
	failed := forEach(members, func(m cluster.Member) error {
		status, err := s.status(ctx, m)
		if err != nil {
			return fmt.Errorf("%s: %w", m.Name, err)
		}
		t.Rows = append(t.Rows, []Cell{text(m.Name), text(status.Patroni.Version), text(serverVersion(status.ServerVersion))})
		return nil
	})
	return errors.Join(c.Show(t), failed)
}

// serverVersion writes server_version_num as people know it.
func serverVersion(n int) string {
	switch {
	case n == 0:
		return ""
	case n >= 100000:
		return fmt.Sprintf("%d.%d", n/10000, n%10000)
	}
	return fmt.Sprintf("%d.%d.%d", n/10000, n/100%100, n%100)
}
