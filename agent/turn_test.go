package agent

import (
	"os"
	"os/exec"
	"testing"

	"github.com/rs/zerolog"
)

// One agent of a host has the turn, until it gives it, or its process ends.
func TestTurnOfTheHost(t *testing.T) {
	if os.Getenv("TAKE_TURN") != "" {
		h := &hostPort{log: zerolog.Nop()}
		if !h.TakeTurn() {
			os.Exit(3)
		}
		os.Exit(0)
	}
	other := func() bool {
		t.Helper()
		c := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestTurnOfTheHost$")
		c.Env = append(os.Environ(), "TAKE_TURN=1")
		return c.Run() == nil
	}
	h := &hostPort{log: zerolog.Nop()}
	h.GiveTurn()
	if !other() || !h.TakeTurn() || !h.TakeTurn() {
		t.Fatal("nobody had it")
	}
	if other() {
		t.Error("two have it")
	}
	h.GiveTurn()
	if !other() {
		t.Error("it was not given")
	}
}
