package faults

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lictor-ha/lictor/e2e/lab"
)

// clientTables are what the checked workloads use; the application owns them.
const clientTables = `
CREATE TABLE IF NOT EXISTS registers (key text PRIMARY KEY, value bigint NOT NULL);
CREATE TABLE IF NOT EXISTS lists (key text PRIMARY KEY, vals bigint[] NOT NULL);
ALTER TABLE registers OWNER TO ` + lab.AppRole + `;
ALTER TABLE lists OWNER TO ` + lab.AppRole

// The checked workloads: how many clients each has, how often each begins an
// operation, how many keys they share, and for how long they use a set of keys.
// A key is left, too, once an operation on it has an unknown outcome: each such
// operation doubles what the checker has to try.
const (
	registerClients = 3
	listClients     = 2
	operationEvery  = 20 * time.Millisecond
	keysAtOnce      = 2
	keysFor         = 2 * time.Second
	operationLimit  = 5 * time.Second
)

// Checked is the clients of one round whose histories are checked.
type Checked struct {
	shard *lab.Shard
	name  string
	begun time.Time

	clients atomic.Int64 // their ids
	values  atomic.Int64

	mu        sync.Mutex
	registers []porcupine.Operation
	lists     []porcupine.Operation

	cancel context.CancelFunc
	done   sync.WaitGroup
}

// startChecked starts the clients; the caller stops them. The name must not have
// been used before on this shard.
func startChecked(ctx context.Context, shard *lab.Shard, name string, seed uint64) *Checked {
	ctx, cancel := context.WithCancel(ctx)
	c := &Checked{shard: shard, name: name, begun: time.Now(), cancel: cancel}
	for i := range registerClients + listClients {
		next, history := c.registerRequest, &c.registers
		if i >= registerClients {
			next, history = c.listRequest, &c.lists
		}
		random := rand.New(rand.NewPCG(seed, uint64(i)))
		c.done.Go(func() { c.run(ctx, random, next, history) })
	}
	return c
}

// Stop ends the clients and waits for them. The operations under way are given
// up, their outcomes unknown.
func (c *Checked) Stop() {
	c.cancel()
	c.done.Wait()
}

// generation is a set of keys.
type generation struct {
	number int
	last   int64 // what was read or written last, for swaps
}

func (c *Checked) registerRequest(random *rand.Rand, g *generation) request {
	r := request{Key: c.key("r", random, g), Value: c.values.Add(1)}
	switch random.IntN(3) {
	case 0:
		r.Kind = opWrite
	case 1:
		r.Kind, r.Old = opSwap, g.last
	default:
		r.Kind = opRead
	}
	return r
}

func (c *Checked) listRequest(random *rand.Rand, g *generation) request {
	r := request{Kind: opRead, Key: c.key("l", random, g), Value: c.values.Add(1)}
	if random.IntN(2) == 0 {
		r.Kind = opAppend
	}
	return r
}

// key takes one of the present generation. Generations follow the clock, so that
// all clients use the same keys at a time, and each its own count of those that
// it left early.
func (c *Checked) key(prefix string, random *rand.Rand, g *generation) string {
	if now := int(time.Since(c.begun) / keysFor); now > g.number {
		g.number = now
	}
	return fmt.Sprintf("%s/%s%d.%d", c.name, prefix, g.number, random.IntN(keysAtOnce))
}

// run is the life of one client: one operation at a time.
func (c *Checked) run(ctx context.Context, random *rand.Rand, next func(*rand.Rand, *generation) request, history *[]porcupine.Operation) {
	tick := time.NewTicker(operationEvery)
	defer tick.Stop()
	id := int(c.clients.Add(1))
	var conn *pgx.Conn
	defer func() { hangUp(conn) }()
	g := &generation{}
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if conn == nil {
			var err error
			if conn, err = c.connect(ctx); err != nil {
				conn = nil
				continue
			}
		}
		in := next(random, g)
		call := time.Since(c.begun)
		out, err := perform(ctx, conn, in)
		end := int64(time.Since(c.begun))
		if err != nil {
			hangUp(conn)
			conn = nil
		}
		switch {
		case err == nil:
			switch {
			case in.Kind == opRead:
				g.last = out.Value
			case in.Kind == opWrite || out.Swapped:
				g.last = in.Value
			}
		case in.Kind == opRead || didNothing(err):
			continue
		default:
			out, end = response{Unknown: true}, never
			g.number++ // leave the keys
		}
		c.mu.Lock()
		*history = append(*history, porcupine.Operation{ClientId: id, Input: in, Call: int64(call), Output: out, Return: end})
		c.mu.Unlock()
		if end == never {
			// To a checker, a client does one thing at a time: this one never ends.
			id = int(c.clients.Add(1))
		}
	}
}

func (c *Checked) connect(ctx context.Context) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, operationLimit)
	defer cancel()
	return c.shard.ConnectClient(ctx)
}

// perform runs one operation, a transaction of its own.
func perform(ctx context.Context, conn *pgx.Conn, in request) (response, error) {
	ctx, cancel := context.WithTimeout(ctx, operationLimit)
	defer cancel()
	var out response
	switch in.Kind {
	case opWrite:
		_, err := conn.Exec(ctx, "INSERT INTO registers VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = excluded.value", in.Key, in.Value)
		return out, err
	case opSwap:
		tag, err := conn.Exec(ctx, "UPDATE registers SET value = $3 WHERE key = $1 AND value = $2", in.Key, in.Old, in.Value)
		out.Swapped = tag.RowsAffected() == 1
		return out, err
	case opAppend:
		_, err := conn.Exec(ctx, "INSERT INTO lists VALUES ($1, ARRAY[$2::bigint]) ON CONFLICT (key) DO UPDATE SET vals = lists.vals || excluded.vals", in.Key, in.Value)
		return out, err
	}
	if strings.Contains(in.Key, "/l") {
		var list []int64
		err := conn.QueryRow(ctx, "SELECT vals FROM lists WHERE key = $1", in.Key).Scan(&list)
		if errors.Is(err, pgx.ErrNoRows) {
			err = nil
		}
		var words []string
		for _, v := range list {
			words = append(words, strconv.FormatInt(v, 10))
		}
		out.List = strings.Join(words, ",")
		return out, err
	}
	err := conn.QueryRow(ctx, "SELECT value FROM registers WHERE key = $1", in.Key).Scan(&out.Value)
	if errors.Is(err, pgx.ErrNoRows) {
		out.Value, err = absent, nil
	}
	return out, err
}

// didNothing tells whether an error says that the operation had, and will have,
// no effect: PostgreSQL refused it before it committed. All else leaves it open,
// what a pooler says and also pgconn.SafeToRetry: pgx v5.12 answers true for
// "conn closed", which it returned for statements that had been sent and took
// effect, when the load balancer hung up meanwhile.
func didNothing(err error) bool {
	var refused *pgconn.PgError
	const readOnly, serialization, deadlock, diskFull = "25006", "40001", "40P01", "53100"
	return errors.As(err, &refused) && slices.Contains([]string{readOnly, serialization, deadlock, diskFull}, refused.Code)
}

// Judge checks both histories; call it after Stop. It returns the worse verdict,
// and what a violation looks like as pages for a browser, by name.
func (c *Checked) Judge(limit time.Duration) (Verdict, map[string]Picture) {
	pictures := map[string]Picture{}
	worst := Linearizable
	for _, part := range []struct {
		name    string
		model   porcupine.Model
		history []porcupine.Operation
	}{{"registers", registers(), c.registers}, {"lists", lists(), c.lists}} {
		verdict, info := judge(part.model, part.history, limit)
		if verdict == Illegal {
			pictures[part.name] = func(path string) error { return porcupine.VisualizePath(part.model, info, path) }
		}
		if verdict == Illegal || worst == Linearizable {
			worst = verdict
		}
	}
	return worst, pictures
}

// Picture writes a history that is not linearizable as a page.
type Picture func(path string) error

// Operations is how many operations the histories have.
func (c *Checked) Operations() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.registers) + len(c.lists)
}
