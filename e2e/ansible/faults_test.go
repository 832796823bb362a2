package ansible

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// testAgentCrash: an agent that is killed is back at once, and adopts the PostgreSQL
// that ran on.
func (r *rollout) testAgentCrash(t *testing.T) {
	leader := r.leader(t, "8008")
	before := r.postmaster(t, leader)
	r.underLoad(t, func() {
		if _, err := r.host(leader).run(t.Context(), "systemctl kill --signal=SIGKILL --kill-who=main lictor-agent@orders"); err != nil {
			t.Fatal(err)
		}
		r.await(t, "the agent after its crash", func() error {
			restarts, err := r.host(leader).run(t.Context(), "systemctl show --property=NRestarts --value lictor-agent@orders && systemctl is-active lictor-agent@orders")
			if err == nil && restarts != "1\nactive" {
				err = fmt.Errorf("restarts and state are %q", restarts)
			}
			return err
		})
		r.awaitHealthy(t, "8008", 3)
		sleep(t.Context(), 10*time.Second) // longer than a lease
	}, "orders")
	if after := r.postmaster(t, leader); after != before {
		t.Errorf("PostgreSQL was restarted: its postmaster was %s and is %s", before, after)
	}
	if now := r.leader(t, "8008"); now != leader {
		t.Errorf("%s leads, %s did before its agent was killed", now, leader)
	}
}

// testAgentHangs: systemd ends a replica's agent whose loop hangs (WatchdogSec), and
// starts another one; PostgreSQL runs on.
func (r *rollout) testAgentHangs(t *testing.T) {
	replica := "db1"
	if r.leader(t, "8008") == replica {
		replica = "db2"
	}
	before := r.postmaster(t, replica)
	pid, err := r.host(replica).run(t.Context(), "systemctl show --property=MainPID --value lictor-agent@orders")
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	r.underLoad(t, func() {
		if _, err := r.host(replica).run(t.Context(), "systemctl kill --signal=SIGSTOP --kill-who=main lictor-agent@orders"); err != nil {
			t.Fatal(err)
		}
		r.await(t, "another agent", func() error {
			now, err := r.host(replica).run(t.Context(), "systemctl show --property=MainPID --value lictor-agent@orders && systemctl is-active lictor-agent@orders")
			if now == pid+"\nactive" {
				err = errors.New("the one that hangs is still there")
			}
			return err
		})
		r.awaitHealthy(t, "8008", 3)
	}, "orders")
	t.Logf("the shard was whole again %s after an agent hung", time.Since(start).Round(100*time.Millisecond))
	if after := r.postmaster(t, replica); after != before {
		t.Errorf("PostgreSQL was restarted: its postmaster was %s and is %s", before, after)
	}
	cause, err := r.host(replica).run(t.Context(), "journalctl --no-pager --unit=lictor-agent@orders --grep='Watchdog timeout|SIGABRT' --output=cat")
	if err != nil || !strings.Contains(cause, "Watchdog timeout") || !strings.Contains(cause, "SIGABRT: abort") {
		t.Errorf("the journal says nothing of systemd's watchdog and of the agent's stacks: %v\n%s", err, cause)
	}
}

// testHostKilled: a power cut of a primary's host. Its clients see errors, none is
// for long; the host comes back as it is and takes its place.
func (r *rollout) testHostKilled(t *testing.T) {
	leader := r.leader(t, "8008")
	l := r.startLoad(t.Context(), r.entry, appPassword, "orders")
	if err := r.host(leader).kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	var successor string
	r.await(t, "another leader", func() error {
		for _, name := range []string{"db1", "db2", "db3"} {
			if name == leader {
				continue
			}
			if err := r.tryAsk(t.Context(), http.MethodGet, name, "8008", "/primary", "", nil); err == nil {
				successor = name
				return nil
			}
		}
		return fmt.Errorf("nobody leads orders but %s, which is off", leader)
	})
	r.await(t, "a transaction", func() error {
		conn, err := connect(t.Context(), r.site, r.entry, appPassword, "orders")
		if err != nil {
			return err
		}
		defer conn.Close(t.Context())
		return transaction(t.Context(), conn)
	})
	if err := r.host(leader).start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.host(leader).awaitUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.await(t, "the old primary as a replica", func() error {
		return r.tryAsk(t.Context(), http.MethodGet, leader, "8008", "/replica", "", nil)
	})
	for port, members := range map[string]int{"8008": 3, "8018": 3, "8028": 2} {
		r.awaitHealthy(t, port, members)
	}
	commits, errors, longest := l.stop()
	t.Logf("%s was killed, %s took over: %d transactions, %d errors, the longest transaction took %s; the host is back and all shards are whole",
		leader, successor, commits, len(errors), longest)
}
