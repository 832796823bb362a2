package postgres

import (
	"os"
	"testing"
)

// From before the first file is touched it is known that the data are not what they
// were; and which position of the primary's they must come to.
func TestDataThatWereReplaced(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a, b := pair(ctx, t)
	cloned := b.Loss()
	if cloned == nil || cloned.ID == "" || cloned.LSN != 0 {
		t.Fatalf("after a clone: %+v", cloned)
	}
	sql(ctx, t, a, "CREATE TABLE public.t (n int)")
	timeline, lsn, err := b.PositionOf(ctx, upstream(a))
	must(t, err)
	if at := observe(ctx, t, a, "a primary", func(State) bool { return true }); timeline != 1 || lsn > at.WriteLSN || lsn <= 0 {
		t.Errorf("the primary is said to be on timeline %d at %d, and is at %d", timeline, lsn, at.WriteLSN)
	}
	aimed := Loss{ID: cloned.ID, Timeline: timeline, LSN: lsn}
	must(t, b.KeepLoss(aimed))
	if got := b.Loss(); got == nil || *got != aimed {
		t.Errorf("%+v was kept as %+v", aimed, got)
	}
	if _, _, err := a.PositionOf(ctx, upstream(b)); err == nil {
		t.Error("a replica was taken for the primary")
	}
	must(t, b.ForgetLoss("another"))
	must(t, b.ForgetLoss(aimed.ID))
	if got := b.Loss(); got != nil {
		t.Errorf("after it was forgotten: %+v", got)
	}

	// Removed for a new clone: noted before, and anew.
	must(t, b.Stop(ctx, Fast))
	must(t, b.RemoveForReinit(ctx, allowed(t, b)))
	removed := b.Loss()
	if removed == nil || removed.ID == cloned.ID || removed.LSN != 0 {
		t.Fatalf("after the removal: %+v", removed)
	}
	if err := b.KeepLoss(aimed); err == nil {
		t.Error("what was asked for before the removal was kept after it")
	}
	// One that cannot be read is one of which nothing is known.
	must(t, os.WriteFile(b.stateFile("loss"), []byte("{"), 0o600))
	if got := b.Loss(); got == nil || got.LSN != 0 {
		t.Errorf("a damaged file: %+v", got)
	}
	must(t, b.ForgetLoss(""))
}

// A rewind notes it too; a data directory that need not be rewound has lost nothing.
func TestRewoundData(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a, b := pair(ctx, t)
	if b.Loss() == nil {
		t.Error("nothing is noted of what was cloned")
	}
	sql(ctx, t, a, "CREATE TABLE public.t (n int)")
	caughtUp(ctx, t, a, b)
	must(t, b.Promote(ctx, 0))
	if l := b.Loss(); l != nil {
		t.Errorf("a primary has all that was acknowledged, by definition: %+v", l)
	}
	sql(ctx, t, a, "INSERT INTO public.t SELECT generate_series(1, 1000)")
	must(t, a.Stop(ctx, Fast))
	if outcome, err := a.Rewind(ctx, upstream(b), true); err != nil || outcome != Rewound || a.Loss() == nil {
		t.Errorf("%s %v, noted: %+v", outcome, err, a.Loss())
	}
	if found, err := a.DataDir(ctx); err != nil || found.State != Valid || !found.Standby {
		t.Errorf("what was rewound could be taken for a primary's data: %+v %v", found, err)
	}
	must(t, b.Stop(ctx, Fast))
	must(t, b.Start(ctx, StartAs{Role: Primary}))
	follow(ctx, t, a, b)
	must(t, a.ForgetLoss(a.Loss().ID))
	must(t, a.Stop(ctx, Fast))
	if outcome, err := a.Rewind(ctx, upstream(b), true); err != nil || outcome != NotNeeded || a.Loss() != nil {
		t.Errorf("%s %v, noted: %+v", outcome, err, a.Loss())
	}
}
