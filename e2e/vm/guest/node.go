package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lictor-ha/lictor/agent/fence"
	"github.com/lictor-ha/lictor/e2e/vm/event"
)

// The scenarios of this file are a whole node: a Consul server, an agent with its
// guard, PostgreSQL, a client that writes, and an observer who watches the beats
// as another member would.

const (
	consulAddress = "http://127.0.0.1:8500"
	restAddress   = "http://127.0.0.1:8008"
	databaseURL   = "postgres://postgres:super@127.0.0.1:5432/postgres?sslmode=disable"

	// nodeTTL is the ttl of the agent's configuration.
	nodeTTL = 8 * time.Second
	// patience bounds every wait: emulation on a busy machine is slow.
	patience = 6 * time.Minute
	pause    = 100 * time.Millisecond
)

type node struct {
	agent    *exec.Cmd
	settings []string // for its command line
	// acked and beat are when the last write was acknowledged, and when the last
	// beat was seen, in milliseconds of CLOCK_BOOTTIME.
	acked, beat atomic.Int64
}

func playNode(scenario string) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	n := &node{}
	if _, err := startIn(root, "consul", "/usr/bin/consul", "agent", "-config-file=/etc/consul.json"); err != nil {
		return err
	}
	if err := await(ctx, "Consul has no leader", func(ctx context.Context) error {
		leader, err := get(ctx, consulAddress+"/v1/status/leader")
		if err == nil && !strings.Contains(leader, ":") {
			err = errors.New("there is none")
		}
		return err
	}); err != nil {
		return err
	}
	if scenario == "return" {
		// It is to tell what happened, on a machine without a watchdog.
		n.settings = []string{"--set", "watchdog.mode=automatic"}
	}
	if err := n.startAgent(); err != nil {
		return err
	}
	if scenario == "refuse" {
		return n.refuses(ctx)
	}
	if err := await(ctx, "the member does not lead", func(ctx context.Context) error {
		_, err := get(ctx, restAddress+"/primary")
		return err
	}); err != nil {
		return err
	}
	go n.observe(ctx)
	go n.write(ctx)
	if err := await(ctx, "no write was acknowledged", func(context.Context) error {
		if n.acked.Load() == 0 || n.beat.Load() == 0 {
			return errors.New("neither write nor beat yet")
		}
		return nil
	}); err != nil {
		return err
	}
	state, err := get(ctx, restAddress+"/patroni")
	if err != nil {
		return err
	}
	tell(event.State, event.Event{Text: state})
	tell(event.Leading, event.Event{})
	return n.suffer(scenario)
}

// suffer does to the agent what the scenario says.
func (n *node) suffer(scenario string) error {
	switch scenario {
	case "freeze":
		stayAlive(2*nodeTTL, n.fill) // it leads for a while
		if err := n.signal(syscall.SIGSTOP); err != nil {
			return err
		}
		e := event.Event{}
		n.fill(&e)
		tell(event.Frozen, e)
		stayAlive(time.Minute, n.fill)
	case "stop":
		if err := errors.Join(n.agent.Process.Signal(syscall.SIGTERM), n.agent.Wait()); err != nil {
			return fmt.Errorf("stopping the agent: %w", err)
		}
		tell(event.Acted, event.Event{Text: "stopped"})
		stayAlive(2*nodeTTL, n.fill)
	case "kill":
		if err := n.agent.Process.Kill(); err != nil {
			return err
		}
		_ = n.agent.Wait()
		tell(event.Acted, event.Event{Text: "killed"})
		if err := n.startAgent(); err != nil {
			return err
		}
		stayAlive(3*nodeTTL, n.fill)
		e := event.Event{}
		n.fill(&e)
		tell(event.Survived, e)
		return errors.Join(n.agent.Process.Signal(syscall.SIGTERM), n.agent.Wait())
	}
	// The second boot after a reset ("return") has shown all by leading.
	tell(event.Survived, event.Event{})
	return nil
}

func (n *node) fill(e *event.Event) { e.Acked, e.Beat = n.acked.Load(), n.beat.Load() }

// refuses waits until the agent says that the watchdog keeps it from leading, and
// then sees for some leases that it does not lead.
func (n *node) refuses(ctx context.Context) error {
	if err := await(ctx, "the member does not speak of the watchdog", func(ctx context.Context) error {
		state, err := get(ctx, restAddress+"/patroni")
		if err != nil && state == "" {
			return err
		}
		if !strings.Contains(state, "watchdog is required and does not work") {
			return errors.New("it says: " + state)
		}
		tell(event.State, event.Event{Text: state})
		return nil
	}); err != nil {
		return err
	}
	tell(event.Refused, event.Event{})
	for range 3 {
		stayAlive(nodeTTL, nil)
		if leader, err := get(ctx, consulAddress+"/v1/kv/service/vm/leader?raw"); err == nil {
			return fmt.Errorf("%s leads without a watchdog", leader)
		}
		if _, err := get(ctx, restAddress+"/primary"); err == nil {
			return errors.New("the member is a primary without a watchdog")
		}
	}
	tell(event.Survived, event.Event{})
	return errors.Join(n.agent.Process.Signal(syscall.SIGTERM), n.agent.Wait())
}

func (n *node) startAgent() (err error) {
	n.agent, err = startIn(root, "agent", "/usr/bin/lictor", append([]string{"agent", "/etc/lictor.yml"}, n.settings...)...)
	return err
}

// startIn starts a program whose root directory is the disk; what it says goes to
// the console.
func startIn(root, name, path string, args ...string) (*exec.Cmd, error) {
	cmd := exec.Command(path, args...) //nolint:noctx // it lasts as long as the scenario
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=/root", "TZ=UTC", "LC_ALL=C.UTF-8", "GOMAXPROCS=2"}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stdout
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	return cmd, nil
}

// signal sends a signal to agent and guard, one right after the other.
func (n *node) signal(sig syscall.Signal) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	found := 0
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		if exe, err := os.Readlink("/proc/" + entry.Name() + "/exe"); err != nil || filepath.Base(exe) != "lictor" {
			continue
		}
		if err := syscall.Kill(pid, sig); err != nil {
			return err
		}
		found++
	}
	if found != 2 {
		return fmt.Errorf("%d processes of lictor where there should be an agent and a guard", found)
	}
	return nil
}

// write writes to PostgreSQL as fast as it is answered.
func (n *node) write(ctx context.Context) {
	for ctx.Err() == nil {
		if err := n.writeOn(ctx); err != nil {
			time.Sleep(pause)
		}
	}
}

func (n *node) writeOn(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, databaseURL)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, "CREATE TABLE IF NOT EXISTS writes (at bigint)"); err != nil {
		return err
	}
	for {
		if _, err := conn.Exec(ctx, "INSERT INTO writes VALUES ($1)", milliseconds(fence.Now())); err != nil {
			return err
		}
		n.acked.Store(milliseconds(fence.Now()))
		time.Sleep(watch)
	}
}

// observe notes the beats as they are seen in Consul.
func (n *node) observe(ctx context.Context) {
	index := "0"
	for ctx.Err() == nil {
		body, err := get(ctx, consulAddress+"/v1/kv/service/vm/status?wait=30s&index="+index)
		var entries []struct{ ModifyIndex uint64 }
		if err != nil || json.Unmarshal([]byte(body), &entries) != nil || len(entries) != 1 {
			time.Sleep(pause)
			continue
		}
		if next := strconv.FormatUint(entries[0].ModifyIndex, 10); next != index {
			index = next
			n.beat.Store(milliseconds(fence.Now()))
		}
	}
}

// get is the body of a page, also when its status is an error.
func get(ctx context.Context, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return "", err
	}
	if response.StatusCode != http.StatusOK {
		return string(body), fmt.Errorf("%s: %s", url, response.Status)
	}
	return string(body), nil
}

func await(ctx context.Context, what string, probe func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for {
		err := probe(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, err)
		}
	}
}
