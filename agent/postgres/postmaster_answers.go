package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// askPostmasterEvery is how often the postmaster is asked for a new connection: each
// one is a line in the log of whoever logs connections.
const askPostmasterEvery = 5 * time.Second

// postmasterAnswers reports whether a new client is let in. The kept connection says
// nothing of that: its backend goes on when the postmaster hangs. An encryption request
// is answered by the process that the postmaster has forked for it, before anybody logs
// in, so that no connection slot is needed.
func (p *session) postmasterAnswers(ctx context.Context) error {
	if time.Since(time.Unix(0, p.answered.Load())) < askPostmasterEvery {
		return nil
	}
	host := p.address()
	network, address := "tcp", net.JoinHostPort(host, strconv.Itoa(p.port))
	if filepath.IsAbs(host) {
		network, address = "unix", filepath.Join(host, ".s.PGSQL."+strconv.Itoa(p.port))
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return fmt.Errorf("the postmaster takes no new connection: %w", err)
	}
	defer conn.Close()
	if until, limited := ctx.Deadline(); limited {
		if err := conn.SetDeadline(until); err != nil {
			return fmt.Errorf("the postmaster takes no new connection: %w", err)
		}
	}
	sslRequest, answer := []byte{0, 0, 0, 8, 4, 210, 22, 47}, make([]byte, 1)
	if _, err = conn.Write(sslRequest); err == nil {
		_, err = io.ReadFull(conn, answer)
	}
	if err != nil {
		return fmt.Errorf("the postmaster does not answer a new connection: %w", err)
	}
	// The postmaster itself answers with an error when it cannot fork (PostgreSQL's
	// documentation, 55.2.10 SSL Session Encryption).
	if answer[0] != 'S' && answer[0] != 'N' {
		said, _ := io.ReadAll(io.LimitReader(conn, 200))
		return fmt.Errorf("the postmaster lets no new client in: %q", said)
	}
	p.answered.Store(time.Now().UnixNano())
	return nil
}

// silentAfter is how long a postmaster may take to answer a new client before it counts
// as silent. It answers during a start, a recovery and a shutdown, too.
const silentAfter = 2 * time.Second

// isSilent reports whether the postmaster gives a new client no answer at all.
func (p *session) isSilent(ctx context.Context) bool {
	// The look that has failed may have taken all the time that there was.
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), silentAfter)
	defer cancel()
	err := p.postmasterAnswers(limit)
	// EAGAIN: as many clients wait to be let in as the socket has room for.
	return err != nil && (errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, syscall.EAGAIN))
}
