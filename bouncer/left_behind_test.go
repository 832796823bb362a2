package bouncer

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

// runs has a client of a database run a query, and returns what comes of it.
func (w *world) runs(database, sql string) <-chan error {
	w.t.Helper()
	client := w.connect(database)
	ended := make(chan error, 1)
	go func() {
		_, err := client.Exec(w.ctx, sql).ReadAll()
		ended <- err
	}()
	w.awaitPool("a query that runs", func(p pgbouncer.Pool) bool { return p.Database == database && p.ServersActive > 0 })
	return ended
}

// The clients of a lost primary are freed though this bouncer was not there when PgBouncer was led away
// from it: the one before was killed just then, or somebody else had it read the file.
func TestMissedClosingIsMadeUpFor(t *testing.T) {
	for _, how := range []string{"killed", "reloaded"} {
		t.Run(how, func(t *testing.T) {
			w := newWorld(t, nil)
			if !w.canDestroySockets() {
				t.Skip("closing sockets is not permitted here")
			}
			w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
			stop := w.bouncer()
			w.pgbouncer()
			w.awaitLeader(0)
			freed := w.runs("s1", "SELECT pg_sleep(600)")
			if how == "killed" {
				stop()
			}
			text, err := os.ReadFile(w.config.PgBouncer.Config)
			if err != nil {
				t.Fatal(err)
			}
			from, to := strconv.Itoa(w.site.members[0].Port), strconv.Itoa(w.site.members[1].Port)
			admin := w.admin()
			w.write("pgbouncer.ini", strings.ReplaceAll(string(text), "port="+from, "port="+to))
			if err := admin.Reload(w.ctx); err != nil {
				t.Fatal(err)
			}
			w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
			if how == "killed" {
				w.bouncer()
			}
			w.awaitLeader(1)
			select {
			case err := <-freed:
				if err == nil {
					t.Error("the query on the lost primary ended well")
				}
			case <-time.After(15 * time.Second):
				t.Error("the client of the lost primary is not freed")
			}
		})
	}
}

// cutOff is an address in a network of its own, through which one member of the site can be reached until cut is called.
func cutOff(t *testing.T, to cluster.RouteMember) (at cluster.RouteMember, cut func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a network of its own needs root")
	}
	ip := func(args string) error {
		out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("ip %s: %w: %s", args, err, out)
		}
		return err
	}
	name, link := fmt.Sprintf("lictor-test-%d", os.Getpid()), fmt.Sprintf("lt%d", os.Getpid())
	if err := ip("netns add " + name); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { _ = ip("netns del " + name) })
	for _, args := range []string{
		"link add " + link + " type veth peer name " + link + "n netns " + name,
		"addr add 169.254.77.1/30 dev " + link, "link set " + link + " up",
		"-n " + name + " addr add 169.254.77.2/30 dev " + link + "n", "-n " + name + " link set " + link + "n up",
	} {
		if err := ip(args); err != nil {
			t.Fatal(err)
		}
	}
	type opened struct {
		listener net.Listener
		err      error
	}
	begun := make(chan opened)
	go func() {
		// The thread comes back to where it was: were it to end, so would the programs that it has started.
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			begun <- opened{err: err}
			return
		}
		defer home.Close()
		there, err := os.Open("/run/netns/" + name)
		if err == nil {
			defer there.Close()
			err = unix.Setns(int(there.Fd()), unix.CLONE_NEWNET)
		}
		if err != nil {
			runtime.UnlockOSThread()
			begun <- opened{err: err}
			return
		}
		listener, err := net.Listen("tcp", "169.254.77.2:5432")
		if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
			panic(back) // no test may go on elsewhere
		}
		runtime.UnlockOSThread()
		begun <- opened{listener, err}
	}()
	o := <-begun
	if o.err != nil {
		t.Fatal(o.err)
	}
	t.Cleanup(func() { _ = o.listener.Close() })
	go func() {
		for {
			from, err := o.listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer from.Close()
				server, err := net.Dial("tcp", net.JoinHostPort(to.Host, strconv.Itoa(to.Port)))
				if err != nil {
					return
				}
				defer server.Close()
				go func() { _, _ = io.Copy(server, from) }()
				_, _ = io.Copy(from, server)
			}()
		}
	}()
	at = cluster.RouteMember{Name: "db9", Host: "169.254.77.2", Port: 5432}
	return at, func() {
		t.Helper()
		if err := ip("link set " + link + " down"); err != nil {
			t.Fatal(err)
		}
	}
}

// Readers of a replica that is lost are freed once it has left the route; those of one that left as it
// lags keep their queries.
func TestLostReplicaFreesItsReaders(t *testing.T) {
	w := newWorld(t, nil)
	if !w.canDestroySockets() {
		t.Skip("closing sockets is not permitted here")
	}
	replica, cut := cutOff(t, w.site.members[1])
	r := w.route(0, cluster.RouteOpen)
	w.await("the replica", func() error { return execute(replica, "SELECT 1") })
	for _, lost := range []bool{false, true} {
		r.Replicas = []cluster.RouteMember{replica}
		w.put(w.keys.Route(), r)
		if !lost {
			w.bouncer()
			w.pgbouncer()
			w.awaitLeader(0)
		}
		readers := func(to string) {
			t.Helper()
			w.awaitShard("readers", func(s ShardStatus) bool { return s.Readers == to && s.VerifiedAt != nil })
		}
		readers("169.254.77.2:5432")
		ended := w.runs("s1_ro", "SELECT pg_sleep(8)")
		if lost {
			cut()
		}
		r.Replicas = nil
		begun := time.Now()
		w.put(w.keys.Route(), r)
		readers("primary")
		err := <-ended
		if took := time.Since(begun); lost && (err == nil || took > 5*time.Second) || !lost && err != nil {
			t.Errorf("lost %v: %v after %v", lost, err, took)
		}
	}
}
