package member

import (
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/pg"
)

func TestReaders(t *testing.T) {
	const at, limit = int64(1 << 40), int64(cluster.DefaultMaximumLagForReaders)
	standby := func(state string, replayed int64) []pg.StandbyState {
		return []pg.StandbyState{{ApplicationName: "db2", State: state, ReplayLSN: replayed}}
	}
	streams := func(replayed int64) []pg.StandbyState { return standby("streaming", replayed) }
	for name, c := range map[string]struct {
		standbys []pg.StandbyState
		key      int64  // the position that the member's key has
		state    string // what it says of its replication
		lagged   bool
		had      bool
		want     bool
	}{
		"at the limit":                         {standbys: streams(at - limit), want: true},
		"beyond the limit":                     {standbys: streams(at - limit - 1), had: true},
		"back within the limit":                {standbys: streams(at - limit/2 - 1), lagged: true},
		"back within half of it":               {standbys: streams(at - limit/2), lagged: true, want: true},
		"its key is older":                     {standbys: streams(at), key: at - 2*limit, state: "streaming", want: true},
		"it streams from a replica":            {key: at - limit, state: "streaming", want: true},
		"it streams from a replica and lags":   {key: at - limit - 1, state: "streaming", had: true},
		"from the archive":                     {key: at, state: "in archive recovery"},
		"catching up":                          {standbys: standby("catchup", at)},
		"nothing is known":                     {},
		"nothing is known of its position":     {standbys: streams(0)},
		"it had readers, and does not stream":  {key: at, had: true, want: true},
		"it had readers, nothing is known now": {had: true, want: true},
		"it lagged, and does not stream":       {had: true, lagged: true},
	} {
		t.Run(name, func(t *testing.T) {
			r := readers{lagging: map[string]bool{"db2": c.lagged}, silent: map[string]cluster.Instant{}}
			limits, _, err := cluster.ParseDynamic(nil)
			if err != nil {
				t.Fatal(err)
			}
			leader := pg.State{Accepting: true, WriteLSN: at, Standbys: c.standbys}
			member := cluster.Member{Name: "db2", ReplayLSN: c.key, ReplicationState: c.state}
			if got := r.serve(0, leader, member, c.had, limits); got != c.want {
				t.Errorf("serves: %t, want %t", got, c.want)
			}
			if got := r.serve(cluster.Instant(limits.TTL), leader, member, c.had, limits); got != (c.want && (c.state == "streaming" || c.standbys != nil)) {
				t.Errorf("a ttl later it serves: %t", got)
			}
		})
	}
}

// The delay is told by when the leader's WAL went beyond a replica's position, also
// where that stands still and few bytes are written.
func TestReadersByTime(t *testing.T) {
	limits, _, err := cluster.ParseDynamic(map[string]any{"maximum_delay_for_readers": "10s"})
	if err != nil {
		t.Fatal(err)
	}
	r := readers{lagging: map[string]bool{}, silent: map[string]cluster.Instant{}}
	leader := pg.State{Accepting: true}
	member := cluster.Member{Name: "db2"}
	step := func(second int, written, replayed int64) bool {
		now := cluster.Instant(time.Duration(second) * time.Second)
		leader.WriteLSN = written
		leader.Standbys = []pg.StandbyState{{ApplicationName: "db2", State: "streaming", ReplayLSN: replayed}}
		r.saw(now, leader)
		return r.serve(now, leader, member, true, limits)
	}
	for _, c := range []struct {
		second            int
		written, replayed int64
		want              bool
	}{
		{0, 100, 100, true},
		{1000, 100, 100, true}, // nothing was written: no delay
		{1001, 200, 100, true},
		{1011, 300, 100, true},
		{1012, 300, 100, false}, // 11 s behind
		{1013, 400, 150, false},
		{1014, 400, 300, true}, // 1 s
		{1030, 400, 400, true},
	} {
		if got := step(c.second, c.written, c.replayed); got != c.want {
			t.Errorf("after %d s: serves %t, want %t", c.second, got, c.want)
		}
	}
	for second := range 5000 {
		step(2000+second, int64(1000+second), int64(1000+second))
	}
	if len(r.passed) > mostPassed {
		t.Errorf("%d positions are kept", len(r.passed))
	}
	if got := r.delay(cluster.Instant(7000*time.Second), 1000+5000-100); got < 90*time.Second || got > 110*time.Second {
		t.Errorf("a delay of about 100 s is taken for %s", got)
	}
}

// A member tagged nostream is never more than a segment behind, and yet for how long as
// the leader writes little.
func TestReadersByTheArchive(t *testing.T) {
	limits, _, err := cluster.ParseDynamic(nil)
	if err != nil {
		t.Fatal(err)
	}
	r := readers{lagging: map[string]bool{}, silent: map[string]cluster.Instant{}}
	leader := pg.State{Accepting: true}
	member := cluster.Member{Name: "db2", ReplicationState: pg.InArchiveRecovery, Tags: map[string]any{"nostream": true}}
	for _, c := range []struct {
		name              string
		second            int
		written, replayed int64
		limit             time.Duration
		want              bool
	}{
		{"older than the leadership", 0, 100, 90, time.Minute, false},
		{"at the end", 1, 100, 100, time.Minute, true},
		{"at the end, and no limit of time", 2, 100, 100, 0, false},
		{"nothing was written for long", 1000, 100, 100, time.Minute, true},
		{"a minute behind", 1060, 200, 100, time.Minute, true},
		{"still", 1120, 200, 100, time.Minute, true},
		{"more than a minute", 1121, 200, 100, time.Minute, false},
		{"there again", 1122, 200, 200, time.Minute, true},
		{"a segment too far", 1123, 200 + 2*limits.MaximumLagForReaders, 200, time.Minute, false},
	} {
		leader.WriteLSN, member.ReplayLSN, limits.MaximumDelayForReaders = c.written, c.replayed, c.limit
		now := cluster.Instant(time.Duration(c.second) * time.Second)
		r.saw(now, leader)
		if got := r.serve(now, leader, member, false, limits); got != c.want {
			t.Errorf("%s: serves %t, want %t", c.name, got, c.want)
		}
	}
}

func TestReadersOfReplayThatStandsStill(t *testing.T) {
	r := readers{lagging: map[string]bool{}, silent: map[string]cluster.Instant{}}
	leader := pg.State{Accepting: true, WriteLSN: 1 << 20, Standbys: []pg.StandbyState{{ApplicationName: "db2", State: pg.Streaming, ReplayLSN: 1 << 20}}}
	limits := cluster.Dynamic{MaximumLagForReaders: 16 << 20}
	member := cluster.Member{Name: "db2"}
	for _, why := range []string{"", "paused by pg_wal_replay_pause()", ""} {
		member.ReplayStandsStill = why
		if got, want := r.serve(1, leader, member, true, limits), why == ""; got != want {
			t.Errorf("replay stands still, %q: serves %t, want %t", why, got, want)
		}
	}
}
