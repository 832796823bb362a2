package testkit

import (
	"context"
	"errors"
	"testing"
	"time"
)

// Must ends the test on an error.
func Must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Within is a context that ends with the test, or after limit: it bounds a wait, and
// says nothing about how fast things are.
func Within(t testing.TB, limit time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	return ctx
}

// pollEvery is how often Await looks at what cannot be awaited.
const pollEvery = 20 * time.Millisecond

// Await looks again and again until probe gives no error, and ends the test with its
// last one when ctx ends before.
func Await(ctx context.Context, t testing.TB, what string, probe func() error) {
	t.Helper()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	var before error
	for {
		err := probe()
		switch {
		case err == nil:
			return
		case before != nil && ctx.Err() != nil && errors.Is(err, ctx.Err()):
			t.Fatalf("%s: %v (the last attempt: %v)", what, before, err) // that the time is over says nothing of why
		}
		before = err
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, err)
		}
	}
}
