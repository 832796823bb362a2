package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/testkit"
	"github.com/lictor-ha/lictor/e2e/vm/event"
)

const (
	// patience bounds a machine's life: emulation on a busy host is slow.
	patience = 12 * time.Minute
	// cannotPrepare is prepare.sh's status for what it may not install.
	cannotPrepare = 3

	// The leases of the scenarios (guest/device.go, guest/node.go).
	deviceTTL = 5 * time.Second
	nodeTTL   = 8 * time.Second
	// emulation is how much later the host may see a reset than the guest's own
	// clock says, as the emulator is one process among many.
	emulation = 2 * time.Second
)

// workshop is what all machines are made of.
type workshop struct {
	prepared string // prepare.sh's directory
	dir      string // of this run
	guest    string
	disk     string // with PostgreSQL, Consul and lictor; made by node
}

// variant is a kernel with one of its drivers.
type variant struct{ kernel, driver string }

func variants() []variant {
	return []variant{{"cloud", "softdog"}, {"generic", "i6300esb"}}
}

func open(t *testing.T) *workshop {
	t.Helper()
	w := &workshop{dir: t.TempDir()}
	prepare := exec.CommandContext(t.Context(), "./prepare.sh")
	var complaint strings.Builder
	prepare.Stderr = io.MultiWriter(os.Stderr, &complaint)
	out, err := prepare.Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() == cannotPrepare {
		t.Skip(strings.TrimSpace(complaint.String()))
	}
	if err != nil {
		t.Fatalf("prepare.sh: %v", err)
	}
	w.prepared = strings.TrimSpace(string(out))
	w.guest = w.build(t, "init", "./guest")
	return w
}

// build builds a static program.
func (w *workshop) build(t *testing.T, name, source string) string {
	t.Helper()
	path := filepath.Join(w.dir, name)
	cmd := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", path, source)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building %s: %v: %s", source, err, out)
	}
	return path
}

// start starts a machine that plays a scenario.
func (w *workshop) start(ctx context.Context, t *testing.T, v variant, o MachineOptions, arguments ...string) *Machine {
	t.Helper()
	o.Dir = t.TempDir()
	o.Kernel = filepath.Join(w.prepared, v.kernel, "vmlinuz")
	o.Initramfs = filepath.Join(o.Dir, "initramfs")
	if err := writeInitramfs(o.Initramfs, w.guest, filepath.Join(w.prepared, v.kernel, "modules")); err != nil {
		t.Fatal(err)
	}
	o.Arguments = append(arguments, "driver="+v.driver)
	if v.driver == "i6300esb" {
		o.Devices = append(o.Devices, "-device", "i6300esb", "-action", "watchdog=reset")
	}
	m, err := Start(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.Close()
		if t.Failed() {
			t.Logf("the console:\n%s", m.Console())
		}
	})
	return m
}

func within(t *testing.T) context.Context { t.Helper(); return testkit.Within(t, patience) }

// await waits for an event, and end for the machine's end.
func await(ctx context.Context, t *testing.T, m *Machine, name event.Name) Timed {
	t.Helper()
	e, err := m.Await(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func end(ctx context.Context, t *testing.T, m *Machine) (End, map[event.Name]Timed) {
	t.Helper()
	e, last, err := m.AwaitEnd(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if trouble, found := last[event.Trouble]; found {
		t.Fatalf("the guest says: %s", trouble.Text)
	}
	return e, last
}

// resetInTime checks that the machine was reset by its watchdog before the lease
// of the last beat ended, by the clocks of guest and host.
func resetInTime(t *testing.T, v variant, m *Machine, e End, frozen, beat, alive Timed, lease time.Duration) {
	t.Helper()
	if !e.Reset {
		t.Fatal("the machine was not reset")
	}
	if byWatchdog := e.Watchdog || strings.Contains(m.Console(), "softdog: Initiating system reboot"); !byWatchdog {
		t.Error("nothing says that the reset was the watchdog's")
	}
	guest := time.Duration(alive.At-beat.Beat) * time.Millisecond
	host := e.At.Sub(frozen.Seen)
	t.Logf("%s: reset %s after the last beat by the guest's clock (lease %s), %s after freezing; by the host's clock %s after freezing",
		v.driver, guest, lease, time.Duration(alive.At-frozen.At)*time.Millisecond, host.Round(time.Millisecond))
	if guest > lease {
		t.Errorf("reset %s after the last beat, but the lease is %s", guest, lease)
	}
	if host > lease+emulation {
		t.Errorf("the host saw the reset %s after freezing, but the lease is %s", host, lease)
	}
}

func survived(t *testing.T, e End, last map[event.Name]Timed) {
	t.Helper()
	if e.Reset || e.Watchdog {
		t.Error("the machine was reset")
	}
	if _, found := last[event.Survived]; !found {
		t.Error("the scenario did not come to its end")
	}
}

// watchdogState is the part of fence.WatchdogState that the tests look at.
type watchdogState struct {
	Identity  string
	Active    bool
	Stuck     bool
	Timeout   time.Duration
	Nowayout  *bool
	LastError string
}

func stateOf(t *testing.T, e Timed) watchdogState {
	t.Helper()
	var s watchdogState
	if err := json.Unmarshal([]byte(e.Text), &s); err != nil {
		t.Fatalf("%s: %v", e.Text, err)
	}
	return s
}

// The device alone: package fence against the kernel's drivers.
func TestDevice(t *testing.T) {
	w := open(t)
	for _, v := range variants() {
		t.Run(v.driver+"/freeze", func(t *testing.T) {
			t.Parallel()
			ctx := within(t)
			m := w.start(ctx, t, v, MachineOptions{}, "scenario=device-freeze")
			s := stateOf(t, await(ctx, t, m, event.State))
			if !s.Active || s.Timeout != deviceTTL-time.Second || s.Identity == "" || s.Nowayout == nil || *s.Nowayout {
				t.Errorf("%+v", s)
			}
			t.Logf("the device calls itself %q", s.Identity)
			var beat Timed
			frozen := func() Timed {
				for {
					e, err := m.next(ctx)
					switch {
					case err != nil:
						t.Fatal(err)
					case e.Name == event.Beat:
						beat = e
					case e.Name == event.Frozen:
						return e
					}
				}
			}()
			e, last := end(ctx, t, m)
			if late, found := last[event.Beat]; found { // written before it was frozen
				beat = late
			}
			resetInTime(t, v, m, e, frozen, beat, last[event.Alive], deviceTTL)
		})
		t.Run(v.driver+"/stop", func(t *testing.T) {
			t.Parallel()
			ctx := within(t)
			m := w.start(ctx, t, v, MachineOptions{}, "scenario=device-stop")
			e, last := end(ctx, t, m)
			survived(t, e, last)
			if s := stateOf(t, last[event.State]); s.Active || s.Stuck || s.Timeout != 0 {
				t.Errorf("after the stop: %+v", s)
			}
		})
		// A process that is killed does not stop the device; the next one takes it over.
		t.Run(v.driver+"/kill", func(t *testing.T) {
			t.Parallel()
			ctx := within(t)
			m := w.start(ctx, t, v, MachineOptions{}, "scenario=device-kill")
			e, last := end(ctx, t, m)
			survived(t, e, last)
		})
		// A device that cannot be stopped is kept alive until the process ends.
		t.Run(v.driver+"/nowayout", func(t *testing.T) {
			t.Parallel()
			ctx := within(t)
			m := w.start(ctx, t, v, MachineOptions{}, "scenario=device-nowayout", "way=no")
			if s := stateOf(t, await(ctx, t, m, event.State)); s.Nowayout == nil || !*s.Nowayout {
				t.Errorf("it is not noticed that the device has no way out: %+v", s)
			}
			if refused := await(ctx, t, m, event.Refused); !strings.Contains(refused.Text, "nowayout") {
				t.Errorf("stopping: %s", refused.Text)
			}
			if s := stateOf(t, await(ctx, t, m, event.State)); s.Active || !s.Stuck {
				t.Errorf("%+v", s)
			}
			await(ctx, t, m, event.Acted)
			if e, _ := end(ctx, t, m); !e.Reset {
				t.Error("the machine was not reset after the process ended")
			}
		})
	}
}

// node makes the disk of a whole node.
func (w *workshop) node(t *testing.T) {
	t.Helper()
	root := filepath.Join(w.dir, "root")
	run(t, "cp", "-a", filepath.Join(w.prepared, "root"), root)
	consul := os.Getenv("CONSUL_BIN")
	if consul == "" {
		out, err := exec.CommandContext(t.Context(), "../tools/consul.sh").Output()
		if err != nil {
			t.Fatalf("consul.sh: %v", err)
		}
		consul = strings.TrimSpace(string(out))
	}
	run(t, "cp", consul, filepath.Join(root, "usr/bin/consul"))
	lictor := os.Getenv("LICTOR_BIN")
	if lictor == "" {
		lictor = w.build(t, "lictor", "../../cmd/lictor")
	}
	run(t, "cp", lictor, filepath.Join(root, "usr/bin/lictor"))
	bin, err := os.ReadFile(filepath.Join(root, "etc/postgres-bin"))
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"etc/consul.json": consulConfig,
		"etc/lictor.yml":  fmt.Sprintf(agentConfig, nodeTTL/time.Second, strings.TrimSpace(string(bin))),
	} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w.disk = filepath.Join(w.dir, "disk")
	t.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	run(t, "mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-d", root, w.disk, "900M")
	run(t, "rm", "-rf", root)
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", name, err, out)
	}
}

const consulConfig = `{
  "server": true, "bootstrap_expect": 1, "bind_addr": "127.0.0.1", "client_addr": "127.0.0.1", "data_dir": "/var/lib/consul",
  "node_name": "db1", "log_level": "WARN", "disable_update_check": true, "performance": {"raft_multiplier": 1}
}
`

const agentConfig = `scope: vm
name: db1
restapi: {listen: 127.0.0.1:8008, connect_address: 127.0.0.1:8008}
consul: {host: 127.0.0.1:8500}
bootstrap:
  dcs: {ttl: %d}
  initdb: [{encoding: UTF8}, {locale: C.UTF-8}, data-checksums]
watchdog: {mode: required, device: /dev/watchdog}
log: {format: patroni}
postgresql:
  listen: 127.0.0.1:5432
  connect_address: 127.0.0.1:5432
  data_dir: /var/lib/postgresql/data
  bin_dir: %s
  authentication:
    superuser: {username: postgres, password: super}
    replication: {username: replicator, password: replica}
  parameters: {shared_buffers: 32MB, jit: "off"}
  pg_hba: [local all all trust, host all all 127.0.0.1/32 trust, host replication all 127.0.0.1/32 trust]
`

// A whole node: what the watchdog is for.
func TestAgent(t *testing.T) {
	w := open(t)
	w.node(t)
	softdog := variants()[0]
	// The first machine makes the shard, on the disk that all others start from.
	if !t.Run("softdog/stop", func(t *testing.T) { w.stops(t, softdog, true) }) {
		return
	}
	t.Run("softdog/freeze", func(t *testing.T) { w.freezes(t, softdog) })
	// An agent that was killed comes back within the lease, as systemd makes it.
	t.Run("softdog/kill", func(t *testing.T) {
		ctx := within(t)
		m := w.start(ctx, t, softdog, MachineOptions{Disk: w.disk}, "scenario=kill")
		killed := await(ctx, t, m, event.Acted)
		e, last := end(ctx, t, m)
		survived(t, e, last)
		if last[event.Survived].Acked <= killed.At+nodeTTL.Milliseconds() {
			t.Error("PostgreSQL takes no writes any more")
		}
	})
	t.Run("none/refuse", func(t *testing.T) {
		ctx := within(t)
		m := w.start(ctx, t, variant{softdog.kernel, "none"}, MachineOptions{Disk: w.disk}, "scenario=refuse")
		refused := await(ctx, t, m, event.Refused)
		t.Logf("refused %s after boot", time.Duration(refused.At)*time.Millisecond)
		e, last := end(ctx, t, m)
		survived(t, e, last)
	})
	i6300esb := variants()[1]
	t.Run("i6300esb/freeze", func(t *testing.T) { w.freezes(t, i6300esb) })
	t.Run("i6300esb/stop", func(t *testing.T) { w.stops(t, i6300esb, false) })
}

// stops: an agent that is stopped in an orderly way leaves no watchdog behind.
func (w *workshop) stops(t *testing.T, v variant, keepDisk bool) {
	t.Helper()
	ctx := within(t)
	m := w.start(ctx, t, v, MachineOptions{Disk: w.disk, KeepDisk: keepDisk}, "scenario=stop")
	e, last := end(ctx, t, m)
	survived(t, e, last)
}

// freezes: agent and guard hang, PostgreSQL goes on: only the watchdog is left.
// The disk is kept, and the next boot says what happened.
func (w *workshop) freezes(t *testing.T, v variant) {
	t.Helper()
	ctx := within(t)
	disk := filepath.Join(t.TempDir(), "disk")
	run(t, "cp", "--sparse=always", w.disk, disk)
	m := w.start(ctx, t, v, MachineOptions{Disk: disk, KeepDisk: true}, "scenario=freeze")
	frozen := await(ctx, t, m, event.Frozen)
	e, last := end(ctx, t, m)
	alive := last[event.Alive]
	resetInTime(t, v, m, e, frozen, alive, alive, nodeTTL)
	if alive.Acked <= frozen.At {
		t.Error("PostgreSQL took no writes after agent and guard were frozen: this does not show what the watchdog is good for")
	}
	t.Logf("the last write was acknowledged %s after freezing", time.Duration(alive.Acked-frozen.At)*time.Millisecond)
	m.Close()

	m = w.start(ctx, t, variant{v.kernel, "none"}, MachineOptions{Disk: disk, KeepDisk: true}, "scenario=return")
	state := await(ctx, t, m, event.State)
	if !strings.Contains(state.Text, "went down while the watchdog was armed") {
		t.Errorf("the member does not say why its host went down: %s", state.Text)
	}
	if e, last = end(ctx, t, m); e.Reset {
		t.Error("the second boot was reset, too")
	}
	if _, found := last[event.Survived]; !found {
		t.Error("the second boot did not come to its end")
	}
}
