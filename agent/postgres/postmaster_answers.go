package postgres

import (
	"context"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strconv"
	"time"
)

// askPostmasterEvery is how often the postmaster is asked for a new connection: each
// one is a line in the log of whoever logs connections.
const askPostmasterEvery = 5 * time.Second

// postmasterAnswers reports whether a new client is let in. The kept connection says
// nothing of that: its backend goes on when the postmaster hangs. An encryption request
// is answered by the process that the postmaster has forked for it, before anybody logs
// in, so that no connection slot is needed.
func (p *Instance) postmasterAnswers(ctx context.Context) error {
	if time.Since(time.Unix(0, p.answered.Load())) < askPostmasterEvery {
		return nil
	}
	network, address := "tcp", net.JoinHostPort(p.address(), strconv.Itoa(p.port))
	if filepath.IsAbs(p.address()) {
		network, address = "unix", filepath.Join(p.address(), ".s.PGSQL."+strconv.Itoa(p.port))
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
	sslRequest := []byte{0, 0, 0, 8, 4, 210, 22, 47}
	if _, err = conn.Write(sslRequest); err == nil {
		_, err = io.ReadFull(conn, make([]byte, 1))
	}
	if err != nil {
		return fmt.Errorf("the postmaster does not answer a new connection: %w", err)
	}
	p.answered.Store(time.Now().UnixNano())
	return nil
}
