package vm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/lictor-ha/lictor/e2e/vm/event"
)

// MachineOptions say what runs in a machine, and how.
type MachineOptions struct {
	Dir       string // for its files
	Kernel    string
	Initramfs string
	Disk      string // ext4; empty: none
	KeepDisk  bool   // changes are written to Disk
	Devices   []string
	// Arguments are the guest's: KEY=VALUE on the kernel's command line.
	Arguments []string
}

// End is how a machine ended, and when.
type End struct {
	// Reset: by itself, as a watchdog does; else it was switched off by the guest.
	Reset bool
	// Watchdog: the emulated device said that it was it. A driver in the kernel
	// says it on the console instead.
	Watchdog bool
	At       time.Time
}

// Timed is an event with the host's time of its arrival.
type Timed struct {
	event.Event
	Seen time.Time
}

// Machine is one run of QEMU.
type Machine struct {
	qemu   *exec.Cmd
	events chan Timed
	reader sync.WaitGroup

	mu      sync.Mutex
	console strings.Builder
	end     End
}

const (
	// qmpPatience is how long QEMU may take to open its socket.
	qmpPatience = 30 * time.Second
	machineNice = -5
)

// Start starts a machine. It runs until it is reset or switches itself off, or
// ctx ends. The accelerator is the emulation that works everywhere.
func Start(ctx context.Context, o MachineOptions) (*Machine, error) {
	socket := filepath.Join(o.Dir, "qmp")
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("leftover socket: %w", err)
	}
	args := []string{
		"-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "768", "-nodefaults", "-display", "none", "-serial", "stdio",
		"-no-reboot", "-qmp", "unix:" + socket + ",server=on,wait=on",
		// A kernel that panics stays: it must not be taken for a reset.
		"-kernel", o.Kernel, "-initrd", o.Initramfs,
		"-append", "console=ttyS0 quiet loglevel=3 panic=0 edd=off " + strings.Join(o.Arguments, " "),
	}
	if o.Disk != "" {
		drive := "if=virtio,format=raw,file=" + o.Disk
		if !o.KeepDisk {
			drive += ",snapshot=on"
		}
		args = append(args, "-drive", drive)
	}
	args = append(args, o.Devices...)
	m := &Machine{qemu: exec.CommandContext(ctx, "qemu-system-x86_64", args...), events: make(chan Timed, 1<<14)}
	// The temporary file of a snapshot goes where the machine's files go.
	m.qemu.Env = append(os.Environ(), "TMPDIR="+o.Dir)
	// A test that is killed leaves no machine behind.
	m.qemu.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	out, err := m.qemu.StdoutPipe()
	if err != nil {
		return nil, err
	}
	m.qemu.Stderr = &consoleWriter{m}
	if err := m.qemu.Start(); err != nil {
		return nil, fmt.Errorf("qemu: %w", err)
	}
	// As far as that is allowed: a machine that gets no processor looks to its
	// watchdog like one that hangs.
	_ = syscall.Setpriority(syscall.PRIO_PGRP, m.qemu.Process.Pid, machineNice)
	monitor, err := m.connect(ctx, socket)
	if err != nil {
		_ = m.qemu.Process.Kill()
		_ = m.qemu.Wait()
		return nil, fmt.Errorf("qemu: %w: %s", err, m.Console())
	}
	m.reader.Go(func() { m.read(out) })
	m.reader.Go(func() {
		defer monitor.Close()
		m.monitor(monitor)
	})
	return m, nil
}

// connect opens QEMU's monitor; QEMU waits for that before it boots.
func (m *Machine) connect(ctx context.Context, socket string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, qmpPatience)
	defer cancel()
	retry := time.NewTicker(20 * time.Millisecond)
	defer retry.Stop()
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
		if err == nil {
			_, err = io.WriteString(conn, `{"execute":"qmp_capabilities"}`+"\n")
			return conn, err
		}
		select {
		case <-retry.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("its monitor does not answer: %w", err)
		}
	}
}

// monitor listens to QEMU's own events (QMP: SHUTDOWN, WATCHDOG).
func (m *Machine) monitor(conn io.Reader) {
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		var e struct {
			Event string `json:"event"`
			Data  struct {
				Reason string `json:"reason"`
			} `json:"data"`
		}
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			continue
		}
		m.mu.Lock()
		switch e.Event {
		case "SHUTDOWN":
			m.end.At = time.Now()
			m.end.Reset = e.Data.Reason == "guest-reset"
		case "WATCHDOG":
			m.end.Watchdog = true
		}
		m.mu.Unlock()
	}
}

func (m *Machine) read(out io.Reader) {
	defer close(m.events)
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		e, ok := event.Parse(line)
		if !ok {
			m.note(line)
			continue
		}
		if e.Name != event.Alive && e.Name != event.Beat {
			m.note(line)
		}
		m.events <- Timed{Event: e, Seen: time.Now()}
	}
}

func (m *Machine) note(line string) {
	if line == "" {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.console.WriteString(line)
	m.console.WriteByte('\n')
}

// consoleWriter keeps what QEMU itself says with what the guest says.
type consoleWriter struct{ m *Machine }

func (w *consoleWriter) Write(b []byte) (int, error) {
	w.m.note(strings.TrimSpace(string(b)))
	return len(b), nil
}

// Console is what the machine has said so far.
func (m *Machine) Console() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.console.String()
}

// errEnded: the machine ended before what was waited for.
var errEnded = errors.New("the machine has ended")

// next is the next event.
func (m *Machine) next(ctx context.Context) (Timed, error) {
	select {
	case e, open := <-m.events:
		if !open {
			return Timed{}, errEnded
		}
		if e.Name == event.Trouble {
			return Timed{}, fmt.Errorf("the guest says: %s", e.Text)
		}
		return e, nil
	case <-ctx.Done():
		return Timed{}, context.Cause(ctx)
	}
}

// Await waits for an event and passes over others.
func (m *Machine) Await(ctx context.Context, name event.Name) (Timed, error) {
	for {
		e, err := m.next(ctx)
		if err != nil {
			return Timed{}, fmt.Errorf("waiting for %q: %w", name, err)
		}
		if e.Name == name {
			return e, nil
		}
	}
}

// AwaitEnd waits until the machine has ended, and returns the last event of each
// name that came until then.
func (m *Machine) AwaitEnd(ctx context.Context) (End, map[event.Name]Timed, error) {
	last := map[event.Name]Timed{}
	for {
		select {
		case e, open := <-m.events:
			if open {
				last[e.Name] = e
				continue
			}
		case <-ctx.Done():
			return End{}, last, fmt.Errorf("waiting for the end of the machine: %w", context.Cause(ctx))
		}
		break
	}
	m.reader.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.end.At.IsZero() {
		return End{}, last, errors.New("qemu ended without having said why")
	}
	return m.end, last, nil
}

// Close ends the machine and waits for QEMU.
func (m *Machine) Close() {
	_ = m.qemu.Process.Kill()
	for range m.events { // whoever closes reads no more
	}
	m.reader.Wait()
	_ = m.qemu.Wait()
}
