package lab

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestLongestGap(t *testing.T) {
	begun := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func(ms int) time.Time { return begun.Add(time.Duration(ms) * time.Millisecond) }
	acks := func(ms ...int) []Ack {
		var list []Ack
		for i, m := range ms {
			list = append(list, Ack{ID: int64(i + 1), At: at(m)})
		}
		return list
	}
	tests := map[string]struct {
		acks     []Ack
		from, to int
		want     int
	}{
		"none within":                           {acks(10, 20, 30, 40), 15, 35, 10},
		"the longest of several":                {acks(10, 30, 35, 95, 100), 0, 100, 60},
		"one that began before the span":        {acks(10, 200, 210), 100, 210, 190},
		"one that lasts beyond the span":        {acks(10, 20, 300), 0, 100, 280},
		"one that was over before":              {acks(10, 500, 510, 520), 505, 520, 10},
		"one that began after":                  {acks(10, 20, 30, 900), 0, 25, 10},
		"one that is not over":                  {acks(10, 20), 0, 500, 480},
		"no acknowledgement at all":             {nil, 0, 700, 700},
		"before the first acknowledgement":      {acks(400, 410), 0, 410, 400},
		"exactly at the borders does not touch": {acks(10, 100, 110), 100, 105, 10},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got := longestGap(tc.acks, begun, at(tc.from), at(tc.to))
			if want := time.Duration(tc.want) * time.Millisecond; got != want {
				t.Errorf("got %v, want %v", got, want)
			}
		})
	}
}

func TestMissing(t *testing.T) {
	tests := map[string]struct {
		acked, present, want []int64
	}{
		"nothing acknowledged":              {nil, []int64{1, 2}, nil},
		"all there":                         {[]int64{1, 2, 4}, []int64{1, 2, 4}, nil},
		"more there than was acknowledged":  {[]int64{2, 4}, []int64{1, 2, 3, 4, 5}, nil},
		"the end is lost":                   {[]int64{1, 2, 3}, []int64{1}, []int64{2, 3}},
		"the beginning and a hole are lost": {[]int64{1, 2, 3, 7, 8}, []int64{2, 3, 8}, []int64{1, 7}},
		"all lost":                          {[]int64{5, 6}, nil, []int64{5, 6}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			var acked ranges
			for _, id := range tc.acked {
				acked = acked.add(id)
			}
			if acked.count() != int64(len(tc.acked)) {
				t.Errorf("counts %d ids, has %d", acked.count(), len(tc.acked))
			}
			rest := tc.present
			next := func() (int64, bool) {
				if len(rest) == 0 {
					return 0, false
				}
				id := rest[0]
				rest = rest[1:]
				return id, true
			}
			ids, count := acked.missing(next, 10)
			if !slices.Equal(ids, tc.want) || count != int64(len(tc.want)) {
				t.Errorf("missing %v (%d), want %v", ids, count, tc.want)
			}
		})
	}
}

func TestMissingCountsBeyondTheLimit(t *testing.T) {
	ids, count := ranges{{1, 1000}}.missing(func() (int64, bool) { return 0, false }, 3)
	if len(ids) != 3 || count != 1000 {
		t.Errorf("%v, %d", ids, count)
	}
}

func TestHistoryForgetsOldAcksButNoID(t *testing.T) {
	h := newHistory(time.Minute)
	at := time.Now()
	const n = 4096
	for id := int64(1); id <= n; id++ {
		at = at.Add(time.Second)
		h.ack(Ack{ID: id, At: at})
	}
	if got := len(h.Acks(time.Time{}, at)); got >= n || got < 60 {
		t.Errorf("%d acknowledgements are remembered one by one", got)
	}
	if h.Acked() != n || h.ackedRanges().count() != n {
		t.Errorf("%d acknowledged, ids of %d are known", h.Acked(), h.ackedRanges().count())
	}
}

func TestHistoryIsWrittenInOrder(t *testing.T) {
	h := newHistory(0)
	now := time.Now()
	h.ack(Ack{ID: 1, At: now.Add(2 * time.Second), Took: time.Millisecond})
	h.fail(ClientError{At: now.Add(time.Second), Err: "two\nlines"})
	var b strings.Builder
	if _, err := h.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(b.String()), "\n")
	if len(lines) != 2 || !strings.Contains(lines[0], "two lines") || !strings.Contains(lines[1], "ack 1") {
		t.Errorf("%q", lines)
	}
	if len(h.Errors(now, now)) != 0 || len(h.Errors(now, now.Add(time.Minute))) != 1 {
		t.Error("errors are not chosen by their time")
	}
}
