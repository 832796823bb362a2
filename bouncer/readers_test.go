package bouncer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
	"github.com/lictor-ha/lictor/templates"
)

// Readers go where bouncer.yml says, shard by shard, as replicas come and go.
func TestReadersOfShards(t *testing.T) {
	w := newWorld(t, func(c *config.Config) {
		for scope, readers := range map[string]string{"s1": "", "strict": "strict", "off": "off"} {
			c.Shards = append(c.Shards, config.Shard{Scope: scope, Databases: []string{scope + "=postgres"}, Readers: readers})
		}
		// Nobody has the readers' name of a shard without readers.
		c.Shards = append(c.Shards, config.Shard{Scope: "other", Databases: []string{"off_ro=postgres"}, Readers: "off"})
	})
	put := func(replicas ...cluster.RouteMember) {
		for _, s := range w.config.Shards {
			r := w.route(0, cluster.RouteOpen)
			r.Replicas = replicas
			w.put(cluster.NewKeys("", s.Scope, w.config.RoutesPrefix).Route(), r)
		}
	}
	// await waits for the databases, and for where the status says that readers go.
	await := func(want map[string]int, told map[config.ShardID]string) {
		t.Helper()
		w.await("databases", func() error {
			all, err := w.admin().Databases(w.ctx)
			if err != nil {
				return err
			}
			got := map[string]int{}
			for name, d := range all {
				got[name] = d.Port
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				return fmt.Errorf("%v, want %v", got, want)
			}
			s, err := w.status()
			if err != nil {
				return err
			}
			for id, to := range told {
				if s.Shards[id].Readers != to {
					return fmt.Errorf("readers of %s go to %q, want %q", id, s.Shards[id].Readers, to)
				}
			}
			return nil
		})
	}
	primary, replica := w.site.members[0], w.site.members[1]
	at := fmt.Sprintf("127.0.0.1:%d", replica.Port)
	put()
	w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	without := map[string]int{"s1": primary.Port, "s1_ro": primary.Port, "strict": primary.Port, "off": primary.Port, "off_ro": primary.Port}
	await(without, map[config.ShardID]string{"service/s1": "primary", "service/strict": "none", "service/off": "off"})
	w.awaitProblem("no replica takes readers")
	w.awaitHealthy()
	put(replica)
	await(map[string]int{
		"s1": primary.Port, "s1_ro": replica.Port, "strict": primary.Port, "strict_ro": replica.Port, "off": primary.Port, "off_ro": primary.Port,
	}, map[config.ShardID]string{"service/s1": at, "service/strict": at, "service/off": "off"})
	w.awaitProblem("")
	if got := w.where(w.connect("strict_ro")); got != 1 {
		t.Errorf("a reader is answered by member %d", got)
	}
	put()
	await(without, map[config.ShardID]string{"service/strict": "none"})
	// Of replicas on several ports one group serves, the others are told.
	put(replica, cluster.RouteMember{Name: "r2", Host: "127.0.0.2", Port: replica.Port}, cluster.RouteMember{Name: "r3", Host: "127.0.0.1", Port: 1})
	s := w.awaitShard("readers of two ports", func(s ShardStatus) bool { return len(s.ReadersElsewhere) > 0 })
	if want := fmt.Sprintf("[127.0.0.1,127.0.0.2]:%d", replica.Port); !slices.Equal(s.ReadersElsewhere, []string{"r3"}) || s.Readers != want {
		t.Errorf("readers go to %s, not to %v", s.Readers, s.ReadersElsewhere)
	}
}

// Clients of a database that no shard has go to the shard of the fallback, wait while it is
// held, and follow it.
func TestFallbackFollowsShard(t *testing.T) {
	w := newWorld(t, func(c *config.Config) {
		c.PgBouncer.Fallback = map[string]any{"shard": "s1", "dbname": "postgres", "application_name": "a fallback"}
		c.Shards = []config.Shard{{Scope: "s1", Databases: []string{"s1=postgres"}}}
	})
	w.bouncer()
	w.awaitProblem("pgbouncer.fallback: no route of shard s1 is known: there is no database *")
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.pgbouncer()
	w.awaitLeader(0)
	w.awaitProblem("")
	conn := w.connect("any-name")
	if got := w.where(conn); got != 0 {
		t.Fatalf("answered by member %d", got)
	}
	w.put(w.keys.Route(), w.route(0, cluster.RouteHandover))
	w.await("hold of both", func() error {
		if all, err := w.admin().Databases(w.ctx); err != nil || !all["any-name"].Paused || !all["s1"].Paused {
			return fmt.Errorf("%+v %w", all, err)
		}
		return nil
	})
	waits := w.awaitMember1(conn)
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	w.awaitLeader(1)
	if err := <-waits; err != nil {
		t.Error(err)
	}
	w.await("release of both", func() error {
		if all, err := w.admin().Databases(w.ctx); err != nil || all["any-name"].Paused || all["s1"].Paused {
			return fmt.Errorf("%+v %w", all, err)
		}
		return nil
	})
	if got := w.where(w.connect("another")); got != 1 {
		t.Errorf("another name is answered by member %d", got)
	}
	w.awaitHealthy()
}

// Another fallback, whose file cannot stand as a setting is refused or the template waits, keeps
// no shard at an old primary, and clients of other names follow it all the same. A template's
// own * is told, and keeps none either.
func TestChangedFallbackPinsNoShard(t *testing.T) {
	fallback := func(c *config.Config, to string) {
		c.PgBouncer.Fallback = map[string]any{"shard": to, "dbname": "postgres"}
	}
	w := newWorld(t, func(c *config.Config) { fallback(c, "s1") })
	s2 := cluster.NewKeys("", "s2", w.config.RoutesPrefix)
	put := func(first, second int) {
		w.put(w.keys.Route(), w.route(first, cluster.RouteOpen))
		w.put(s2.Route(), w.route(second, cluster.RouteOpen))
	}
	name := 0 // PgBouncer sees each for the first time
	leads := func(when string, first, second, other int) {
		t.Helper()
		w.await(when, func() error {
			all, err := w.admin().Databases(w.ctx)
			if err != nil || all["s1"].Port != w.site.members[first].Port || all["s2"].Port != w.site.members[second].Port {
				return fmt.Errorf("%+v %w", all, err)
			}
			name++
			conn := w.connect(fmt.Sprint("name-", name))
			if got := w.where(conn); got != other {
				err = fmt.Errorf("another name is answered by member %d", got)
			}
			return errors.Join(err, conn.Close(w.ctx))
		})
	}
	put(0, 1)
	w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	w.awaitHealthy()
	leads("first", 0, 1, 0)
	refused := w.config
	fallback(&refused, "s2")
	refused.PgBouncer.Settings = map[string]any{"setting_of_nobody": 5}
	w.changes <- refused
	w.await("the refusal being told", func() error { return w.warned("the last good configuration is in place") })
	leads("refused setting", 0, 1, 1)
	put(1, 0)
	leads("failover of both", 1, 0, 0)

	waiting := w.config
	fallback(&waiting, "s1")
	waiting.Template = w.config.PgBouncer.Config + ".ctmpl"
	w.write("pgbouncer.ini.ctmpl", "{{ key \""+w.config.RoutesPrefix+"/nothing\" }}")
	w.changes <- waiting
	w.await("the waiting being told", func() error { return w.warned("waiting for data") })
	leads("template that waits", 1, 0, 1)
	put(0, 1)
	leads("failover while it waits", 0, 1, 0)

	text, err := templates.Read(templates.PgBouncer)
	if err != nil {
		t.Fatal(err)
	}
	own := fmt.Sprintf("* = host=127.0.0.1 port=%d dbname=postgres\n\n[pgbouncer]\n", w.site.members[1].Port)
	begin, rest, _ := strings.Cut(string(text), "{{- with fallback }}")
	_, rest, _ = strings.Cut(rest, "[pgbouncer]\n")
	w.write("pgbouncer.ini.ctmpl", begin+"\n"+own+rest)
	w.changes <- waiting
	w.awaitProblem("pgbouncer.fallback: database * leads to \"127.0.0.1\"")
	w.awaitHealthy()
	leads("own line", 0, 1, 1)
	put(1, 0)
	leads("failover with it", 1, 0, 1)
	w.awaitProblem("")
}

// A handover of the fallback's shard counts the transactions in databases that PgBouncer has
// made by *, and its clients that wait.
func TestHandoverOfFallbackAwaitsTransactions(t *testing.T) {
	w := serving(t, func(c *config.Config) {
		c.PgBouncer.Fallback = map[string]any{"shard": "s1", "dbname": "postgres"}
	})
	busy := w.connect("any-name")
	w.exec(busy, "BEGIN; SELECT 1")
	a := w.announce("h1", 30*time.Second)
	if answer := a.held(); answer.Busy != 1 || answer.Quiet() {
		t.Fatalf("answer is %+v", answer)
	}
	w.exec(busy, "COMMIT")
	if _, answer := a.ask(20 * time.Second); !answer.Quiet() {
		t.Fatalf("answer is %+v", answer)
	}
	waits := w.awaitMember1(busy)
	w.await("the waiting client being counted", func() error {
		if _, answer, err := a.post(0); err != nil || answer.ClientsWaiting != 1 {
			return fmt.Errorf("%+v %w", answer, err)
		}
		return nil
	})
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	if err := <-waits; err != nil {
		t.Error(err)
	}
}

// slowLogin is a connection to PgBouncer whose client says who it is, and shows its password
// when it may.
type slowLogin struct {
	net.Conn
	writes int
	may    <-chan struct{}
}

func (c *slowLogin) Write(p []byte) (int, error) {
	if c.writes++; c.writes == 2 {
		<-c.may
	}
	return c.Conn.Write(p)
}

// A client of the fallback whose login takes so long that PgBouncer has put its database away as
// idle meanwhile waits as any, and a handover counts its transaction.
func TestFallbackOfSlowLogin(t *testing.T) {
	w := serving(t, func(c *config.Config) {
		c.PgBouncer.Fallback = map[string]any{"shard": "s1", "dbname": "postgres"}
	})
	may, result := make(chan struct{}), make(chan error, 1)
	options, err := pgconn.ParseConfig(w.dsn("any-name"))
	if err != nil {
		t.Fatal(err)
	}
	options.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
		return &slowLogin{Conn: conn, may: may}, err
	}
	var client *pgconn.PgConn
	go func() {
		var err error
		client, err = pgconn.ConnectConfig(w.ctx, options)
		result <- err
	}()
	w.awaitPool("the database that PgBouncer makes", func(p pgbouncer.Pool) bool { return p.Database == "any-name" })
	w.await("the database that PgBouncer takes for idle", func() error {
		all, err := w.admin().Databases(w.ctx)
		if _, shown := all["any-name"]; err == nil && shown {
			err = fmt.Errorf("%+v", all)
		}
		return err
	})
	close(may)
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close(context.Background()) })
	w.exec(client, "BEGIN; SELECT 1")
	a := w.announce("h1", 30*time.Second)
	if answer := a.held(); answer.Busy != 1 || answer.Quiet() {
		t.Fatalf("answer is %+v", answer)
	}
	w.exec(client, "COMMIT")
	waits := w.awaitMember1(client)
	w.await("the waiting client being counted", func() error {
		if _, answer, err := a.post(0); err != nil || answer.ClientsWaiting != 1 {
			return fmt.Errorf("%+v %w", answer, err)
		}
		return nil
	})
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	if err := <-waits; err != nil {
		t.Error(err)
	}
}

// The primary of the fallback is looked for when clients of none but databases that PgBouncer
// has made by * miss it; readers at a replica are no reason.
func TestLostPrimaryOfFallback(t *testing.T) {
	w := newWorld(t, func(c *config.Config) {
		c.PgBouncer.Fallback = map[string]any{"shard": "s1", "dbname": "postgres"}
	})
	behind := newProxy(t, net.JoinHostPort(w.site.members[0].Host, strconv.Itoa(w.site.members[0].Port)))
	host, port, err := net.SplitHostPort(behind.address)
	if err != nil {
		t.Fatal(err)
	}
	r := w.route(0, cluster.RouteOpen)
	r.Leader.Host = host
	if r.Leader.Port, err = strconv.Atoi(port); err != nil {
		t.Fatal(err)
	}
	w.put(w.keys.Route(), r)
	w.bouncer()
	w.pgbouncer()
	w.awaitHealthy()
	client := w.connect("any-name")
	w.exec(client, "SELECT 1")
	behind.set(true)
	answer := w.awaitMember1(client) // the pools may not have been looked at before
	w.awaitShard("hold", func(s ShardStatus) bool { return s.Held && s.Unhealthy && s.Paused })
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	if err := <-answer; err != nil {
		t.Errorf("the client got %v", err)
	}
}

// PgBouncer puts a database of pgbouncer.fallback away when its last client has gone, also while it is paused: it
// is released with the others, and while the hold lasts it stays paused.
func TestHiddenFallbackIsReleased(t *testing.T) {
	w := newWorld(t, func(c *config.Config) {
		c.PgBouncer.Fallback = map[string]any{"shard": "s1", "dbname": "postgres"}
	})
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	hidden := func(name string) {
		t.Helper()
		w.await(name+" being put away", func() error {
			all, err := w.admin().Databases(w.ctx)
			if _, shown := all[name]; err == nil && shown {
				err = fmt.Errorf("%+v", all[name])
			}
			return err
		})
	}
	clients := []*pgconn.PgConn{w.connect("any-name"), w.connect("another")}
	for _, client := range clients {
		w.exec(client, "SELECT 1")
	}
	w.announce("h1", 30*time.Second).held()
	for _, client := range clients {
		if err := client.Close(w.ctx); err != nil {
			t.Fatal(err)
		}
	}
	hidden("another")
	hidden("any-name")
	waiting := make(chan error, 1)
	go func() {
		conn, err := pgconn.Connect(w.ctx, w.dsn("any-name"))
		if err == nil {
			_, err = conn.Exec(w.ctx, "SELECT 1").ReadAll()
		}
		waiting <- err
	}()
	w.awaitPool("the client", func(p pgbouncer.Pool) bool { return p.Database == "any-name" && p.ClientsWaiting > 0 })
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	w.awaitLeader(1)
	if err := <-waiting; err != nil {
		t.Errorf("who came in the hold: %v", err)
	}
	w.exec(w.connect("another"), "SELECT 1")
	w.awaitHealthy()
}
