package fence

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// at is an instant a number of seconds after an arbitrary one.
func at(s float64) cluster.Instant { return cluster.Instant(time.Hour).Add(seconds(s)) }

func TestWatchdogTimeout(t *testing.T) {
	margin := func(s int) *int { return &s }
	for _, tt := range []struct {
		ttl     float64
		margin  *int
		want    float64
		problem string
	}{
		{30, nil, 25, ""},
		{20, nil, 15, ""},
		{19.5, nil, 18, ""},
		{8, nil, 7, ""},
		{5, nil, 4, ""},
		{3, nil, 2, ""},
		{30, margin(-1), 15, ""},
		{9, margin(-1), 4, ""},
		{8, margin(4), 4, ""},
		{8, margin(0), 0, "at least 1"},
		{8, margin(7), 0, "leaves 1s"},
		{3, margin(-1), 0, "leaves 1s"},
		{8, margin(9), 0, "leaves 0s"},
	} {
		got, err := WatchdogTimeout(seconds(tt.ttl), tt.margin)
		if tt.problem != "" {
			if err == nil || !strings.Contains(err.Error(), tt.problem) {
				t.Errorf("ttl %v: error %v, want %q", tt.ttl, err, tt.problem)
			}
			continue
		}
		if err != nil || got != seconds(tt.want) {
			t.Errorf("ttl %v: %s, %v; want %v s", tt.ttl, got, err, tt.want)
		}
	}
}

func TestWatchdogTimingCheck(t *testing.T) {
	for _, tt := range []struct {
		ttl, demote, kill float64
		required          bool
		problem           string
	}{
		{8, 2, 0.8, true, ""},
		{5, 1.25, 0.5, true, ""},
		{3, 0.75, 0.3, false, ""},
		{4, 1, 0.4, true, "needs a ttl of at least 5s"},
		{8, 1, 1, false, "demote_before must be more than kill_before"},
		{8, 2, 0.2, false, "kill_before must be at least 250ms"},
	} {
		err := WatchdogTiming{TTL: seconds(tt.ttl), DemoteBefore: seconds(tt.demote), KillBefore: seconds(tt.kill)}.Check(tt.required)
		if tt.problem == "" && err != nil || tt.problem != "" && (err == nil || !strings.Contains(err.Error(), tt.problem)) {
			t.Errorf("%+v: %v", tt, err)
		}
	}
}

// The lease of a beat sent at 0 with ttl 8 ends at 8.
func TestMayKeepAlive(t *testing.T) {
	for _, tt := range []struct {
		now, until, timeout float64
		want                bool
	}{
		{0.01, 8, 7, true},
		{0.9, 8, 7, true},
		{0.901, 8, 7, false},
		{0, 8, 8, false},
		{3.9, 8, 4, true},
		{8, 8, 0.1, false},
		{20, 8, 1, false},
	} {
		if got := MayKeepAlive(at(tt.now), at(tt.until), seconds(tt.timeout)); got != tt.want {
			t.Errorf("%+v: %v", tt, got)
		}
	}
	if MayKeepAlive(at(0), 0, time.Second) {
		t.Error("a keepalive without a lease")
	}
}

func TestPlanKeepAlive(t *testing.T) {
	const never = -1000
	for name, tt := range map[string]struct {
		now, until, resetAt, timeout float64
		want                         float64 // 0: no keepalive
	}{
		"first":                      {0.01, 8, never, 7, 7},
		"next beat":                  {2.01, 10, 7.9, 7, 7},
		"no new lease":               {3, 8, 7.85, 7, 0},
		"again at once":              {0.03, 8, 7.01, 7, 0},
		"last moment":                {0.85, 8, 7.01, 7, 7},
		"answered late":              {1.5, 8, 5.85, 7, 6},
		"answered very late":         {5.5, 8, 5.85, 7, 2},
		"late, gains too little":     {1.8, 8, 7.75, 7, 0},
		"lease cut from 30 s to 8 s": {1, 8, 26, 25, 6},
		"lease cut, ttl known":       {0.5, 8, 26, 7, 7},
		"ends within a second":       {7.5, 8, 9, 7, 0},
		"over":                       {9, 8, 9.5, 7, 0},
		"shorter than asked, late":   {1.95, 8, 7.85, 7, 0},
	} {
		t.Run(name, func(t *testing.T) {
			resetAt := at(tt.resetAt)
			if tt.resetAt == never {
				resetAt = 0
			}
			got, ok := planKeepAlive(at(tt.now), at(tt.until), resetAt, seconds(tt.timeout))
			if !ok {
				got = 0
			}
			if got != seconds(tt.want) {
				t.Errorf("timeout %s, want %v s", got, tt.want)
			}
		})
	}
}

// Whatever comes round when, no keepalive puts the reset off beyond the lease, and
// an agent that runs has the reset come after the kill.
func TestKeepAlivesEndWithTheLease(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		ttl := seconds(float64(3 + rng.IntN(28)))
		timeout, err := WatchdogTimeout(ttl, nil)
		if err != nil {
			t.Fatal(err)
		}
		var now, until, resetAt cluster.Instant = at(0), 0, 0
		for range 20 { // beats; the answer takes a while
			t0 := now
			now = now.Add(time.Duration(rng.Int64N(int64(ttl / 2))))
			until = t0.Add(ttl)
			next := now.Add(time.Duration(rng.Int64N(int64(ttl / 4))))
			for {
				if to, ok := planKeepAlive(now, until, resetAt, timeout); ok {
					resetAt = now.Add(to)
				}
				if until.Before(resetAt) {
					t.Fatalf("ttl %s: reset %s after the end of the lease", ttl, resetAt.Sub(until))
				}
				wake := nextKeepAlive(now, until, resetAt, timeout)
				if !wake.IsZero() && !now.Before(wake) {
					t.Fatalf("ttl %s: the next look is not later", ttl)
				}
				if wake.IsZero() || !wake.Before(next) {
					break
				}
				now = wake
			}
			if resetAt.IsZero() || resetAt.Before(now) {
				t.Fatalf("ttl %s: the host was reset %s ago though there was a lease for %s more", ttl, now.Sub(resetAt), until.Sub(now))
			}
			now = max(now, next)
		}
		// No more beats: the reset still comes after PostgreSQL was killed, unless
		// the last answer left less than the shortest timeout.
		left := until.Sub(now)
		for wake := now; !wake.IsZero(); wake = nextKeepAlive(now, until, resetAt, timeout) {
			now = wake
			if to, ok := planKeepAlive(now, until, resetAt, timeout); ok {
				resetAt = now.Add(to)
			}
		}
		if earliest := until.Add(-watchdogSlack - watchdogLead - worthwhile); left > shortestWatchdog+watchdogSlack+watchdogLead && resetAt.Before(earliest) {
			t.Fatalf("ttl %s: the reset comes %s before the end of the lease", ttl, until.Sub(resetAt))
		}
	}
}
