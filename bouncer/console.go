package bouncer

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
	ctx, cancel := context.WithTimeout(ctx, linkBound)
	defer cancel()
	return pgbouncer.Connect(ctx, options)
}

// bounded runs one command of the admin console.
func bounded[T any](ctx context.Context, command func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, linkBound)
	defer cancel()
	return command(ctx)
}

// console is the conductor's connection to the admin console, made anew when it
// has broken. It belongs to one goroutine.
type console struct {
	config config.Config
	conn   *pgbouncer.Conn
	// loginBound takes the place of reloadLoginBound; zero: that.
	loginBound time.Duration
}

func newConsole(c config.Config) *console { return &console{config: c} }

// use returns the connection.
func (c *console) use(ctx context.Context) (*pgbouncer.Conn, error) {
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

func (c *console) close() {
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}

// databases is SHOW DATABASES.
func (c *console) databases(ctx context.Context) (map[string]pgbouncer.Database, error) {
	conn, err := c.use(ctx)
	if err != nil {
		return nil, err
	}
	return bounded(ctx, conn.Databases)
}

func (c *console) reload(ctx context.Context) error {
	conn, err := c.use(ctx)
	if err != nil {
		return err
	}
	if err := awaitLogins(ctx, conn, cmp.Or(c.loginBound, reloadLoginBound)); err != nil {
		return err
	}
	_, err = bounded(ctx, func(ctx context.Context) (struct{}, error) { return struct{}{}, conn.Reload(ctx) })
	return err
}

func (c *console) resume(ctx context.Context, database string) error {
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

// poolCount sums a database's pools up.
type poolCount struct{ active, waiting, logins int }

// countPools sums up the pools of each database.
func (c *console) countPools(ctx context.Context) (map[string]poolCount, error) {
	conn, err := c.use(ctx)
	if err != nil {
		return nil, err
	}
	pools, err := bounded(ctx, conn.Pools)
	if err != nil {
		return nil, err
	}
	counts := map[string]poolCount{}
	for _, p := range pools {
		n := counts[p.Database]
		counts[p.Database] = poolCount{n.active + p.ServersActive, n.waiting + p.ClientsWaiting, n.logins + p.ServersIn}
	}
	return counts, nil
}
