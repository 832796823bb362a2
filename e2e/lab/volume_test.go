package lab_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/e2e/lab"
	"github.com/lictor-ha/lictor/e2e/lab/labtest"
)

// TestVolume: a member's volume is full and hangs without the rest of the host
// taking part, and closing the lab unmounts it even while it hangs.
func TestVolume(t *testing.T) {
	labtest.RequireNetns(t)
	l := labtest.New(t, lab.Options{Database: idle{}, Bouncers: -1, ConsulServers: 1, Members: 1, VolumeMB: 300})
	m := l.Members()[0]
	if dir := filepath.Dir(m.DataDir); dir != m.Volume.Dir {
		t.Fatalf("the data directory lies in %s, not on the volume", dir)
	}
	file := filepath.Join(m.Volume.Dir, "file")
	write := func() error { return os.WriteFile(file, make([]byte, 1<<20), 0o600) }
	if err := m.Volume.Fill(); err != nil {
		t.Fatal(err)
	}
	if err := write(); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("writing to a full volume: %v", err)
	}
	if err := os.WriteFile(filepath.Join(m.Dir, "beside"), []byte("x"), 0o600); err != nil {
		t.Errorf("beside a full volume: %v", err)
	}
	if err := m.Volume.Drain(); err != nil {
		t.Fatal(err)
	}
	if err := write(); err != nil {
		t.Errorf("writing to a drained volume: %v", err)
	}

	if err := m.Volume.Freeze(); err != nil {
		t.Fatal(err)
	}
	written := make(chan error, 1)
	go func() { written <- write() }()
	select {
	case err := <-written:
		t.Errorf("writing to a frozen volume returns: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	if err := m.Volume.Thaw(); err != nil {
		t.Fatal(err)
	}
	if err := <-written; err != nil {
		t.Errorf("writing to a thawed volume: %v", err)
	}
	if err := m.Volume.Thaw(); err != nil {
		t.Errorf("thawing twice: %v", err)
	}
	if err := m.Volume.Freeze(); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(timeout(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), m.Volume.Dir) {
		t.Error("the volume is still mounted")
	}
}

// TestConsulOnMembers: servers share the members' hosts and are cut off, service
// by service, without the host.
func TestConsulOnMembers(t *testing.T) {
	labtest.RequireNetns(t)
	ctx := timeout(t, time.Minute)
	l := labtest.New(t, lab.Options{Substrate: lab.Netns, Database: idle{}, Bouncers: 1, Pooler: plainPooler(), ConsulOnMembers: true})
	if err := l.Start(ctx); err != nil {
		t.Fatal(err)
	}
	server := l.ConsulServers()[0]
	if server.Host != l.Members()[0].Host {
		t.Fatal("the first server is not on the first member's host")
	}
	pooler := l.BouncerHosts()[0]
	dial := func(address string) error {
		conn, err := l.Dial(ctx, "tcp", address)
		if err != nil {
			return err
		}
		return conn.Close()
	}
	// Clients are no host; the pooler's service towards the balancer is.
	if err := l.Balancer().CutPorts(ctx, server.Host, lab.ConsulPorts()...); err != nil {
		t.Fatal(err)
	}
	if err := dial(server.HTTP); err != nil {
		t.Errorf("a cut between two others is felt: %v", err)
	}
	for _, other := range l.ConsulServers()[1:] {
		if err := server.CutPorts(ctx, other.Host, lab.ConsulPorts()...); err != nil {
			t.Fatal(err)
		}
	}
	// Two of three go on, the third sees no leader, and the host answers.
	if err := l.AwaitConsul(ctx); err != nil {
		t.Error(err)
	}
	for {
		leader, err := server.Client().Status().Leader()
		if err != nil || leader == "" {
			break
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			t.Fatal("the server that is cut off still sees a leader")
		}
	}
	var silent net.Error
	if err := dial(pooler.PgBouncer); errors.As(err, &silent) && silent.Timeout() {
		t.Errorf("a host that nothing was done to: %v", err)
	}
	if err := server.Heal(ctx); err != nil {
		t.Fatal(err)
	}
	for {
		leader, err := server.Client().Status().Leader()
		if err == nil && leader != "" {
			break
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("the healed server sees no leader: %v", err)
		}
	}
}
