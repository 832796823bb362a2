package agent

import (
	"context"
	"errors"
	"io"
	"net"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/cluster"
)

// reply is how a port answers.
type reply int

const (
	portSilent reply = iota
	portRefuses
	portAnswers
)

// isThere reports whether a member's host is there (design 5.30): its agent or its PostgreSQL answers, or one
// alone is refused. PostgreSQL is asked only when the agent does not answer soon.
func isThere(ctx context.Context, peers *api.Client, to cluster.Member) bool {
	var asking sync.WaitGroup
	defer asking.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	replies := make(chan reply, 2) // so that neither question waits for a reader
	asking.Go(func() { replies <- replyOf(peers.Knock(ctx, api.PeerOf(to))) })
	soon := time.NewTimer(0)
	defer soon.Stop()
	if until, limited := ctx.Deadline(); limited {
		soon.Reset(time.Until(until) / 3)
	}
	got := []reply{}
	for asked := false; len(got) < 2; {
		select {
		case r := <-replies:
			if r == portAnswers {
				return true
			}
			got = append(got, r)
		case <-soon.C:
		}
		if !asked {
			asked = true
			asking.Go(func() { replies <- replyOf(knockPostgres(ctx, to)) })
		}
	}
	return (got[0] == portRefuses) != (got[1] == portRefuses)
}

// replyOf is how a port has answered that was asked with this outcome.
func replyOf(err error) reply {
	switch {
	case err == nil:
		return portAnswers
	case errors.Is(err, syscall.ECONNREFUSED):
		return portRefuses
	default:
		return portSilent
	}
}

// knockPostgres asks a PostgreSQL whether it would encrypt, which it answers before anything else.
func knockPostgres(ctx context.Context, to cluster.Member) error {
	host, port, err := to.Address()
	if err != nil {
		return err
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	if _, err := conn.Write([]byte{0, 0, 0, 8, 4, 210, 22, 47}); err != nil {
		return err
	}
	_, err = io.ReadFull(conn, make([]byte, 1))
	return err
}
