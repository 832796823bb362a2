package fence

import "testing"

func TestNowMovesForward(t *testing.T) {
	last := Now()
	if last <= 0 {
		t.Fatalf("since boot: %s", last)
	}
	for range 1000 {
		now := Now()
		if now < last {
			t.Fatalf("%s after %s", now, last)
		}
		last = now
	}
}
