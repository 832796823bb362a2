package pooler

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lictor-ha/lictor/agent/testkit"
	"github.com/lictor-ha/lictor/bouncer/bouncertest"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

// slowConn sends nothing after the first message before it may.
type slowConn struct {
	net.Conn
	may   <-chan struct{}
	wrote bool
}

func (c *slowConn) Write(b []byte) (int, error) {
	if c.wrote {
		<-c.may
	}
	c.wrote = true
	return c.Conn.Write(b)
}

// A client of the database * may ask for a name that PgBouncer takes, and its console takes in no command, as it is too
// long with its quotes. A client that is slow to log in has it hidden, too. No shard waits for that, and one whose name
// is as long as any can be is held.
func TestNameThatTheConsoleDoesNotTake(t *testing.T) {
	if _, err := exec.LookPath("pgbouncer"); err != nil {
		t.Skip(err)
	}
	dir, port := bouncertest.Dir(t), bouncertest.FreePort(t)
	silent, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0") // a PostgreSQL that says nothing
	testkit.Must(t, err)
	defer silent.Close()
	long := strings.Repeat("Yz_", 21) // of a shard
	for name, text := range map[string]string{
		"userlist.txt": `"pooler" "secret"` + "\n" + `"app" "app"` + "\n",
		"pgbouncer.ini": fmt.Sprintf("[databases]\n%s = host=127.0.0.1 port=9\n* = host=127.0.0.1 port=%d\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = %d\nunix_socket_dir =\nadmin_users = pooler\n"+
			"auth_type = plain\nauth_file = %s\nserver_connect_timeout = 60\n", long, silent.Addr().(*net.TCPAddr).Port, port, filepath.Join(dir, "userlist.txt")),
	} {
		testkit.Must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	output := runPgBouncer(t, dir)
	console := NewConsole(config.Config{PgBouncer: config.PgBouncer{
		Admin: "127.0.0.1:" + strconv.Itoa(port), User: "pooler", Password: "secret", Fallback: map[string]any{"host": "127.0.0.1"}, Settings: map[string]any{"auth_type": "plain"},
	}})
	defer console.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	await := func(what string, is func() bool) {
		t.Helper()
		for !is() {
			if ctx.Err() != nil {
				t.Fatalf("%s: never\n%s", what, output.String())
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	var conn *pgbouncer.Conn
	await("console", func() bool {
		conn, err = dialAdmin(ctx, console.config)
		return err == nil
	})
	defer conn.Close()
	name := "-" + strings.Repeat("x", 61)
	options, err := pgconn.ParseConfig(fmt.Sprintf("host=127.0.0.1 port=%d user=app password=app dbname=%s sslmode=disable", port, name))
	testkit.Must(t, err)
	may := make(chan struct{})
	options.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		return &slowConn{Conn: conn, may: may}, err
	}
	client, end := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if conn, err := pgconn.ConnectConfig(client, options); err == nil {
			_ = conn.Close(client)
		}
	}()
	defer func() { end(); <-ended }()
	waits := func() bool {
		pools, err := conn.Pools(ctx)
		return err == nil && len(pools) > 0 && pools[0].ClientsWaiting > 0
	}
	shown := func() bool {
		all, err := conn.Databases(ctx)
		_, shown := all[name]
		return err == nil && shown
	}
	await("the database that is made", shown)
	await("the database that is hidden", func() bool { return !shown() })
	close(may)
	await("the client that waits", waits)
	if shown() {
		t.Fatal("it is not hidden")
	}
	for name, takes := range map[string]bool{ // what IsCommandable says
		strings.Repeat("y", 63): true, strings.Repeat("y", 64): false, "-" + strings.Repeat("y", 60): true, "-" + strings.Repeat("y", 61): false,
		`"` + strings.Repeat("y", 59): true, `"` + strings.Repeat("y", 60): false,
	} {
		err := conn.Enable(ctx, name)
		if err == nil || strings.Contains(err.Error(), "bad arguments") == takes || pgbouncer.IsCommandable(name) != takes {
			t.Errorf("%d bytes: %v", len(name), err)
		}
	}
	testkit.Must(t, conn.Pause(ctx, long))
	all, err := console.Databases(ctx)
	if err != nil || !all[long].Paused {
		t.Errorf("the databases are %v, %v", all, err)
	}
}
