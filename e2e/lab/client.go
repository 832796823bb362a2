package lab

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
)

// ConnectLocal opens a connection of the superuser over the member's own unix
// socket, which no fault of the network reaches. The caller closes it.
func (m *Member) ConnectLocal(ctx context.Context, database string, parameters map[string]string) (*pgx.Conn, error) {
	config, err := m.lab.connConfig(m.Postgres, SuperuserRole, m.lab.Secrets.Superuser, database)
	if err != nil {
		return nil, err
	}
	config.Host = m.SocketDir
	maps.Copy(config.RuntimeParams, parameters)
	neverCancel(config, new(net.Dialer).DialContext)
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("connecting to %s on %s by its socket: %w", database, m.Name, err)
	}
	return conn, nil
}

// ConnectClient opens a connection of the application through the load balancer.
// A statement that it gives up is not cancelled: PostgreSQL would acknowledge,
// and show to others, a commit that no standby has, if it was waiting for one
// (its documentation, "Synchronous Replication"). The caller closes it.
func (s *Shard) ConnectClient(ctx context.Context) (*pgx.Conn, error) {
	config, err := s.lab.connConfig(s.lab.balancer.Listen, AppRole, s.lab.Secrets.App, s.Name)
	if err != nil {
		return nil, err
	}
	neverCancel(config, s.lab.Dial)
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("connecting to %s through the load balancer: %w", s.Name, err)
	}
	return conn, nil
}

// neverCancel makes a connection that dials once: pgx sends the cancel request
// for a statement that was given up over a connection of its own.
func neverCancel(config *pgx.ConnConfig, dial func(context.Context, string, string) (net.Conn, error)) {
	var dialled atomic.Bool
	config.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		if dialled.Swap(true) {
			return nil, errors.New("this client does not cancel statements")
		}
		return dial(ctx, network, address)
	}
}
