package postgres

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A postmaster that hears of the WAL receiver's end a moment after the request for the
// next one, and just before it goes to sleep, forgets the request for 15 s. A look at
// the replica wakes it.
func TestObserveWakesForgottenReceiver(t *testing.T) {
	ctx := within(t)
	a, b := pair(ctx, t)
	if b.Major() >= 16 {
		t.Skip("the postmaster waits for events and signals at once since version 16")
	}
	// It can only be forgotten when it is asked for at once, not after a wait.
	forgotten := false
	for range 10 {
		sql(ctx, t, a, "SELECT pg_sleep(1)") // beyond wal_retrieve_retry_interval
		if forgotten = forgetReceiver(ctx, t, a, b); forgotten {
			break
		}
		observe(ctx, t, b, "streams again by itself", func(s State) bool { return s.ReplicationState == Streaming })
	}
	if !forgotten {
		t.Fatal("the postmaster did not forget the request in any of 10 rounds")
	}
	began := time.Now()
	observe(ctx, t, b, "streams again", func(s State) bool { return s.ReplicationState == Streaming })
	took := time.Since(began)
	t.Logf("streamed again after %v", took)
	if took > 8*time.Second { // PostgreSQL itself asks again after 10 at the earliest
		t.Errorf("streamed again only after %v", took)
	}
}

// forgetReceiver ends b's WAL receiver while its postmaster is slow to unblock signals,
// and reports whether the postmaster sleeps without having started another one.
func forgetReceiver(ctx context.Context, t *testing.T, a, b *Instance) bool {
	t.Helper()
	conn, err := b.take(ctx) // a new session would wake the postmaster
	must(t, err)
	defer b.give(conn)
	slow := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestSlowToUnblock$", "-test.v")
	slow.Env = append(os.Environ(), slowEnv+"="+strconv.Itoa(b.process.pid()))
	out, err := slow.StdoutPipe()
	must(t, err)
	must(t, slow.Start())
	defer func() {
		_ = slow.Process.Kill()
		_ = slow.Wait() // it was killed
	}()
	lines := bufio.NewScanner(out)
	await := func(words ...string) string {
		for lines.Scan() {
			if strings.HasPrefix(lines.Text(), untraceable) {
				t.Skip(lines.Text())
			}
			if slices.Contains(words, lines.Text()) {
				return lines.Text()
			}
		}
		t.Fatalf("the tracer ended before it said one of %v: %v", words, lines.Err())
		return ""
	}
	await("traced")
	sql(ctx, t, a, "SELECT pg_terminate_backend(pid) FROM pg_stat_replication")
	return await("asleep", "awake") == "asleep"
}

const (
	slowEnv     = "LICTOR_TEST_SLOW_TO_UNBLOCK"
	untraceable = "processes may not be traced here"
	// slowMost bounds how long a postmaster is held up: a WAL receiver ends much sooner.
	slowMost = 20 * time.Second
)

// TestSlowToUnblock is not a test: forgetReceiver runs it as a program of its own. It
// holds up a postmaster that was asked for something, when it is about to unblock signals, until its WAL receiver has
// ended; hears of that then and not before; and tells what it does after that: it sleeps on, or looks what there is to do.
func TestSlowToUnblock(t *testing.T) {
	pid, err := strconv.Atoi(os.Getenv(slowEnv))
	if err != nil {
		t.Skip("run by another test")
	}
	receiver := receiverOf(t, pid)
	runtime.LockOSThread() // the one that traces
	if err := unix.PtraceSeize(pid); err != nil {
		fmt.Printf("%s: %v\n", untraceable, err)
		return
	}
	must(t, unix.PtraceInterrupt(pid))
	told, asked, ended, heard := false, false, false, false
	for {
		var status unix.WaitStatus
		if _, err := unix.Wait4(pid, &status, unix.WALL, nil); err != nil || !status.Stopped() {
			return
		}
		pass := 0
		switch stop := status.StopSignal(); {
		case stop == unix.SIGTRAP && status>>16 != 0: // PTRACE_EVENT_STOP: it is seized
			if !told {
				must(t, unix.PtraceSetOptions(pid, unix.PTRACE_O_TRACESYSGOOD))
				fmt.Println("traced")
				told = true
			}
		case stop == unix.SIGTRAP|0x80: // a system call
			switch call := systemCall(t, pid); {
			case !call.entering:
			case call.number == unix.SYS_RT_SIGPROCMASK && heard:
				fmt.Println("awake")
			case call.number == unix.SYS_RT_SIGPROCMASK && asked && !ended && call.unblocks(t, pid):
				ended = awaitEnd(receiver)
				must(t, unix.Kill(pid, unix.SIGCHLD)) // if it was taken from it before
			case call.number == unix.SYS_PSELECT6 && heard:
				fmt.Println("asleep")
			}
		case stop == unix.SIGCHLD && !ended: // not now
		default:
			asked = asked || stop == unix.SIGUSR1
			heard = heard || stop == unix.SIGCHLD
			pass = int(stop)
		}
		must(t, unix.PtraceSyscall(pid, pass))
	}
}

// receiverOf is the WAL receiver of a postmaster.
func receiverOf(t *testing.T, postmaster int) int {
	t.Helper()
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", postmaster, postmaster))
	must(t, err)
	for field := range strings.FieldsSeq(string(children)) {
		title, err := os.ReadFile("/proc/" + field + "/cmdline")
		if err == nil && strings.Contains(string(title), "walreceiver") {
			pid, err := strconv.Atoi(field)
			must(t, err)
			return pid
		}
	}
	t.Fatal("the postmaster has no WAL receiver")
	return 0
}

// awaitEnd waits until a process has ended, whether its parent knows of that or not.
func awaitEnd(pid int) bool {
	for end := time.Now().Add(slowMost); time.Now().Before(end); time.Sleep(time.Millisecond) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if at := strings.LastIndexByte(string(stat), ')'); err != nil || at > 0 && strings.HasPrefix(string(stat[at:]), ") Z") {
			return true
		}
	}
	return false
}

// call is a system call of a stopped process.
type call struct {
	number   uint64
	entering bool
	args     [6]uint64
}

// unblocks reports whether rt_sigprocmask lets SIGCHLD in.
func (c call) unblocks(t *testing.T, pid int) bool {
	t.Helper()
	if c.args[0] != unix.SIG_SETMASK || c.args[1] == 0 {
		return c.args[0] == unix.SIG_UNBLOCK
	}
	var mask [8]byte
	if _, err := unix.PtracePeekData(pid, uintptr(c.args[1]), mask[:]); err != nil {
		t.Fatal(err)
	}
	return binary.NativeEndian.Uint64(mask[:])&(1<<(unix.SIGCHLD-1)) == 0
}

// systemCall is what the stopped process is about to call, or is done with.
func systemCall(t *testing.T, pid int) (c call) {
	t.Helper()
	const getSyscallInfo, entry = 0x420e, 1 // ptrace(2)
	var info [88]byte
	if _, _, errno := unix.Syscall6(unix.SYS_PTRACE, getSyscallInfo, uintptr(pid), uintptr(len(info)), uintptr(unsafe.Pointer(&info)), 0, 0); errno != 0 {
		t.Fatal(errno)
	}
	c.number, c.entering = binary.NativeEndian.Uint64(info[24:]), info[0] == entry
	for i := range c.args {
		c.args[i] = binary.NativeEndian.Uint64(info[32+8*i:])
	}
	return c
}

func TestReceiverEnded(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a, b := pair(ctx, t)
	observe(ctx, t, a, "has none", func(s State) bool { return s.Accepting })
	if a.ReceiverEnded() != nil {
		t.Error("a primary's WAL receiver is watched")
	}
	observe(ctx, t, b, "streams", func(s State) bool { return s.ReplicationState == Streaming })
	ended := b.ReceiverEnded()
	if ended == nil {
		t.Fatal("the WAL receiver is not watched")
	}
	sql(ctx, t, a, "SELECT pg_terminate_backend(pid) FROM pg_stat_replication")
	select {
	case <-ended:
	case <-ctx.Done():
		t.Fatal("the end of the WAL receiver was not seen")
	}
	observe(ctx, t, b, "streams again", func(s State) bool { return s.ReplicationState == Streaming })
	if again := b.ReceiverEnded(); again == nil || again == ended {
		t.Error("the next WAL receiver is not watched")
	}
}
