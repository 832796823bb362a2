package pooler

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

func dialAdmin(ctx context.Context, c config.Config) (*pgbouncer.Conn, error) {
	options, err := c.Admin()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, CommandBound)
	defer cancel()
	return pgbouncer.Connect(ctx, options)
}

// bounded runs one command of the admin console.
func bounded[T any](ctx context.Context, command func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, CommandBound)
	defer cancel()
	return command(ctx)
}

// Console is the reconciler's connection to the admin console, made anew when it
// has broken. It belongs to one goroutine.
type Console struct {
	config config.Config
	conn   *pgbouncer.Conn
	// LoginBound takes the place of reloadLoginBound; zero: that.
	LoginBound time.Duration
}

func NewConsole(c config.Config) *Console { return &Console{config: c} }

// use returns the connection.
func (c *Console) use(ctx context.Context) (*pgbouncer.Conn, error) {
	if c.conn != nil && !c.conn.Closed() {
		return c.conn, nil
	}
	conn, err := dialAdmin(ctx, c.config)
	if err != nil {
		return nil, err
	}
	c.conn = conn
	return conn, nil
}

func (c *Console) Close() {
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}

// Databases is SHOW DATABASES.
func (c *Console) Databases(ctx context.Context) (map[string]pgbouncer.Database, error) {
	conn, err := c.use(ctx)
	if err != nil {
		return nil, err
	}
	return bounded(ctx, conn.Databases)
}

func (c *Console) Reload(ctx context.Context) error {
	conn, err := c.use(ctx)
	if err != nil {
		return err
	}
	if err := awaitLogins(ctx, conn, cmp.Or(c.LoginBound, reloadLoginBound)); err != nil {
		return err
	}
	_, err = bounded(ctx, func(ctx context.Context) (struct{}, error) { return struct{}{}, conn.Reload(ctx) })
	return err
}

func (c *Console) Resume(ctx context.Context, database string) error {
	conn, err := c.use(ctx)
	if err != nil {
		return err
	}
	_, err = bounded(ctx, func(ctx context.Context) (struct{}, error) { return struct{}{}, conn.Resume(ctx, database) })
	if err != nil {
		return fmt.Errorf("releasing the clients of %s: %w", database, err)
	}
	return nil
}

// PoolCount sums a database's pools up.
type PoolCount struct{ Active, Waiting, Logins int }

// CountPools sums up the pools of each database.
func (c *Console) CountPools(ctx context.Context) (map[string]PoolCount, error) {
	conn, err := c.use(ctx)
	if err != nil {
		return nil, err
	}
	pools, err := bounded(ctx, conn.Pools)
	if err != nil {
		return nil, err
	}
	counts := map[string]PoolCount{}
	for _, p := range pools {
		n := counts[p.Database]
		counts[p.Database] = PoolCount{n.Active + p.ServersActive, n.Waiting + p.ClientsWaiting, n.Logins + p.ServersIn}
	}
	return counts, nil
}
