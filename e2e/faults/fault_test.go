package faults

import (
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lictor-ha/lictor/e2e/lab"
)

// TestLimits: a limit tells what a fault may cost from the next worse thing, at
// every ttl: "nothing" is less than a lease, which is what a lease lost costs.
func TestLimits(t *testing.T) {
	for _, ttl := range []int{0, 3, 5, 8, 30} {
		times := timing(ttl)
		limit := func(c Cost) time.Duration { return Expect{Writes: c}.limit(times, time.Minute) }
		if limit(Nothing) >= times.TTL {
			t.Errorf("ttl %d: nothing may cost %v", ttl, limit(Nothing))
		}
		if limit(Failover) <= times.TTL || limit(Outage) != limit(Failover)+time.Minute {
			t.Errorf("ttl %d: a failover may cost %v, an outage of a minute %v", ttl, limit(Failover), limit(Outage))
		}
	}
}

// TestDidNothing: only what PostgreSQL itself refused is certain.
func TestDidNothing(t *testing.T) {
	for _, test := range []struct {
		err  error
		want bool
	}{
		{&pgconn.PgError{Severity: "ERROR", Code: "25006"}, true},
		{&pgconn.PgError{Severity: "ERROR", Code: "53100"}, true},
		{&pgconn.PgError{Severity: "FATAL", Code: "08P01", Message: "server conn crashed?"}, false},
		{&pgconn.PgError{Severity: "FATAL", Code: "57P01"}, false},
		{errors.New("unexpected EOF"), false},
	} {
		if got := didNothing(test.err); got != test.want {
			t.Errorf("%v: %v", test.err, got)
		}
	}
}

func TestGapBegan(t *testing.T) {
	start := time.Now()
	at := func(ms ...int) (acks []lab.Ack) {
		for _, n := range ms {
			acks = append(acks, lab.Ack{At: start.Add(time.Duration(n) * time.Millisecond)})
		}
		return acks
	}
	for _, test := range []struct {
		acks []lab.Ack
		gap  int
		want int
	}{
		{at(0, 10, 20, 120, 130), 100, 20},
		{at(50, 60, 70), 80, -30},
	} {
		got := gapBegan(test.acks, time.Duration(test.gap)*time.Millisecond).Sub(start)
		if got != time.Duration(test.want)*time.Millisecond {
			t.Errorf("a gap of %d ms began at %v, not %d ms", test.gap, got, test.want)
		}
	}
}
