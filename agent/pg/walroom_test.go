package pg

import (
	"strings"
	"testing"
	"time"
)

// WAL that fills its disk is told of before the disk is full, and WAL that comes and goes is not.
func TestWALRoom(t *testing.T) {
	const mb = 1 << 20
	asks := Archiver{Keeps: 1000 * mb}
	waits := asks
	waits.On, waits.Waiting = true, 50
	for _, test := range []struct {
		name     string
		archiver Archiver
		perLook  int64 // MB in 10 s
		from     int64
		looks    int
		free     int64
		want     string
	}{
		{"it stands", waits, 0, 2000, 100, 1000, ""},
		{"it grows to what the settings ask for", asks, 10, 100, 90, 50, ""},
		{"it grows, and there is room", waits, 1, 1200, 100, 100000, ""},
		{"the archive fails", waits, 10, 1200, 30, 3000, "nothing is free in an hour; the archive has not taken it"},
		{"a slot keeps it", asks, 10, 1200, 30, 3000, "a replication slot"},
		{"it was looked at for a moment", waits, 10, 1200, 3, 20000, ""},
		{"hardly any room", waits, 0, 1200, 1, 250, "less than a quarter"},
		{"the settings are not known", Archiver{}, 10, 1200, 30, 10, ""},
	} {
		var trend WALTrend
		var room WALRoom
		bytes := test.from
		for i := range test.looks {
			room = trend.Saw(time.Duration(i)*10*time.Second, bytes*mb, test.free*mb)
			bytes += test.perLook
		}
		if got := room.Trouble(test.archiver); test.want == "" && got != "" || !strings.Contains(got, test.want) {
			t.Errorf("%s: %q, want %q (%+v)", test.name, got, test.want, room)
		}
		if len(trend.seen) > 62 {
			t.Errorf("%s: %d looks are remembered", test.name, len(trend.seen))
		}
	}
	var trend WALTrend
	trend.Saw(0, 100*mb, 1000*mb)
	if got := trend.Saw(2*time.Minute, 200*mb, 900*mb).FullIn; got != 18*time.Minute {
		t.Errorf("100 MB in 2 min, 900 MB are left: %s", got)
	}
}
