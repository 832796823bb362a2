package pooler

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

const (
	// frontPace is how often PgBouncer is looked at as clients see it, however many ask.
	frontPace = time.Second
	// frontBound is how long it may take to answer.
	frontBound = time.Second
	// frontUser is who knocks.
	frontUser = "lictor_health"
)

// Front looks at PgBouncer as clients do: it begins a login at each address on which
// PgBouncer listens, and goes away at its first word. That word comes without a
// primary; where it would not, silence is no fault. It comes as a user whom nobody has,
// so that no pool is made for the sake of it.
type Front struct {
	config config.Config
	link   *Link
	// served is a database that clients may ask for, empty: there is none; listening is
	// where PgBouncer listens.
	served    func() string
	listening func() Listening

	mu      sync.Mutex
	looked  time.Time
	reasons []string
	// closed: PgBouncer takes clients no more, for sure.
	closed bool
}

func NewFront(c config.Config, link *Link, served func() string, listens func() Listening) *Front {
	return &Front{config: c, link: link, served: served, listening: listens}
}

// Look tells why clients are not served, and whether that is so because PgBouncer has
// closed or was closed, so that none comes to it. What one asks for serves all who ask
// within frontPace, so it is not broken off when that one goes away.
func (f *Front) Look(ctx context.Context) (reasons []string, closed bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.link.Now().Up {
		return nil, f.link.isEnding() || isClosed(ctx, f.config) // there are other reasons
	}
	if time.Since(f.looked) < frontPace {
		return f.reasons, f.closed
	}
	database := f.served()
	addresses := f.listening().addresses(f.config)
	if database == "" {
		return nil, false // there are other reasons
	}
	if f.config.Setting("auth_user") != "" {
		database = frontUser // of one that is there the user would be looked for at its primary
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*frontBound)
	defer cancel()
	failures := make([]error, len(addresses))
	var knocking sync.WaitGroup
	for i, a := range addresses {
		knocking.Go(func() { failures[i] = knock(ctx, a, database) })
	}
	knocking.Wait()
	f.reasons, f.closed = nil, false
	for i, err := range failures {
		if err != nil {
			f.closed = f.closed || addresses[i].network == "unix" && isAbsent(err, addresses[i].address)
			f.reasons = append(f.reasons, fmt.Sprintf("PgBouncer takes no client at %s: %v", addresses[i].address, err))
		}
	}
	f.closed = f.closed || f.link.doorClosed()
	f.looked = time.Now()
	return f.reasons, f.closed
}

// isClosed reports whether nobody listens at the console's unix socket.
func isClosed(ctx context.Context, c config.Config) bool {
	options, err := c.Admin()
	if err != nil || !options.Address.IsUnix() {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, frontBound)
	defer cancel()
	path := socketPath(options.Address)
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err == nil {
		_ = conn.Close() // it takes connections, which is all that was asked
	}
	return isAbsent(err, path)
}

// knock begins a login.
func knock(ctx context.Context, a frontAddress, database string) error {
	conn, err := new(net.Dialer).DialContext(ctx, a.network, a.address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(frontBound)); err != nil {
		return err
	}
	if a.network == "tcp" {
		encrypted, err := askTLS(conn)
		if err != nil {
			return err
		}
		if encrypted { // who it is does not matter, and what it wants to see cannot be known
			secure := tls.Client(conn, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // no secret is told
			if secure.HandshakeContext(ctx) != nil {
				return nil
			}
			conn = secure
		}
	}
	frontend := pgproto3.NewFrontend(conn, conn)
	frontend.SetMaxBodyLen(probeWord) // while PgBouncer is down anybody may have its port
	frontend.Send(&pgproto3.StartupMessage{
		ProtocolVersion: pgproto3.ProtocolVersionNumber,
		Parameters:      map[string]string{"user": frontUser, "database": database},
	})
	if err := frontend.Flush(); err != nil {
		return err
	}
	said, err := frontend.Receive()
	late := net.Error(nil)
	switch {
	case errors.As(err, &late) && late.Timeout():
		return nil // it waits for a primary
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("it closed the connection")
	case err != nil:
		return err
	}
	if refused, is := said.(*pgproto3.ErrorResponse); is && refusesAll(refused.Message) {
		return errors.New(refused.Message)
	}
	return nil
}

// refusesAll reports whether PgBouncer's word to a client is one to everybody, and not on
// who it is.
func refusesAll(message string) bool {
	for _, part := range []string{"no more connections allowed", "shutting down", "does not allow connections"} {
		if strings.Contains(message, part) {
			return true
		}
	}
	return false
}

// askTLS asks whether a connection is to be encrypted.
func askTLS(conn net.Conn) (yes bool, err error) {
	request, err := (&pgproto3.SSLRequest{}).Encode(nil)
	if err != nil {
		return false, err
	}
	if _, err := conn.Write(request); err != nil {
		return false, err
	}
	answer := make([]byte, 1)
	if _, err := io.ReadFull(conn, answer); err != nil {
		return false, fmt.Errorf("it does not answer: %w", err)
	}
	return answer[0] == 'S', nil
}

// Listening is where PgBouncer says that it listens.
type Listening struct{ hosts, port, socketDir string }

// listeningBy is what SHOW CONFIG says of it.
func listeningBy(standing map[string]pgbouncer.Setting) Listening {
	return Listening{standing["listen_addr"].Value, standing["listen_port"].Value, standing["unix_socket_dir"].Value}
}

type frontAddress struct{ network, address string }

// addresses are those where this bouncer can knock.
func (l Listening) addresses(c config.Config) (list []frontAddress) {
	if l.port == "" {
		return nil
	}
	admin, err := c.Admin()
	if err != nil {
		return nil
	}
	beside := c.IsBeside()
	for host := range strings.SplitSeq(l.hosts, ",") {
		host = strings.TrimSpace(host)
		ip := net.ParseIP(host)
		switch {
		case host == "":
			continue
		case host == "*" || ip != nil && ip.IsUnspecified():
			if host = "127.0.0.1"; !beside {
				host = admin.Address.Host
			}
		case ip != nil && ip.IsLoopback() && !beside:
			continue
		}
		list = append(list, frontAddress{"tcp", net.JoinHostPort(host, l.port)})
	}
	if beside && strings.HasPrefix(l.socketDir, "/") {
		list = append(list, frontAddress{"unix", filepath.Join(l.socketDir, ".s.PGSQL."+l.port)})
	}
	return list
}
