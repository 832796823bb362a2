package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// openTerminal makes a pseudo terminal: what a person sees and types, and what
// the program has.
func openTerminal(t *testing.T) (person, program *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { _ = person.Close() })
	if err := unix.IoctlSetPointerInt(int(person.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Skip(err)
	}
	number, err := unix.IoctlGetInt(int(person.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Skip(err)
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { _ = program.Close() })
	size := &unix.Winsize{Row: 60, Col: 120}
	if err := unix.IoctlSetWinsize(int(program.Fd()), unix.TIOCSWINSZ, size); err != nil {
		t.Fatal(err)
	}
	return person, program
}

// awaitOutput reads until the terminal has shown the text.
func awaitOutput(ctx context.Context, t *testing.T, shown <-chan string, want string) {
	t.Helper()
	var seen strings.Builder
	for {
		select {
		case text, open := <-shown:
			seen.WriteString(text)
			if strings.Contains(seen.String(), want) {
				return
			}
			if !open {
				t.Fatalf("the terminal was closed before it showed %q; it showed\n%s", want, seen.String())
			}
		case <-ctx.Done():
			t.Fatalf("the terminal did not show %q; it showed\n%s", want, seen.String())
		}
	}
}

// TestLiveViewOnPatroni: the live view shows the cluster, a key runs a scenario
// whose outcome is shown, q ends the demo, and the terminal is as before.
func TestLiveViewOnPatroni(t *testing.T) {
	if _, err := os.Stat("/usr/bin/patroni"); err != nil {
		t.Skip("Patroni is not installed")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	person, program := openTerminal(t)
	before, err := term.GetState(int(program.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(passableDir(t), "demo")
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, onPatroni(Options{Shards: 1, Dir: dir, Out: program, In: program})) }()

	shown := make(chan string, 1000)
	go func() {
		defer close(shown)
		buffer := make([]byte, 64<<10)
		for {
			n, err := person.Read(buffer)
			if err != nil {
				return
			}
			shown <- string(buffer[:n])
		}
	}()
	awaitOutput(ctx, t, shown, "keys break")
	awaitOutput(ctx, t, shown, "sync replica")
	if _, err := io.WriteString(person, "s"); err != nil {
		t.Fatal(err)
	}
	awaitOutput(ctx, t, shown, "under way: switchover on shard1")
	awaitOutput(ctx, t, shown, "switchover on shard1: longest write gap")
	if _, err := io.WriteString(person, "q"); err != nil {
		t.Fatal(err)
	}
	for done := false; !done; {
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
			done = true
		case <-shown:
		}
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the demo's directory after its end: %v", err)
	}
	after, err := term.GetState(int(program.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	if *after != *before {
		t.Error("the terminal is not as it was")
	}
}
