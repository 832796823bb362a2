package fence

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/osuser"
)

// fakeWatchdog is a device in virtual time. It remembers when it would have reset
// the host.
type fakeWatchdog struct {
	clock  Clock
	way    bool          // it can be stopped
	rounds time.Duration // timeouts are rounded up to this

	mu      sync.Mutex
	opened  int
	refuse  error // of open
	fault   error // of everything else
	timeout time.Duration
	fireAt  cluster.Instant
	calls   []string
}

func (d *fakeWatchdog) open(context.Context, string) (watchdogDevice, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.refuse != nil {
		return nil, d.refuse
	}
	d.opened++
	d.timeout = time.Minute
	d.fireAt = d.clock().Add(d.timeout)
	return d, nil
}

func (d *fakeWatchdog) did(what string) error {
	d.calls = append(d.calls, what)
	return d.fault
}

func (d *fakeWatchdog) describe() watchdogDescription { return watchdogDescription{identity: "fake"} }

func (d *fakeWatchdog) setTimeout(timeout time.Duration) (time.Duration, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.rounds > 0 {
		timeout = (timeout + d.rounds - 1).Truncate(d.rounds)
	}
	d.timeout = timeout
	d.fireAt = d.clock().Add(timeout)
	return timeout, d.did("set " + timeout.String())
}

func (d *fakeWatchdog) timeLeft() (time.Duration, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.fireAt.Sub(d.clock()).Truncate(time.Second), nil
}

func (d *fakeWatchdog) keepAlive() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.did("keepalive"); err != nil {
		return err
	}
	d.fireAt = d.clock().Add(d.timeout)
	return nil
}

func (d *fakeWatchdog) stop() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.way {
		return errNoWayOut
	}
	if err := d.did("stop"); err != nil {
		return err
	}
	d.fireAt = 0
	return nil
}

func (d *fakeWatchdog) abandon() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	_ = d.did("abandon")
	d.fireAt = d.clock().Add(d.timeout) // as the kernel does
	return nil
}

func (d *fakeWatchdog) change(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f()
}

// fires is when the device would reset the host; zero: never.
func (d *fakeWatchdog) fires() cluster.Instant {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.fireAt
}

func (d *fakeWatchdog) did1(what string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(slices.DeleteFunc(slices.Clone(d.calls), func(c string) bool { return c != what }))
}

// inVirtualTime runs a test with a watchdog and a fake device.
func inVirtualTime(t *testing.T, mode string, test func(t *testing.T, w *Watchdog, d *fakeWatchdog)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		clock := func() cluster.Instant { return at(time.Since(start).Seconds()) }
		d := &fakeWatchdog{clock: clock, way: true}
		device := filepath.Join(t.TempDir(), "watchdog")
		if err := os.WriteFile(device, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		w := NewWatchdog(WatchdogOptions{Mode: mode, Driver: "default", Device: device, Clock: clock})
		w.open = d.open
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { w.Run(ctx) })
		defer running.Wait()
		defer cancel()
		test(t, w, d)
	})
}

func eight() WatchdogTiming {
	return WatchdogTiming{TTL: 8 * time.Second, DemoteBefore: 2 * time.Second, KillBefore: 800 * time.Millisecond}
}

func TestWatchdogFollowsTheLease(t *testing.T) {
	inVirtualTime(t, "required", func(t *testing.T, w *Watchdog, d *fakeWatchdog) {
		if err := w.Usable(); err != nil {
			t.Fatal(err)
		}
		if err := w.Activate(t.Context(), at(8), eight()); err != nil {
			t.Fatal(err)
		}
		if s := w.State(); !s.Working || !s.Active || s.Timeout != 7*time.Second || s.Identity != "fake" || s.DeviceTimeLeft == nil {
			t.Errorf("after activation: %+v", s)
		}
		// Beats every 2 s, and rounds of the loop without one.
		for i := range 20 {
			until := at(float64(8 + i/4*2))
			w.KeepAlive(until, eight())
			synctest.Wait()
			if until.Before(d.fires()) {
				t.Fatalf("reset %s after the end of the lease", d.fires().Sub(until))
			}
			time.Sleep(500 * time.Millisecond)
		}
		// The loop hangs: the last lease ends at 16.
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if f := d.fires(); at(16).Before(f) || f.Before(at(15.7)) {
			t.Errorf("the reset comes %s before the end of the lease", at(16).Sub(f))
		}
		if n := d.did1("set 7s"); n != 1 {
			t.Errorf("the timeout was set %d times", n)
		}
	})
}

func TestWatchdogStops(t *testing.T) {
	inVirtualTime(t, "required", func(t *testing.T, w *Watchdog, d *fakeWatchdog) {
		if err := w.Activate(t.Context(), at(8), eight()); err != nil {
			t.Fatal(err)
		}
		w.KeepAlive(at(9), eight()) // older than what follows
		if err := w.Disable(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if s := w.State(); !d.fires().IsZero() || s.Active || s.Working || s.Timeout != 0 || s.LastError != "" {
			t.Errorf("after Disable: fires at %s, %+v", d.fires(), s)
		}
		w.KeepAlive(w.clock().Add(8*time.Second), eight())
		synctest.Wait()
		if !w.Working() {
			t.Error("not active again")
		}
		w.StandDown()
		synctest.Wait()
		if !d.fires().IsZero() {
			t.Error("still running after StandDown")
		}
	})
}

func TestWatchdogWithoutWayOut(t *testing.T) {
	inVirtualTime(t, "required", func(t *testing.T, w *Watchdog, d *fakeWatchdog) {
		d.way = false
		if err := w.Activate(t.Context(), at(8), eight()); err != nil {
			t.Fatal(err)
		}
		if err := w.Disable(t.Context()); !errors.Is(err, errNoWayOut) {
			t.Fatalf("Disable: %v", err)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		s := w.State()
		if s.Active || !s.Stuck || s.Nowayout == nil || !*s.Nowayout || !strings.Contains(s.LastError, "nowayout") {
			t.Errorf("%+v", s)
		}
		if f := d.fires(); f.Before(w.clock()) {
			t.Fatal("the host was reset though there was nothing to protect")
		}
		if err := w.Usable(); err != nil {
			t.Error(err)
		}
		// A lease that has begun a while ago: the device may not count from its last keepalive.
		until := w.clock().Add(5 * time.Second)
		if err := w.Activate(t.Context(), until, eight()); err != nil {
			t.Fatal(err)
		}
		if until.Before(d.fires()) {
			t.Errorf("the reset comes %s after the end of the lease", d.fires().Sub(until))
		}
	})
}

func TestWatchdogThatDoesNotWork(t *testing.T) {
	broken := errors.New("broken")
	for name, tt := range map[string]struct {
		spoil   func(*fakeWatchdog)
		timing  WatchdogTiming
		until   float64
		problem string
	}{
		"cannot be opened":      {func(d *fakeWatchdog) { d.refuse = unix.EBUSY }, eight(), 8, "busy"},
		"answers with an error": {func(d *fakeWatchdog) { d.fault = broken }, eight(), 8, "broken"},
		"rounds up":             {func(d *fakeWatchdog) { d.rounds = time.Minute }, eight(), 8, "took a timeout of 1m0s where 7s"},
		"lease almost over":     {func(*fakeWatchdog) {}, eight(), 1, "is not started"},
		"ttl too short":         {func(*fakeWatchdog) {}, WatchdogTiming{TTL: 4 * time.Second}, 4, "needs a ttl"},
		"lost later": {func(d *fakeWatchdog) {
			time.AfterFunc(time.Second, func() { d.change(func() { d.fault = unix.ENODEV; d.refuse = unix.ENODEV }) })
		}, eight(), 8, ""},
	} {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, "required", func(t *testing.T, w *Watchdog, d *fakeWatchdog) {
				tt.spoil(d)
				err := w.Activate(t.Context(), at(tt.until), tt.timing)
				if tt.problem == "" {
					if err != nil {
						t.Fatal(err)
					}
					time.Sleep(3 * time.Second)
					w.KeepAlive(at(11), tt.timing)
					synctest.Wait()
				} else if err == nil || !strings.Contains(err.Error(), tt.problem) {
					t.Fatalf("error %v, want %q", err, tt.problem)
				}
				if w.Working() || w.State().LastError == "" {
					t.Errorf("working: %+v", w.State())
				}
				if tt.problem == "" {
					return
				}
				if !d.fires().IsZero() && d.fault == nil {
					t.Error("the device was left running")
				}
				if tt.until > 1 && w.Usable() == nil {
					t.Error("may lead without a watchdog")
				}
				time.Sleep(watchdogGrudge)
				if err := w.Usable(); err != nil {
					t.Errorf("never tries again: %v", err)
				}
			})
		})
	}
}

// A device that cannot be opened is tried again while there is a lease, not at
// every call.
func TestWatchdogComesBack(t *testing.T) {
	inVirtualTime(t, "automatic", func(t *testing.T, w *Watchdog, d *fakeWatchdog) {
		d.refuse = unix.ENOENT
		if err := w.Activate(t.Context(), at(8), eight()); err == nil {
			t.Fatal("activated without a device")
		}
		if err := w.Usable(); err != nil {
			t.Errorf("automatic: may not lead: %v", err)
		}
		d.change(func() { d.refuse = nil })
		w.KeepAlive(at(8), eight())
		synctest.Wait()
		if w.State().Active || w.State().LastError == "" {
			t.Errorf("tried again at once: %+v", w.State())
		}
		time.Sleep(2 * time.Second)
		w.KeepAlive(at(10), eight())
		synctest.Wait()
		if s := w.State(); !s.Working || s.LastError != "" {
			t.Errorf("not active again: %+v", s)
		}
	})
}

// Settings that make no sense while there is a lease are told, and do not reset
// the host.
func TestWatchdogSettingsChange(t *testing.T) {
	inVirtualTime(t, "required", func(t *testing.T, w *Watchdog, d *fakeWatchdog) {
		if err := w.Activate(t.Context(), at(8), eight()); err != nil {
			t.Fatal(err)
		}
		longer := WatchdogTiming{TTL: 30 * time.Second, DemoteBefore: 7 * time.Second, KillBefore: 3 * time.Second}
		w.KeepAlive(at(30), longer)
		synctest.Wait()
		if s := w.State(); s.Timeout != 25*time.Second || d.did1("stop") != 0 || d.opened != 1 {
			t.Errorf("ttl 30: %+v", s)
		}
		w.KeepAlive(at(8), eight()) // the lease was cut
		synctest.Wait()
		if at(8).Before(d.fires()) {
			t.Errorf("after the cut the reset comes %s after the end of the lease", d.fires().Sub(at(8)))
		}
		w.KeepAlive(at(8.5), WatchdogTiming{TTL: 4 * time.Second})
		synctest.Wait()
		if s := w.State(); s.Working || !s.Active || !strings.Contains(s.LastError, "ttl") || s.ResetAt.Before(at(7)) {
			t.Errorf("ttl 4: %+v", s)
		}
	})
}

func TestWatchdogLeftRunning(t *testing.T) {
	inVirtualTime(t, "automatic", func(t *testing.T, w *Watchdog, d *fakeWatchdog) {
		ctx, cancel := context.WithCancel(t.Context())
		second := NewWatchdog(WatchdogOptions{Mode: "automatic", Device: "x", Clock: w.clock})
		second.open = d.open
		ended := make(chan struct{})
		go func() { second.Run(ctx); close(ended) }()
		if err := second.Activate(t.Context(), at(8), eight()); err != nil {
			t.Fatal(err)
		}
		cancel()
		<-ended
		if d.did1("abandon") != 1 || d.did1("stop") != 0 {
			t.Errorf("%q", d.calls)
		}
		limit, stop := context.WithTimeout(t.Context(), time.Second)
		defer stop()
		if err := second.Activate(limit, at(8), eight()); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("after the end: %v", err)
		}
	})
}

func TestWatchdogOff(t *testing.T) {
	w := NewWatchdog(WatchdogOptions{Mode: "off", Device: "/nonexistent"})
	if err := errors.Join(w.Usable(), w.Activate(t.Context(), at(8), eight()), w.Disable(t.Context())); err != nil {
		t.Error(err)
	}
	w.KeepAlive(at(8), eight())
	w.StandDown()
	if s := w.State(); s.Mode != "off" || s.Active || s.Working {
		t.Errorf("%+v", s)
	}
}

// What the kernel's driver says of files that are no watchdogs.
func TestWatchdogNoDevice(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, problem := range map[string]string{
		filepath.Join(dir, "missing"): "modprobe",
		file:                          "not a watchdog",
		"/dev/null":                   "not a watchdog",
	} {
		if _, err := openKernelWatchdog(t.Context(), path); err == nil || !strings.Contains(err.Error(), problem) {
			t.Errorf("%s: %v, want %q", path, err, problem)
		}
	}
	w := NewWatchdog(WatchdogOptions{Mode: "required", Device: filepath.Join(dir, "missing")})
	if err := w.Usable(); !errors.Is(err, unix.ENOENT) {
		t.Errorf("usable without a device: %v", err)
	}
}

// The conversation that Patroni's tests of the watchdog listen to.
func TestWatchdogFifo(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	w := NewWatchdog(WatchdogOptions{Mode: "required", Driver: "testing", Device: fifo})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { w.Run(ctx) })
	defer running.Wait()
	defer cancel()
	twenty := WatchdogTiming{TTL: 20 * time.Second, DemoteBefore: 5 * time.Second, KillBefore: 2 * time.Second}
	thirty := WatchdogTiming{TTL: 30 * time.Second, DemoteBefore: 7 * time.Second, KillBefore: 3 * time.Second}

	limit, stop := context.WithTimeout(ctx, 3*fifoRetry)
	defer stop()
	if err := w.Activate(limit, Now().Add(twenty.TTL), twenty); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("nobody reads: %v", err)
	}

	heard := make(chan byte, 100)
	running.Go(func() {
		defer close(heard)
		f, err := os.Open(fifo)
		if err != nil {
			t.Error(err)
			return
		}
		defer f.Close()
		for r := bufio.NewReader(f); ; {
			b, err := r.ReadByte()
			if err != nil {
				return
			}
			heard <- b
		}
	})
	expect := func(what string) {
		t.Helper()
		var got []byte
		for range len(what) {
			got = append(got, <-heard)
		}
		if string(got) != what {
			t.Fatalf("heard %q, want %q", got, what)
		}
	}
	if err := w.Activate(ctx, Now().Add(twenty.TTL), twenty); err != nil {
		t.Fatal(err)
	}
	expect("Ctimeout=15\n1")
	w.KeepAlive(Now().Add(thirty.TTL), thirty)
	expect("Ctimeout=25\n1")
	if err := w.Disable(ctx); err != nil {
		t.Fatal(err)
	}
	expect("V")
	if b, open := <-heard; open {
		t.Errorf("heard %q after V", b)
	}
}

func TestLastReset(t *testing.T) {
	file := filepath.Join(t.TempDir(), "mark")
	for name, tt := range map[string]struct {
		boot   string // when the mark was written; empty: there is none
		causes []string
		want   string
	}{
		"nothing known":            {"", nil, ""},
		"the device tells":         {"", []string{"watchdog"}, "watchdog"},
		"same boot":                {"now", nil, ""},
		"armed when it went down":  {"before", nil, "went down while the watchdog was armed (since 2026-01-02T03:04:05Z on /dev/wd): the device does not tell why"},
		"armed, device tells, too": {"before", []string{"overheat", "watchdog"}, "overheat, watchdog"},
	} {
		t.Run(name, func(t *testing.T) {
			os.Remove(file)
			if tt.boot != "" {
				if err := writeMark(osuser.User{}, file, resetMark{BootID: tt.boot, Device: "/dev/wd", Since: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}); err != nil {
					t.Fatal(err)
				}
			}
			got := lastReset(osuser.User{}, file, "now", tt.causes)
			if tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}

// An armed watchdog leaves a mark, one that was stopped does not.
func TestWatchdogMark(t *testing.T) {
	dir := t.TempDir()
	fifo, mark := filepath.Join(dir, "fifo"), filepath.Join(dir, "mark")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	reader, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	run := func(last func(*Watchdog) error) error {
		w := NewWatchdog(WatchdogOptions{Mode: "automatic", Driver: "testing", Device: fifo, MarkFile: mark})
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { w.Run(ctx) })
		defer running.Wait()
		defer cancel()
		return errors.Join(w.Activate(ctx, Now().Add(8*time.Second), eight()), last(w))
	}
	if err := run(func(*Watchdog) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(mark); err != nil || !strings.Contains(string(b), bootID()) {
		t.Errorf("no mark: %q, %v", b, err)
	}
	if err := run(func(w *Watchdog) error { return w.Disable(t.Context()) }); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(mark); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the mark is left: %v", err)
	}
}

func TestBootCauses(t *testing.T) {
	if got := fmt.Sprint(bootCauses(unix.WDIOF_CARDRESET | unix.WDIOF_OVERHEAT)); got != "[watchdog overheat]" {
		t.Error(got)
	}
	if got := bootCauses(0); got != nil {
		t.Error(got)
	}
}
