package pooler

import (
	"cmp"
	"context"
	"errors"
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
	known      known
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

// Databases is SHOW DATABASES. PgBouncer leaves those out that it has made by its database *
// and takes for idle: it does so three times a second, for good, and also while the first client
// logs in. Such a one that has clients is brought back: it must be held as any.
func (c *Console) Databases(ctx context.Context) (map[string]pgbouncer.Database, error) {
	conn, err := c.use(ctx)
	if err != nil {
		return nil, err
	}
	all, err := bounded(ctx, conn.Databases)
	if err != nil {
		return nil, err
	}
	return c.bringBack(ctx, conn, all)
}

// bringBack is all databases with those brought back that are hidden.
func (c *Console) bringBack(ctx context.Context, conn *pgbouncer.Conn, all map[string]pgbouncer.Database) (map[string]pgbouncer.Database, error) {
	if len(c.config.PgBouncer.Fallback) == 0 {
		return all, nil
	}
	pools, err := bounded(ctx, conn.Pools)
	if err != nil {
		return nil, err
	}
	hidden := false
	for _, p := range pools {
		if _, shown := all[p.Database]; shown || p.Database == "pgbouncer" || p.ClientsActive+p.ClientsWaiting == 0 {
			continue
		}
		_, err := bounded(ctx, func(ctx context.Context) (struct{}, error) { return struct{}{}, conn.Enable(ctx, p.Database) })
		if errors.Is(err, pgbouncer.ErrRefused) { // it has gone, or has a name that no command takes: no shard waits for that
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("a database of pgbouncer.fallback: %w", err)
		}
		hidden = true
	}
	if !hidden {
		return all, nil
	}
	return bounded(ctx, conn.Databases)
}

// Config is SHOW CONFIG.
func (c *Console) Config(ctx context.Context) (map[string]pgbouncer.Setting, error) {
	conn, err := c.use(ctx)
	if err != nil {
		return nil, err
	}
	config, err := bounded(ctx, conn.Config)
	if err != nil {
		return nil, err
	}
	c.note(conn, config)
	return config, nil
}

// note keeps what need not be asked before each RELOAD.
func (c *Console) note(conn *pgbouncer.Conn, config map[string]pgbouncer.Setting) {
	if c.known.conn != conn {
		c.known = known{conn: conn}
	}
	c.known.serverTLS = config["server_tls_sslmode"].Value
}

// reloadable is the connection when a RELOAD cuts no login off.
func (c *Console) reloadable(ctx context.Context) (*pgbouncer.Conn, error) {
	conn, err := c.use(ctx)
	if err != nil {
		return nil, err
	}
	return conn, c.awaitLogins(ctx, conn, cmp.Or(c.LoginBound, reloadLoginBound))
}

func (c *Console) Reload(ctx context.Context) error {
	conn, err := c.reloadable(ctx)
	if err != nil {
		return err
	}
	_, err = bounded(ctx, func(ctx context.Context) (struct{}, error) { return struct{}{}, conn.Reload(ctx) })
	return err
}

// isSame reports whether this is the connection of the last Config: PgBouncer is the same process.
func (c *Console) isSame() bool { return c.conn != nil && !c.conn.Closed() && c.known.conn == c.conn }

// ReloadAndShow is Reload, Databases and, if that is wanted, Config.
func (c *Console) ReloadAndShow(ctx context.Context, settings bool) (all map[string]pgbouncer.Database, config map[string]pgbouncer.Setting, err error) {
	conn, err := c.reloadable(ctx)
	if err != nil {
		return nil, nil, err
	}
	all, err = bounded(ctx, func(ctx context.Context) (all map[string]pgbouncer.Database, err error) {
		all, config, err = conn.ReloadAndShow(ctx, settings)
		return all, err
	})
	if err != nil {
		return nil, nil, err
	}
	if settings {
		c.note(conn, config)
	}
	all, err = c.bringBack(ctx, conn, all)
	return all, config, err
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

// ResumeAll is Resume of many. An error that is not in refused says that PgBouncer cannot be reached.
func (c *Console) ResumeAll(ctx context.Context, databases []string) (refused map[string]error, err error) {
	conn, err := c.use(ctx)
	if err != nil {
		return nil, err
	}
	refused, err = bounded(ctx, func(ctx context.Context) (map[string]error, error) { return conn.ResumeAll(ctx, databases) })
	if err != nil {
		return nil, fmt.Errorf("releasing clients: %w", err)
	}
	return refused, nil
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
