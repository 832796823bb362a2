package pooler

import (
	"context"
	"slices"
	"time"

	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

const (
	// reloadLoginBound is how long a RELOAD waits for logins. They take some 10 ms, and some
	// 100 ms each where a busy host makes the connections of all shards anew; logins to a
	// server that is gone hold no failover up for longer. (Those of a shard whose clients
	// are held are none: PAUSE ends them.)
	reloadLoginBound = time.Second
	reloadLoginPace  = 2 * time.Millisecond
)

// known is what need not be asked before each RELOAD: it changes by nothing else.
type known struct {
	conn      *pgbouncer.Conn // of which it is known
	version   pgbouncer.Version
	serverTLS string // server_tls_sslmode
}

// awaitLogins waits until PgBouncer logs in to no server, where RELOAD would cut that off.
// PgBouncer before 1.24 gives up the connections of all databases at each RELOAD when it
// comes to servers by TLS, and counts a login that it cuts off as one that the server has
// refused: a client that comes before the next login is done gets an error then
// ("server login has been failing"), whatever its shard has to do with the change.
func (c *Console) awaitLogins(ctx context.Context, conn *pgbouncer.Conn, bound time.Duration) error {
	if c.known.conn != conn || c.known.version == (pgbouncer.Version{}) {
		version, err := bounded(ctx, conn.Version)
		if err != nil {
			return err
		}
		if _, err := c.Config(ctx); err != nil {
			return err
		}
		c.known.version = version
	}
	if c.known.version.AtLeast(1, 24) || c.known.serverTLS == "disable" {
		return nil
	}
	late := time.NewTimer(bound)
	defer late.Stop()
	for {
		pools, err := bounded(ctx, conn.Pools)
		if err != nil || !slices.ContainsFunc(pools, func(p pgbouncer.Pool) bool { return p.ServersIn > 0 }) {
			return err
		}
		select {
		case <-time.After(reloadLoginPace):
		case <-late.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
