package commands

import (
	"testing"
	"time"
)

func TestSecondsFlag(t *testing.T) {
	for text, want := range map[string]time.Duration{"30": 30 * time.Second, "0.5": 500 * time.Millisecond, "2m": 2 * time.Minute, "x": 0, "0": 0, "-1s": 0} {
		var got seconds
		if err := got.Set(text); (err == nil) != (want > 0) || time.Duration(got) != want {
			t.Errorf("%q: %v, %v", text, time.Duration(got), err)
		}
	}
}
