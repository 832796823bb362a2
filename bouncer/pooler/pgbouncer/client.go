package pgbouncer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"golang.org/x/sys/unix"

	"github.com/lictor-ha/lictor/agent/cluster/pgauth"
)

// DefaultPort is PgBouncer's own default.
const DefaultPort = 6432

// maxMessage is the longest message that is read, in bytes. The longest that PgBouncer has is a line about
// a database with all its hosts; another one, at its port while it is down, might have us take a gigabyte.
const maxMessage = 4 << 20

// Errors that callers act on; test with errors.Is.
var (
	// ErrRefused: PgBouncer answered with an error.
	ErrRefused = errors.New("refused by PgBouncer")
	// ErrUnreachable: PgBouncer could not be asked, or its answer was lost. A
	// command whose answer was lost may have taken effect.
	ErrUnreachable = errors.New("PgBouncer does not answer")
)

// Address is where an admin console listens.
type Address struct {
	// Host is a host name or an address, or the absolute directory of a unix
	// socket.
	Host string
	Port int
}

// ParseAddress reads "host:port", "host", "/directory:port" or "/directory".
func ParseAddress(s string) (Address, error) {
	if strings.HasPrefix(s, "/") {
		dir, port, found := strings.Cut(s, ":")
		if !found {
			// The full name of the socket is what people copy from `ss` or `ls`.
			if i := strings.LastIndex(dir, "/.s.PGSQL."); i >= 0 {
				dir, port, found = dir[:i], dir[i+len("/.s.PGSQL."):], true
			}
		}
		a := Address{Host: filepath.Clean(dir), Port: DefaultPort}
		if !found {
			return a, nil
		}
		return a, a.setPort(port, s)
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		if s == "" || strings.ContainsAny(s, ": \t") && net.ParseIP(s) == nil {
			return Address{}, fmt.Errorf("%q is not host:port or the directory of a unix socket", s)
		}
		host = s
		if inner, found := strings.CutPrefix(s, "["); found {
			host = strings.TrimSuffix(inner, "]")
		}
		if !isHost(host) {
			return Address{}, fmt.Errorf("%q is not host:port or the directory of a unix socket", s)
		}
		return Address{Host: host, Port: DefaultPort}, nil
	}
	if !isHost(host) {
		return Address{}, fmt.Errorf("%q has no host", s)
	}
	a := Address{Host: host}
	return a, a.setPort(port, s)
}

func isHost(s string) bool { return s != "" && s[0] != '/' && !strings.ContainsAny(s, "[]'\" \t\r\n") }

func (a *Address) setPort(port, whole string) error {
	n, err := strconv.Atoi(port)
	if err != nil || n < 1 || n > 65535 {
		return fmt.Errorf("%q: port %q must be from 1 to 65535", whole, port)
	}
	a.Port = n
	return nil
}

// IsUnix reports whether a is a unix socket.
func (a Address) IsUnix() bool { return strings.HasPrefix(a.Host, "/") }

func (a Address) String() string {
	if a.IsUnix() {
		return a.Host + ":" + strconv.Itoa(a.Port)
	}
	return net.JoinHostPort(a.Host, strconv.Itoa(a.Port))
}

// Options say how to log in to an admin console.
type Options struct {
	Address  Address
	User     string
	Password string
	// SSLMode is libpq's; empty: disable on a unix socket and on loopback,
	// prefer elsewhere.
	SSLMode string
	// SSLRootCert is the file of the authorities that the certificate is checked by; with it
	// an empty SSLMode is verify-full.
	SSLRootCert string
	// RequireAuth is libpq's require_auth: how the other end may ask for the password, where it is not
	// on a unix socket and no certificate says who it is.
	RequireAuth string
}

// Conn is one connection to an admin console. It is not safe for concurrent
// use. Every call is bounded by its context; a call that was cut off by it
// leaves the connection closed.
type Conn struct {
	pg      *pgconn.PgConn
	address Address
	// databases is the last answer to SHOW DATABASES.
	databases map[string]Database
}

// Connect logs in to the admin console.
func Connect(ctx context.Context, o Options) (*Conn, error) {
	config, err := o.config()
	if err != nil {
		return nil, err
	}
	pg, err := pgauth.Connect(config, func() (*pgconn.PgConn, error) { return pgconn.ConnectConfig(ctx, config) })
	if err != nil {
		if err = classify(err); errors.Is(err, ErrRefused) {
			err = fmt.Errorf("%w (admin_users and auth_file must name this user, and PgBouncer learns that from its files when it is reloaded: systemctl reload pgbouncer)", err)
		}
		return nil, fmt.Errorf("admin console of PgBouncer at %s, user %s: %w", o.Address, o.User, err)
	}
	return &Conn{pg: pg, address: o.Address}, nil
}

func (o Options) config() (*pgconn.Config, error) {
	mode, roots := o.SSLMode, ""
	if o.SSLRootCert != "" {
		roots = " sslrootcert=" + quoteDSN(o.SSLRootCert)
	}
	switch {
	case mode != "":
	case roots != "":
		mode = "verify-full"
	default:
		mode = "prefer"
		if ip := net.ParseIP(o.Address.Host); o.Address.IsUnix() || o.Address.Host == "localhost" || ip != nil && ip.IsLoopback() {
			mode = "disable"
		}
	}
	config, err := pgconn.ParseConfig("dbname=pgbouncer connect_timeout=5 sslmode=" + mode + roots +
		" user=" + quoteDSN(o.User) + " host=" + quoteDSN(o.Address.Host) + " port=" + strconv.Itoa(o.Address.Port))
	if err != nil {
		return nil, fmt.Errorf("connection settings for PgBouncer at %s: %w", o.Address, err)
	}
	// PG* variables of the environment are meant for PostgreSQL, not for the
	// console: it refuses parameters that it does not know.
	config.RuntimeParams = map[string]string{"application_name": "lictor"}
	config.Password = o.Password
	config.ValidateConnect, config.AfterConnect = nil, nil
	config.MaxProtocolMessageBodyLen = maxMessage
	if !o.Address.IsUnix() && !strings.HasPrefix(mode, "verify-") && roots == "" {
		config.RequireAuth = o.RequireAuth
	}
	dialer := &net.Dialer{KeepAlive: 5 * time.Second}
	config.DialFunc = dialer.DialContext
	return config, nil
}

func quoteDSN(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'"
}

// Close ends the connection. A command that PgBouncer still holds, such as a
// PAUSE that waits for a transaction, is abandoned; its effect stays.
func (c *Conn) Close() {
	// Terminate is sent by a bounded write; a console that does not read must
	// not hold its owner up.
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	_ = c.pg.Close(ctx)
}

// Closed reports whether the connection is of no more use.
func (c *Conn) Closed() bool { return c.pg.IsClosed() }

// PID is that of the process at the other end of a unix socket, if it can be known.
func (c *Conn) PID() (pid int, known bool) { return PeerPID(c.pg.Conn()) }

// PeerPID is PID of any connection.
func PeerPID(conn net.Conn) (pid int, known bool) {
	socket, is := conn.(*net.UnixConn)
	if !is {
		return 0, false
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return 0, false
	}
	err = raw.Control(func(fd uintptr) {
		if peer, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(peer.Pid)
		}
	})
	return pid, err == nil && pid > 0
}

// Ends are the two ends of a TCP connection.
func (c *Conn) Ends() (local, remote netip.AddrPort, isTCP bool) {
	here, isTCP := c.pg.Conn().LocalAddr().(*net.TCPAddr)
	there, too := c.pg.Conn().RemoteAddr().(*net.TCPAddr)
	if !isTCP || !too {
		return local, remote, false
	}
	plain := func(a *net.TCPAddr) netip.AddrPort {
		at := a.AddrPort()
		return netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	}
	return plain(here), plain(there), true
}

// AwaitEnd waits until PgBouncer ends the connection, which it does when it
// ends itself, and returns why. When ctx is done first it returns nil and the
// connection can be used further.
func (c *Conn) AwaitEnd(ctx context.Context) error {
	for {
		err := c.pg.WaitForNotification(ctx)
		switch {
		case err == nil:
		case ctx.Err() != nil && !c.pg.IsClosed():
			return nil
		default:
			return fmt.Errorf("admin console of PgBouncer at %s: %w", c.address, classify(err))
		}
	}
}

// exec runs one command and returns its rows.
func (c *Conn) exec(ctx context.Context, command string) (rows []row, err error) {
	err = c.each(ctx, command, func(r row) error {
		values := make([][]byte, len(r.values))
		for i, v := range r.values {
			values[i] = bytes.Clone(v)
		}
		rows = append(rows, row{r.columns, values})
		return nil
	})
	return rows, err
}

// each runs one command and hands its rows to take until that fails. The values of a
// row are gone when take returns: there may be thousands.
func (c *Conn) each(ctx context.Context, command string, take func(row) error) error {
	var taken error
	results := c.pg.Exec(ctx, command)
	for results.NextResult() {
		result := results.ResultReader()
		fields := result.FieldDescriptions()
		columns := make(map[string]int, len(fields))
		for i, field := range fields {
			columns[field.Name] = i
		}
		for taken == nil && result.NextRow() {
			taken = take(row{columns, result.Values()})
		}
		_, _ = result.Close() // results.Close says the same
	}
	if err := results.Close(); err != nil {
		return fmt.Errorf("%s on PgBouncer at %s: %w", command, c.address, classify(err))
	}
	return taken
}

// query is a command of a pipeline, and who takes its rows.
type query struct {
	command string
	take    func(row) error
	// refused is told what PgBouncer has against it; nil: that is the pipeline's error.
	refused func(error)
}

// pipeline sends commands together and hands the rows of each on, as each does. The error is
// that of the first that has failed; those after it are run all the same.
func (c *Conn) pipeline(ctx context.Context, queries []query) (err error) {
	front := c.pg.Frontend()
	for _, q := range queries {
		front.Send(&pgproto3.Query{String: q.command})
	}
	// One watch for all messages: there may be thousands.
	stop := context.AfterFunc(ctx, func() { _ = c.pg.Conn().SetDeadline(time.Unix(1, 0)) })
	defer func() {
		if !stop() || errors.Is(err, ErrUnreachable) {
			c.Close()
		}
	}()
	fail := func(q query, cause error) {
		if err == nil {
			err = fmt.Errorf("%s on PgBouncer at %s: %w", q.command, c.address, cause)
		}
	}
	if e := front.Flush(); e != nil {
		fail(queries[0], fmt.Errorf("%w: %w", ErrUnreachable, e))
		return err
	}
	for _, q := range queries {
		var columns map[string]int
		for done := false; !done; {
			message, e := c.pg.ReceiveMessage(context.Background())
			if e != nil {
				err = nil // what the others said is of no use
				fail(q, fmt.Errorf("%w: %w", ErrUnreachable, errors.Join(ctx.Err(), e)))
				return err
			}
			switch m := message.(type) {
			case *pgproto3.RowDescription:
				columns = make(map[string]int, len(m.Fields))
				for i, field := range m.Fields {
					columns[string(field.Name)] = i
				}
			case *pgproto3.DataRow:
				if err == nil {
					err = q.take(row{columns, m.Values})
				}
			case *pgproto3.ErrorResponse:
				cause := fmt.Errorf("%w: %s", ErrRefused, m.Message)
				if q.refused == nil {
					fail(q, cause)
					continue
				}
				q.refused(fmt.Errorf("%s on PgBouncer at %s: %w", q.command, c.address, cause))
			case *pgproto3.ReadyForQuery:
				done = true
			}
		}
	}
	return err
}

// classify makes the kind of a failure visible to errors.Is.
func classify(err error) error {
	var refused *pgconn.PgError
	if errors.As(err, &refused) {
		return fmt.Errorf("%w: %s", ErrRefused, refused.Message)
	}
	return fmt.Errorf("%w: %w", ErrUnreachable, err)
}
