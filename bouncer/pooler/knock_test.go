package pooler

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/lictor-ha/lictor/agent/testkit"
	"github.com/lictor-ha/lictor/bouncer/bouncertest"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

// A PgBouncer by itself, without any PostgreSQL: what a knock at it finds, and what it leaves.
func TestKnock(t *testing.T) {
	if _, err := exec.LookPath("pgbouncer"); err != nil {
		t.Skipf("pgbouncer is needed: %v", err)
	}
	for name, settings := range map[string]string{
		"passwords": "auth_type = scram-sha-256\n", "auth_query": "auth_type = scram-sha-256\nauth_user = app\n", "trust": "auth_type = trust\n",
	} {
		t.Run(name, func(t *testing.T) {
			dir, port := bouncertest.Dir(t), bouncertest.FreePort(t)
			c := config.Config{PgBouncer: config.PgBouncer{Admin: "127.0.0.1:" + strconv.Itoa(port), User: "pooler", Password: "secret", Settings: map[string]any{}}}
			if name == "auth_query" {
				c.PgBouncer.Settings["auth_user"] = "app"
			}
			testkit.Must(t, os.WriteFile(filepath.Join(dir, "userlist.txt"), []byte(`"pooler" "secret"`+"\n"+`"app" "app"`+"\n"), 0o644))
			testkit.Must(t, os.WriteFile(filepath.Join(dir, "pgbouncer.ini"), []byte(fmt.Sprintf("[databases]\ns1 = host=127.0.0.1 port=%d\n[pgbouncer]\nlisten_addr = 127.0.0.1,127.0.0.2\nlisten_port = %d\n"+
				"unix_socket_dir = %s\nauth_file = %s\nadmin_users = pooler\nmax_client_conn = 2\n%s", bouncertest.FreePort(t), port, dir, filepath.Join(dir, "userlist.txt"), settings)), 0o644))
			cmd := bouncertest.Unprivileged(exec.Command("pgbouncer", filepath.Join(dir, "pgbouncer.ini")))
			stderr, err := cmd.StderrPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = cmd.Process.Kill() })
			said := bufio.NewScanner(stderr)
			for said.Scan() && !strings.Contains(said.Text(), "process up") {
				continue
			}
			ended := make(chan struct{})
			go func() { // ends with the process
				for said.Scan() {
					continue
				}
				_ = cmd.Wait()
				close(ended)
			}()
			database := "s1"
			if c.Setting("auth_user") != "" {
				database = frontUser
			}
			addresses := Listening{"127.0.0.1, 127.0.0.2", strconv.Itoa(port), dir}.addresses(c)
			if len(addresses) != 3 {
				t.Fatalf("addresses are %v", addresses)
			}
			for _, a := range addresses {
				if err := knock(t.Context(), a, database); err != nil {
					t.Errorf("%s: %v", a.address, err)
				}
			}
			console, err := dialAdmin(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			defer console.Close()
			if pools, err := console.Pools(t.Context()); err != nil || len(pools) != 0 {
				t.Errorf("pools are %v, %v", pools, err)
			}
			version, err := console.Version(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if !isListening(c, socketTable) {
				t.Error("it is said not to listen")
			}
			unix := c
			unix.PgBouncer.Admin = dir + ":" + strconv.Itoa(port)
			if !isListening(unix, socketTable) {
				t.Error("it is said not to listen on its unix socket")
			}
			// Consoles count as clients, and are let in though there are too many.
			var more []*pgbouncer.Conn
			for range 2 {
				one, err := dialAdmin(t.Context(), c)
				if err != nil {
					t.Fatal(err)
				}
				more = append(more, one)
			}
			for _, a := range addresses {
				if err := knock(t.Context(), a, database); err == nil || !strings.Contains(err.Error(), "no more connections allowed") {
					t.Errorf("%s, when there are too many: %v", a.address, err)
				}
			}
			for _, one := range more {
				one.Close()
			}
			if !version.AtLeast(1, 23) {
				return
			}
			local, err := dialAdmin(t.Context(), unix)
			if err != nil {
				t.Fatal(err)
			}
			links := []*Link{{config: c}, {config: unix, door: doorOf(unix, local)}}
			local.Close()
			for _, l := range links {
				if l.isDone(t.Context(), console, version) {
					t.Errorf("it is said to end: %s", l.config.PgBouncer.Admin)
				}
			}
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			for isListening(c, socketTable) || !version.AtLeast(1, 25) && isListening(unix, socketTable) { // which stays for consoles from 1.25 on
				continue
			}
			for _, l := range links {
				if !l.isDone(t.Context(), console, version) || l.isDone(t.Context(), console, pgbouncer.Version{1, 18}) {
					t.Errorf("that it ends is not seen: %s", l.config.PgBouncer.Admin)
				}
			}
			select {
			case <-ended:
				t.Error("it did not wait for its console")
			default:
			}
			if err := knock(t.Context(), addresses[0], database); err == nil {
				t.Error("it still takes clients")
			}
		})
	}
}
