package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/fence"
)

// A mark is made when the loop has heard of the one before: else it could hear of the later
// one first, and take the earlier one for what the disk says.
func TestMarksAreHeardOfInTheirOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		g := &guarded{runner: &runner{ctx: ctx, events: make(chan func())}}
		var made, heard []string
		for _, name := range []string{"led", "paused", "removed"} {
			g.mark(func() error { made = append(made, name); return nil }, func(error) { heard = append(heard, name) })
		}
		for i, want := range []string{"led", "paused", "removed"} {
			synctest.Wait()
			if len(made) != i+1 {
				t.Fatalf("%v were made though the loop has heard of %v alone", made, heard)
			}
			(<-g.events)()
			if heard[i] != want {
				t.Fatalf("the loop has heard of %v", heard)
			}
		}
		cancel()
		g.work.Wait()
	})
}

// A mark that cannot be removed, or not now, keeps no lease from ending.
func TestMarkThatStays(t *testing.T) {
	ended := func(t *testing.T, path string, before chan struct{}) (took time.Duration, said string) {
		ctx, cancel := context.WithCancel(t.Context())
		var log bytes.Buffer
		g := &guarded{
			runner:          &runner{ctx: ctx, events: make(chan func())},
			guardSupervisor: &guardSupervisor{log: zerolog.New(&log)},
			marking:         before,
		}
		g.led.path = path
		defer func() { cancel(); g.work.Wait() }()
		begun, over := time.Now(), false
		g.Unmark(func() { over = true })
		for !over {
			(<-g.events)()
		}
		return time.Since(begun), log.String()
	}
	synctest.Test(t, func(t *testing.T) {
		took, said := ended(t, "/dev/null/mark", nil)
		if took != 0 || !strings.Contains(said, "not a directory") {
			t.Errorf("an error: after %s, %s", took, said)
		}
		hangs := make(chan struct{})
		time.AfterFunc(time.Minute, func() { close(hangs) })
		took, said = ended(t, filepath.Join(t.TempDir(), "mark"), hangs)
		if took != unmarkWithin || !strings.Contains(said, "has not answered") {
			t.Errorf("a disk that hangs: after %s, %s", took, said)
		}
	})
}

// A start that the guard was asked for before the kill may have come up since: it is killed,
// too. While the guard cannot say so, PostgreSQL may live.
func TestKillForGood(t *testing.T) {
	broken := errors.New("broken")
	for _, c := range []struct {
		name    string
		killed  error // by the first kill
		started bool
		unknown error // what the guard was asked for
		want    []string
		fails   bool
	}{
		{name: "nothing was started", want: []string{"kill", "cancelStarts"}},
		{name: "something was", started: true, want: []string{"kill", "cancelStarts", "kill"}},
		{name: "what lingers is the kernel's", killed: fmt.Errorf("killing: %w", fence.ErrLingering), want: []string{"kill", "cancelStarts"}},
		{name: "the kill fails", killed: broken, want: []string{"kill"}, fails: true},
		{name: "the guard does not answer", started: true, unknown: broken, want: []string{"kill", "cancelStarts"}, fails: true},
	} {
		var asked []string
		err := killForGood(t.Context(), func(context.Context) error {
			asked = append(asked, "kill")
			if len(asked) == 1 {
				return c.killed
			}
			return nil
		}, func(context.Context) (bool, error) {
			asked = append(asked, "cancelStarts")
			return c.started, c.unknown
		})
		if !slices.Equal(asked, c.want) || (err != nil) != c.fails {
			t.Errorf("%s: %v (%v), want %v", c.name, asked, err, c.want)
		}
	}
}
