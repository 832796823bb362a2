package postgres

import (
	"os"
	"sync"
	"testing"

	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/pg"
)

// A replica that has detached gets its archive back with the note's removal, also where that was half done before.
func TestDetachmentIsDropped(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a, b := pair(ctx, t)
	if b.Major() < 14 {
		t.Skip("restore_command cannot be changed while it runs")
	}
	applied(t, b, `{"postgresql":{"recovery_conf":{"restore_command":"false"}}}`)
	must(t, b.Stop(ctx, Fast))
	follow(ctx, t, b, a)
	archive := func(p *Instance, want bool) {
		t.Helper()
		question := "SELECT current_setting('restore_command') = ''"
		if want {
			question = "SELECT current_setting('restore_command') <> ''"
		}
		awaitSQL(ctx, t, p, question)
	}
	archive(b, true)
	d := pg.Detachment{Status: 90, Attempt: "one", Candidate: "c"}
	keep := func() {
		t.Helper()
		must(t, b.Unfollow(ctx))
		must(t, b.KeepDetachment(ctx, d))
		archive(b, false)
	}
	keep()
	must(t, b.DropDetachment(ctx, pg.Detachment{Status: 89}))
	archive(b, false)
	must(t, b.DropDetachment(ctx, d))
	archive(b, true)

	keep()
	must(t, os.Remove(b.stateFile(detachmentNote))) // and the configuration could not be written
	must(t, b.DropDetachment(ctx, d))
	archive(b, true)

	keep()
	must(t, os.Remove(b.stateFile(detachmentNote)))
	must(t, os.Mkdir(b.stateFile(detachmentNote), 0o700))
	if err := b.DropDetachment(ctx, d); err == nil {
		t.Error("a note that cannot be read has passed for none")
	}
}

// A note that is written while the one before is dropped is not dropped with it.
func TestDetachmentsAreNotMixedUp(t *testing.T) {
	p := filesOnly(t)
	p.local.Store(&config.Postgres{})
	for status := uint64(1); status <= 300; status += 2 {
		_ = p.KeepDetachment(t.Context(), Detachment{Status: status}) // nothing runs that could be told
		var both sync.WaitGroup
		both.Go(func() { _ = p.DropDetachment(t.Context(), Detachment{Status: status}) })
		both.Go(func() { _ = p.KeepDetachment(t.Context(), Detachment{Status: status + 1}) })
		both.Wait()
		if kept := p.Detachment(); kept == nil || kept.Status != status+1 {
			t.Fatalf("of %d there is %+v", status+1, kept)
		}
	}
}
