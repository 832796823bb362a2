package faults

import (
	"testing"
	"time"
)

func TestOverlaps(t *testing.T) {
	at := func(member string, timeline int, earliest, acked time.Duration) Commit {
		return Commit{Member: member, Timeline: timeline, Earliest: earliest, Acked: acked}
	}
	for _, test := range []struct {
		name           string
		commits        []Commit
		proven, margin time.Duration
	}{
		{"nobody", nil, 0, 0},
		{"one", []Commit{at("a", 1, 0, 1), at("a", 1, 5, 6)}, 0, 0},
		{"one after the other", []Commit{at("a", 1, 0, 1), at("a", 1, 5, 6), at("b", 2, 10, 11), at("b", 2, 20, 21)}, 0, 4},
		{"the old one goes on", []Commit{at("a", 1, 0, 1), at("b", 2, 10, 11), at("a", 1, 15, 16), at("b", 2, 20, 21)}, 4, -6},
		{"in any order", []Commit{at("b", 2, 20, 21), at("a", 1, 15, 16), at("b", 2, 10, 11), at("a", 1, 0, 1)}, 4, -6},
		// The old one's last commit was sent early and acknowledged late: it may
		// have taken effect before the new one's first.
		{"a slow answer proves nothing", []Commit{at("a", 1, 0, 1), at("a", 1, 5, 30), at("b", 2, 10, 11), at("b", 2, 40, 41)}, 0, -20},
		{"a statement known to have run long", []Commit{at("a", 1, 0, 1), at("a", 1, 25, 30), at("b", 2, 10, 11), at("b", 2, 40, 41)}, 14, -20},
		{"there and back", []Commit{at("a", 1, 0, 1), at("b", 2, 10, 11), at("a", 3, 20, 21)}, 0, 9},
		{"both on one new timeline", []Commit{at("a", 2, 0, 1), at("b", 2, 0, 1), at("a", 2, 10, 11), at("b", 2, 10, 11)}, 9, -11},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := Overlaps(reignsOf(test.commits))
			if got.Proven != test.proven || got.Margin != test.margin {
				t.Errorf("proven %d, margin %d; want %d, %d", got.Proven, got.Margin, test.proven, test.margin)
			}
		})
	}
}

func reignsOf(commits []Commit) []Reign {
	var b book
	for _, c := range commits {
		b.add(c)
	}
	return b.list()
}
