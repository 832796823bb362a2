package operator

import (
	"strings"
	"testing"
	"time"
)

// What stops a repack, and what to do: the first of several.
func TestRepackStops(t *testing.T) {
	o := RepackOptions{MaxLag: 64 << 20, MaxTransaction: time.Minute}
	for name, tt := range map[string]struct {
		change func(*repackLooks)
		want   string // empty: it goes on
	}{
		"nothing":             {func(*repackLooks) {}, ""},
		"another leads":       {func(l *repackLooks) { l.leads, l.paused = "b", true }, "b leads now, not a"},
		"nobody leads":        {func(l *repackLooks) { l.leads = "" }, "nobody leads now"},
		"paused":              {func(l *repackLooks) { l.paused = true }, "paused: lictor resume"},
		"outside the window":  {func(l *repackLooks) { l.window = "outside the maintenance windows" }, "it is outside the maintenance windows"},
		"a replica is away":   {func(l *repackLooks) { l.away = []string{"b", "c"} }, "b, c does not replicate"},
		"one went away":       {func(l *repackLooks) { l.gone = []string{"c"} }, "the slot c is away"},
		"lag as allowed":      {func(l *repackLooks) { l.lag = 64 << 20 }, ""},
		"lag":                 {func(l *repackLooks) { l.lag, l.lags = 64<<20+1, "c" }, "c lags 64 MB, more than 64 MB (--max-lag)"},
		"a young transaction": {func(l *repackLooks) { l.transaction = time.Minute }, ""},
		"an old transaction":  {func(l *repackLooks) { l.transaction, l.whose = 61*time.Second, "pid 7, app" }, "(pid 7, app), longer than"},
		"archiving fails":     {func(l *repackLooks) { l.failing = true }, "see archive_command"},
		"archiving is slow":   {func(l *repackLooks) { l.waiting = 65 }, "65 files of WAL wait"},
	} {
		look := repackLooks{leads: "a"}
		tt.change(&look)
		err := look.problem("a", o)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}

func TestRepackNeeds(t *testing.T) {
	for _, tt := range []struct {
		state repackTableState
		want  bool
	}{
		{repackTableState{}, false},
		{repackTableState{total: 10 << 20, empty: 1 << 20, emptyIndexes: 1 << 20}, true}, // 20 %
		{repackTableState{total: 10<<20 + 1<<19, empty: 1 << 20, emptyIndexes: 1 << 20}, false},
		{repackTableState{total: 1 << 20, empty: 900 << 10}, false}, // less than a MB is to be won
	} {
		if got := tt.state.needs(20); got != tt.want {
			t.Errorf("%+v (%d %%): %v", tt.state, tt.state.bloat(), got)
		}
	}
}
