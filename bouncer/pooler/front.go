package pooler

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/lictor-ha/lictor/bouncer/config"
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
	// served is a database that clients may ask for, empty: there is none; listening is
	// where PgBouncer listens, up whether it answers.
	served    func() string
	listening func() Listening
	up        func() bool

	mu      sync.Mutex
	looked  time.Time
	reasons []string
}

func NewFront(c config.Config, served func() string, listens func() Listening, up func() bool) *Front {
	return &Front{config: c, served: served, listening: listens, up: up}
}

// Look tells why clients are not served. What one asks for serves all who ask within
// frontPace, so it is not broken off when that one goes away.
func (f *Front) Look(ctx context.Context) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if time.Since(f.looked) < frontPace {
		return f.reasons
	}
	database := f.served()
	addresses := f.listening().addresses(f.config)
	if database == "" || !f.up() {
		return nil // there are other reasons
	}
	if f.config.Setting("auth_user") != "" {
		database = frontUser // of one that is there the user would be looked for at its primary
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*frontBound)
	defer cancel()
	failures := make([]error, len(addresses))
	var knocking sync.WaitGroup
	for i, a := range addresses {
		knocking.Go(func() { failures[i] = f.knock(ctx, a, database) })
	}
	knocking.Wait()
	f.reasons = nil
	for i, err := range failures {
		if err != nil {
			f.reasons = append(f.reasons, fmt.Sprintf("PgBouncer takes no client at %s: %v", addresses[i].address, err))
		}
	}
	f.looked = time.Now()
	return f.reasons
}

// knock begins a login.
func (f *Front) knock(ctx context.Context, a frontAddress, database string) error {
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

// socketTable reads one of the kernel's tables of sockets.
func socketTable(name string) ([]byte, error) { return os.ReadFile("/proc/self/net/" + name) }

// isListening reports whether anything listens where the console is, false only when that
// is sure: a PgBouncer that was told to end when its clients have gone takes no more.
func isListening(c config.Config, table func(name string) ([]byte, error)) bool {
	options, err := c.Admin()
	if err != nil || !c.IsBeside() {
		return true
	}
	if options.Address.IsUnix() {
		text, err := table("unix")
		path := filepath.Join(options.Address.Host, ".s.PGSQL."+strconv.Itoa(options.Address.Port))
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) == 8 && f[7] == path && f[3] == "00010000" {
				return true
			}
		}
		return err != nil
	}
	for _, name := range []string{"tcp", "tcp6"} {
		text, err := table(name)
		if err != nil && name == "tcp" {
			return true
		}
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) > 3 && f[3] == "0A" && strings.HasSuffix(f[1], fmt.Sprintf(":%04X", options.Address.Port)) {
				return true
			}
		}
	}
	return false
}
