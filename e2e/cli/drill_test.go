package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/operator"
	"github.com/lictor-ha/lictor/agent/testkit"
	"github.com/lictor-ha/lictor/e2e/lab"
	"github.com/lictor-ha/lictor/e2e/lab/labtest"
)

// handSocket is where the test listens that has a command of the drill's done: this program is that
// command, too.
const handSocket = "LICTOR_TEST_HAND"

func TestMain(m *testing.M) {
	socket := os.Getenv(handSocket)
	if socket == "" {
		os.Exit(m.Run())
	}
	if err := askHand(socket, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// askHand has the test do what a command is to do.
func askHand(socket string, args []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	what := url.Values{"what": args, "shard": {os.Getenv("LICTOR_DRILL_SHARD")}, "host": {os.Getenv("LICTOR_DRILL_HOST")}}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://test/?"+what.Encode(), nil)
	if err != nil {
		return err
	}
	answer, err := client.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	said, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = errors.New(string(said))
	}
	return err
}

// hand does what the drill's commands ask for, with the lab's hosts.
func hand(t *testing.T, s *lab.Shard) (asked *[]string) {
	asked = new([]string)
	socket := filepath.Join(t.TempDir(), "hand")
	listener, err := new(net.ListenConfig).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ReadHeaderTimeout: patience, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		what, host := r.URL.Query()["what"], r.URL.Query().Get("host")
		*asked = append(*asked, strings.Join(what, " "))
		i := slices.IndexFunc(s.Members(), func(m *lab.Member) bool { return m.Address == host })
		if i < 0 || len(what) != 2 || what[1] != host || r.URL.Query().Get("shard") != s.Name {
			http.Error(w, fmt.Sprintf("nobody knows what %q of %q is", what, host), http.StatusBadRequest)
			return
		}
		m := s.Members()[i]
		do, known := map[string]func(context.Context) error{
			"off": m.PowerOff, "on": m.Start, "kill": m.Process("agent").Kill,
			"start": func(context.Context) error { return m.Process("agent").Start() },
		}[what[0]]
		if !known {
			http.Error(w, "nobody knows how to "+what[0], http.StatusBadRequest)
			return
		}
		if err := do(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})}
	t.Cleanup(func() { _ = server.Close() })
	go func() { _ = server.Serve(listener) }() // until it is closed
	t.Setenv(handSocket, socket)
	return asked
}

// A drill of each kind on real hosts: what a client through the load balancer saw is measured, the
// shard is as well as before, and a shard that is not is left alone.
func TestDrill(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("hosts that are lost are network namespaces, and these need root")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	l := labtest.Serving(ctx, t, lab.Options{Substrate: lab.Netns, Bouncers: 1, ConsulServers: 1, TTL: 5})
	f, s := fleetSeat{t, l}, l.Shard(0)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	asked := hand(t, s)
	var addresses []string
	for _, m := range s.Members() {
		addresses = append(addresses, m.Address)
	}
	hosts := strings.Join(addresses, ",")
	host, port, err := net.SplitHostPort(l.Balancer().Listen)
	if err != nil {
		t.Fatal(err)
	}
	probe := fmt.Sprintf("host=%s port=%s user=%s password=%s", host, port, lab.AppRole, l.Secrets.App)
	page := filepath.Join(t.TempDir(), "drill.html")
	drill := func(code int, args ...string) (record, string) {
		t.Helper()
		rows, said := f.run(code, append([]string{"drill", s.Name, "--probe", probe, "--report", page, "--limit", "2m"}, args...)...)
		if len(rows) == 0 {
			return nil, said
		}
		return rows[0], said
	}
	well := func() {
		t.Helper()
		f.leaders(ctx)
		if err := s.AwaitSync(ctx); err != nil {
			t.Fatal(err)
		}
		testkit.Await(ctx, t, "the fleet has alarms", func() error {
			cmd, errs := f.command(ctx, "fleet", "--check")
			if err := cmd.Run(); err != nil {
				return fmt.Errorf("%w: %s", err, errs)
			}
			return nil
		})
	}
	// passed checks what all kinds have in common.
	passed := func(row record, moved bool) {
		t.Helper()
		client, _ := row["probe"].(map[string]any)
		if row["state"] != "passed" || row["lost"] != 0.0 || client["mode"] != "writes" || client["acked"].(float64) < 40 || client["left"] != nil || (row["to"] != row["from"]) != moved {
			t.Errorf("%v", row)
		}
		if moved && (row["slow"] == nil || row["events"] == nil) {
			t.Errorf("nothing is told of the change of leader: %v", row)
		}
		content, err := os.ReadFile(page)
		if err != nil || !strings.Contains(string(content), "The drill went as it should.") || !strings.Contains(string(content), s.Name) {
			t.Errorf("the page: %v\n%s", err, content)
		}
	}
	well()

	if row, said := drill(operator.ExitRefused); row != nil || !strings.Contains(said, "nobody has answered") {
		t.Errorf("nobody answers: %v %s", row, said)
	}
	if _, err := os.Stat(page); err == nil {
		t.Error("a report of nothing")
	}

	row, _ := drill(operator.ExitDone, "--yes")
	passed(row, true)
	if row["errors"] != 0.0 {
		t.Errorf("a switchover: %v", row)
	}
	conn, err := s.ConnectClient(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var left int
	if err := conn.QueryRow(ctx, "SELECT count(*) FROM lictor_drill").Scan(&left); err != nil || left != 0 {
		t.Errorf("%d rows are left: %v", left, err)
	}
	conn.Close(ctx)

	well()
	row, _ = drill(operator.ExitDone, "--yes", "--kind", "restart", "--schedule", "+1s")
	passed(row, true)
	if row["errors"] != 0.0 {
		t.Errorf("a restart: %v", row)
	}

	// Its members' keys name hosts that the operator has not.
	if _, said := drill(operator.ExitRefused, "--yes", "--hosts", "192.0.2.1", "--kind", "host", "--cut", self+" off %h", "--restore", self+" on %h"); !strings.Contains(said, "--hosts does not name") {
		t.Errorf("another host: %s", said)
	}

	// An agent that is back within its lease: nobody notices.
	well()
	row, _ = drill(operator.ExitDone, "--yes", "--hosts", hosts, "--kind", "kill-agent", "--cut", self+" kill %h", "--restore", self+" start %h")
	if row["to"] == row["from"] && row["errors"] != 0.0 {
		t.Errorf("an agent: %v", row)
	}
	passed(row, row["to"] != row["from"])

	well()
	leader, err := s.Leader(ctx)
	if err != nil {
		t.Fatal(err)
	}
	row, _ = drill(operator.ExitDone, "--yes", "--hosts", hosts, "--kind", "host", "--cut", self+" off %h", "--restore", self+" on %h")
	passed(row, true)
	if row["from"] != leader.Name || row["host"] != leader.Address {
		t.Errorf("a host: %v", row)
	}
	if gap, is := row["gap_ms"].(float64); !is || gap < 1000 {
		t.Errorf("the leader's host was lost, and a client waited %v", row["gap_ms"])
	}
	if want := []string{"off " + leader.Address, "on " + leader.Address}; len(*asked) != 4 || !slices.Equal((*asked)[2:], want) {
		t.Errorf("commands: %q", *asked)
	}

	// What is cut comes back, also after a surprise: here the command says that it has failed.
	well()
	row, said := drill(operator.ExitSurprise, "--yes", "--hosts", hosts, "--kind", "host", "--cut", self+" explode %h", "--restore", self+" on %h")
	if row["state"] != "surprise" || !strings.Contains(said, "--cut has failed") || (*asked)[len(*asked)-1][:3] != "on " {
		t.Errorf("a command that fails: %v %s %q", row, said, *asked)
	}

	// A shard that is not well is left alone.
	cmd, errs := f.command(ctx, "pause", s.Name, "--wait")
	if err := cmd.Run(); err != nil {
		t.Fatalf("pause: %v %s", err, errs)
	}
	before := f.leaders(ctx)
	if row, said = drill(operator.ExitSurprise, "--yes"); row["state"] != "surprise" || !strings.Contains(said, "is not well before: paused") {
		t.Errorf("a paused shard: %v %s", row, said)
	}
	if content, err := os.ReadFile(page); err != nil || !strings.Contains(string(content), "stopped by a surprise") {
		t.Errorf("the page: %v", err)
	}
	if now := f.leaders(ctx); now != before {
		t.Errorf("%s, before: %s", now, before)
	}
	// A client that comes to another place is no measure.
	cmd, errs = f.command(ctx, "resume", s.Name, "--wait")
	if err := cmd.Run(); err != nil {
		t.Fatalf("resume: %v %s", err, errs)
	}
	rows, said := f.run(operator.ExitSurprise, "drill", s.Name, "--yes", "--probe", probe+" dbname=nowhere", "--probe-timeout", "3s")
	if len(rows) != 1 || rows[0]["state"] != "surprise" || !strings.Contains(said, "the probe at") {
		t.Errorf("a client that is not served: %v %s", rows, said)
	}
	if now := f.leaders(ctx); now != before {
		t.Errorf("%s, before: %s", now, before)
	}
}
