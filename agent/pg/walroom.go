package pg

import "time"

// WALRoom is how much room PostgreSQL's WAL has left.
type WALRoom struct {
	// Bytes is what pg_wal holds, Free what the file system that it is on has left.
	Bytes, Free int64
	// FullIn is when nothing is left at the pace of the last minutes; zero: it does not grow,
	// or is not looked at for long enough.
	FullIn time.Duration
}

// WALTrend follows the room over time. The zero value is ready.
type WALTrend struct{ seen []walSample }

type walSample struct {
	at    time.Duration
	bytes int64
}

const (
	// trendOver is how far back the pace is measured, trendFrom the shortest time that says
	// anything.
	trendOver = 10 * time.Minute
	trendFrom = time.Minute
	// tightIn is from where on it is told that the room ends.
	tightIn = time.Hour
)

// Saw takes in a look: at a time of a clock that only moves forward.
func (w *WALTrend) Saw(at time.Duration, bytes, free int64) WALRoom {
	for len(w.seen) > 0 && at-w.seen[0].at > trendOver {
		w.seen = w.seen[1:]
	}
	room := WALRoom{Bytes: bytes, Free: free}
	if len(w.seen) > 0 {
		first := w.seen[0]
		if passed, grown := at-first.at, bytes-first.bytes; passed >= trendFrom && grown > 0 {
			room.FullIn = max(time.Second, time.Duration(float64(free)/float64(grown)*float64(passed)))
		}
	}
	w.seen = append(w.seen, walSample{at, bytes})
	return room
}

// Trouble says that WAL fills its disk: more of it is kept than PostgreSQL's settings ask for
// (Archiver.Keeps), and what is free is little beside it or ends soon. It stays the same while
// that does. Nothing is known where the settings are not.
func (r WALRoom) Trouble(a Archiver) string {
	if a.Keeps <= 0 || r.Bytes <= a.Keeps+a.Keeps/10 {
		return ""
	}
	kept := "a replication slot or a backup that runs keeps it (pg_replication_slots)"
	if a.On && a.Waiting > 0 {
		kept = "the archive has not taken it (pg_stat_archiver)"
	}
	switch {
	case r.Free < r.Bytes/4:
		return "more than max_wal_size and wal_keep_size ask for is kept, and what is free is less than a quarter of it; " + kept
	case r.FullIn > 0 && r.FullIn < tightIn:
		return "more than max_wal_size and wal_keep_size ask for is kept, and at the pace of the last minutes nothing is free in an hour; " + kept
	}
	return ""
}
