package ha

import (
	"errors"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

func at(s float64) cluster.Instant { return cluster.Instant(s * float64(time.Second)) }

func TestLease(t *testing.T) {
	const ttl = 8 * time.Second
	type step struct {
		do   string
		now  float64
		t0   float64
		ttl  time.Duration
		over bool // the step must be refused
	}
	for name, test := range map[string]struct {
		steps []step
		until float64 // 0: no lease
	}{
		"none":                        {nil, 0},
		"granted from sending on":     {[]step{{do: "grant", t0: 100, ttl: ttl}}, 108},
		"a beat prolongs from its t0": {[]step{{do: "grant", t0: 100, ttl: ttl}, {do: "extend", now: 104, t0: 102, ttl: ttl}}, 110},
		"an older answer shortens nothing": {[]step{
			{do: "grant", t0: 100, ttl: ttl},
			{do: "extend", now: 105, t0: 104, ttl: ttl},
			{do: "extend", now: 106, t0: 102, ttl: ttl},
		}, 112},
		"a shorter ttl alone shortens nothing": {[]step{{do: "grant", t0: 100, ttl: ttl}, {do: "extend", now: 101, t0: 101, ttl: 3 * time.Second}}, 108},
		"a longer ttl prolongs":                {[]step{{do: "grant", t0: 100, ttl: ttl}, {do: "extend", now: 101, t0: 101, ttl: 30 * time.Second}}, 131},
		"just before the end":                  {[]step{{do: "grant", t0: 100, ttl: ttl}, {do: "extend", now: 107.999, t0: 102, ttl: ttl}}, 110},
		"never at the end":                     {[]step{{do: "grant", t0: 100, ttl: ttl}, {do: "extend", now: 108, t0: 107, ttl: ttl, over: true}}, 108},
		"never after the end":                  {[]step{{do: "grant", t0: 100, ttl: ttl}, {do: "extend", now: 500, t0: 107, ttl: ttl, over: true}}, 108},
		"never without a grant":                {[]step{{do: "extend", now: 1, t0: 1, ttl: ttl, over: true}}, 0},
		"never after a drop":                   {[]step{{do: "grant", t0: 100, ttl: ttl}, {do: "drop"}, {do: "extend", now: 101, t0: 101, ttl: ttl, over: true}}, 0},
		"a new grant after the end":            {[]step{{do: "grant", t0: 100, ttl: ttl}, {do: "grant", t0: 200, ttl: ttl}}, 208},
		"shortened before a beat":              {[]step{{do: "grant", t0: 100, ttl: 30 * time.Second}, {do: "shorten", t0: 101, ttl: ttl}}, 109},
		"not shortened by a longer ttl":        {[]step{{do: "grant", t0: 100, ttl: ttl}, {do: "shorten", t0: 101, ttl: 30 * time.Second}}, 108},
		"shortening grants nothing":            {[]step{{do: "shorten", t0: 101, ttl: ttl}}, 0},
		"shortened into the past":              {[]step{{do: "grant", t0: 100, ttl: ttl}, {do: "shorten", t0: 90, ttl: ttl}, {do: "extend", now: 99, t0: 99, ttl: ttl, over: true}}, 98},
		"shortened, then the beat succeeds": {[]step{
			{do: "grant", t0: 100, ttl: 30 * time.Second},
			{do: "shorten", t0: 102, ttl: ttl},
			{do: "extend", now: 103, t0: 102, ttl: ttl},
			{do: "extend", now: 105, t0: 104, ttl: ttl},
		}, 112},
	} {
		t.Run(name, func(t *testing.T) {
			var l lease
			for i, s := range test.steps {
				var err error
				switch s.do {
				case "grant":
					l.grant(at(s.t0), s.ttl)
				case "extend":
					err = l.extend(at(s.now), at(s.t0), s.ttl)
				case "shorten":
					l.shorten(at(s.t0), s.ttl)
				case "drop":
					l.drop()
				}
				if errors.Is(err, ErrLeaseOver) != s.over {
					t.Errorf("step %d, %s: %v", i, s.do, err)
				}
			}
			end := at(test.until)
			if l.until != end {
				t.Fatalf("until %s, want %s", l.until, end)
			}
			if end.IsZero() {
				if l.held(0) || l.held(at(1)) {
					t.Error("no lease, but held")
				}
				return
			}
			if !l.held(end-1) || l.held(end) || l.held(end+1) {
				t.Errorf("held before, at and after the end: %v %v %v", l.held(end-1), l.held(end), l.held(end+1))
			}
		})
	}
}

// Whatever the order of events, a lease that is over stays over until it is
// granted anew, and what a beat that was sent at t0 gives ends at t0 + ttl.
func FuzzLease(f *testing.F) {
	f.Add([]byte{0, 8, 1, 3, 2, 8, 1, 0, 4, 8})
	f.Add([]byte{200, 1, 100, 2, 50, 3})
	f.Fuzz(func(t *testing.T, moves []byte) {
		var l lease
		now := at(1000)
		l.grant(now, 8*time.Second)
		granted := l.until
		for i := 0; i+1 < len(moves); i += 2 {
			now = now.Add(time.Duration(moves[i]) * 100 * time.Millisecond)
			ttl := time.Duration(moves[i+1]%30+1) * time.Second
			t0 := now.Add(-time.Duration(moves[i+1]) * 50 * time.Millisecond)
			before, held := l.until, l.held(now)
			if moves[i]%5 == 0 {
				l.shorten(t0, ttl)
				if l.until > before || l.until > t0.Add(ttl) {
					t.Fatalf("shortened from %s to %s", before, l.until)
				}
				continue
			}
			err := l.extend(now, t0, ttl)
			switch {
			case held != (err == nil):
				t.Fatalf("held at %s: %v, but %v", now, held, err)
			case !held && l.until != before:
				t.Fatalf("over at %s, moved from %s to %s", now, before, l.until)
			case l.until < before:
				t.Fatalf("an extension shortened from %s to %s", before, l.until)
			case l.until > max(before, t0.Add(ttl), granted):
				t.Fatalf("until %s, sent at %s for %s", l.until, t0, ttl)
			}
		}
	})
}
