package bouncer

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/cluster/settings"
	"github.com/lictor-ha/lictor/bouncer/bouncertest"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/consul"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
	"github.com/lictor-ha/lictor/bouncer/routes"
)

// cheapConsole is a console whose answers cost next to nothing: what a pass costs is then the
// bouncer's. It takes in a file at its first RELOAD, and later what the benchmark says.
type cheapConsole struct {
	path string

	mu        sync.Mutex
	places    map[string]int // of databases in rows
	rows      [][]byte       // of SHOW DATABASES, encoded
	databases []byte         // the whole answer
	settings  []byte         // to SHOW CONFIG
}

// encode is the answer with these columns to a command.
func encode(b *testing.B, columns []string, rows [][]byte) (answer []byte) {
	b.Helper()
	description := &pgproto3.RowDescription{}
	for _, name := range columns {
		description.Fields = append(description.Fields, pgproto3.FieldDescription{Name: []byte(name), DataTypeOID: 25, DataTypeSize: -1, TypeModifier: -1})
	}
	answer = encodeOne(b, description)
	for _, r := range rows {
		answer = append(answer, r...)
	}
	return append(answer, done(b)...)
}

// done ends the answer to a command.
func done(b *testing.B) []byte {
	b.Helper()
	return append(encodeOne(b, &pgproto3.CommandComplete{CommandTag: []byte("SHOW")}), encodeOne(b, &pgproto3.ReadyForQuery{TxStatus: 'I'})...)
}

func encodeOne(b *testing.B, m pgproto3.BackendMessage) []byte {
	b.Helper()
	text, err := m.Encode(nil)
	if err != nil {
		b.Fatal(err)
	}
	return text
}

func encodeRow(b *testing.B, values ...string) []byte {
	b.Helper()
	row := &pgproto3.DataRow{}
	for _, v := range values {
		row.Values = append(row.Values, []byte(v))
	}
	return encodeOne(b, row)
}

func databaseRow(b *testing.B, name, host string, port int) []byte {
	b.Helper()
	return encodeRow(b, name, host, strconv.Itoa(port), name, "", "20", "", "0", "", "0", "0", "0", "0")
}

// move has databases lead elsewhere.
func (c *cheapConsole) move(b *testing.B, host string, port int, names ...string) {
	b.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range names {
		c.rows[c.places[name]] = databaseRow(b, name, host, port)
	}
	c.encode(b)
}

func (c *cheapConsole) encode(b *testing.B) {
	b.Helper()
	c.databases = encode(b, []string{
		"name", "host", "port", "database", "force_user", "pool_size", "reserve_pool", "pool_mode_none", "pool_mode", "max_connections", "current_connections", "paused", "disabled",
	}, c.rows)
}

// reload takes the file in.
func (c *cheapConsole) reload(b *testing.B) {
	b.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.places != nil {
		return
	}
	text, err := os.ReadFile(c.path)
	if err != nil {
		return // there is none yet
	}
	file, err := pgbouncer.ParseFile(text)
	if err != nil {
		b.Error(err)
	}
	c.places = map[string]int{}
	for i, e := range file.Databases {
		c.places[e.Name], c.rows = i, append(c.rows, databaseRow(b, e.Name, e.Host(), e.Port()))
	}
	var rows [][]byte
	for key, value := range file.Settings {
		rows = append(rows, encodeRow(b, key, value, "yes"))
	}
	c.settings = encode(b, []string{"key", "value", "changeable"}, rows)
	c.encode(b)
}

func (c *cheapConsole) answer(b *testing.B, query string) []byte {
	b.Helper()
	if query == "RELOAD" {
		c.reload(b)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch query {
	case "SHOW DATABASES":
		if c.databases == nil {
			return encode(b, []string{"name"}, nil)
		}
		return c.databases
	case "SHOW CONFIG":
		if c.settings == nil {
			return encode(b, []string{"key"}, nil)
		}
		return c.settings
	case "SHOW VERSION":
		return encode(b, []string{"version"}, [][]byte{encodeRow(b, "PgBouncer 1.25.0")})
	}
	return done(b)
}

// serve answers one connection.
func (c *cheapConsole) serve(b *testing.B, conn net.Conn) {
	b.Helper()
	backend, err := bouncertest.FakeStartup(conn)
	if err != nil {
		return
	}
	backend.Send(&pgproto3.AuthenticationOk{})
	backend.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	err = backend.Flush()
	for err == nil {
		var message pgproto3.FrontendMessage
		if message, err = backend.Receive(); err != nil {
			return
		}
		if query, is := message.(*pgproto3.Query); is {
			_, err = conn.Write(c.answer(b, query.String))
		}
	}
}

// quiet is a manager that wants to know nothing.
type quiet struct{}

func (quiet) Ready()                        {}
func (quiet) Alive()                        {}
func (quiet) KeepAliveEvery() time.Duration { return 0 }
func (quiet) MayHang(time.Duration)         {}
func (quiet) Status(string)                 {}

// benchBouncer is a bouncer with a thousand shards beside a console that costs nothing, of which
// nothing runs but the link.
func benchBouncer(b *testing.B) (*bouncer, *cheapConsole) {
	b.Helper()
	dir := b.TempDir()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	c := benchConfig()
	c.PgBouncer.Config, c.StateFile = filepath.Join(dir, "pgbouncer.ini"), filepath.Join(dir, "state.json")
	c.PgBouncer.Admin, c.PgBouncer.Settings = listener.Addr().String(), map[string]any{"listen_port": listener.Addr().(*net.TCPAddr).Port}
	c.Consul = settings.Consul{Host: "127.0.0.1:1"}
	console := &cheapConsole{path: c.PgBouncer.Config}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			b.Cleanup(func() { _ = conn.Close() })
			serving.Go(func() { console.serve(b, conn) })
		}
	})
	clients, err := consul.NewClients(c)
	if err != nil {
		b.Fatal(err)
	}
	pool, err := consul.NewPool(clients)
	if err != nil {
		b.Fatal(err)
	}
	one := newBouncer(c, zerolog.Nop(), pool, "http://127.0.0.1:1")
	p := one.processes.all[0]
	p.reconciler.manager, p.reconciler.ending, p.reconciler.dropped = quiet{}, func() bool { return false }, func() bool { return false }
	serving.Go(func() { p.link.Run(b.Context()) })
	b.Cleanup(func() { pool.Close(); _ = listener.Close(); p.reconciler.console.Close(); p.reconciler.pauser.Close() })
	<-p.reconciler.wake // it answers
	one.table.Merge(routes.Answer{Pairs: benchPairs(b, c), KnownLeader: true})
	return one, console
}

// BenchmarkPass takes a changed route of a thousand through everything that a pass does, the
// console's own time aside; 0 is the regular look at PgBouncer.
func BenchmarkPass(b *testing.B) {
	for _, changed := range []int{0, 1, benchShards} {
		b.Run(strconv.Itoa(changed), func(b *testing.B) {
			one, console := benchBouncer(b)
			co := one.processes.all[0].reconciler
			co.pass(b.Context())
			if co.err != nil || len(co.loaded) == 0 {
				b.Fatal(errors.Join(co.err, errors.New("the configuration does not stand")))
			}
			b.ReportAllocs()
			var used time.Duration
			for i := 0; b.Loop(); i++ {
				b.StopTimer()
				var names []string
				host := fmt.Sprintf("10.9.0.%d", 1+i%2) // there and back
				before, known := knownIn(one.table), map[config.ShardID]routes.Known{}
				for n := range changed {
					name := fmt.Sprintf("shard%04d", (i+n)%benchShards)
					k := before[config.ShardID("service/"+name)]
					k.Route.Leader.Host, k.Route.Timeline = host, 2+i
					known[config.ShardID("service/"+name)] = k
					names = append(names, name)
				}
				one.table.Restore(known) // Merge follows no shard that changes so often
				console.move(b, host, 5432, names...)
				b.StartTimer()
				begun := cpu(b)
				co.pass(b.Context())
				used += cpu(b) - begun
				if co.err != nil {
					b.Fatal(co.err)
				}
			}
			reportCPU(b, used)
			for id, s := range co.shards() {
				if s.VerifiedAt == nil {
					b.Fatalf("%s is not verified", id)
				}
			}
		})
	}
}
