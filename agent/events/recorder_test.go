package events

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lictor-ha/lictor/agent/cluster"
)

var base = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// at makes a view of member b at so many milliseconds.
func at(ms int64, edit func(*View)) View {
	v := View{
		Now: cluster.Instant(time.Hour + time.Duration(ms)*time.Millisecond), Wall: base.Add(time.Duration(ms) * time.Millisecond),
		Self: "b", Leader: "a", Beat: &cluster.Beat{LeaseMS: 8000, Number: 1, Owner: "a"},
		BeatSeen: cluster.Instant(time.Hour), Timeline: 1, Config: map[string]any{"ttl": 8},
		Others: []string{"a", "c"},
	}
	edit(&v)
	v.ConfigIndex = uint64(len(fmt.Sprint(v.Config)))
	return v
}

func leads(edit func(*View)) func(*View) {
	return func(v *View) {
		v.Leads, v.Leader, v.Timeline = true, "b", 2
		v.Beat = &cluster.Beat{LeaseMS: 8000, Number: 9, Owner: "b"}
		edit(v)
	}
}

func same0(*View) {}

func primary(v *View) { v.Primary = true }

func routed(v *View) { v.Primary, v.Routed = true, true }

func wrote(ms int64) func(*View) {
	return func(v *View) {
		v.Primary, v.Routed = true, true
		v.Wrote = cluster.Instant(time.Hour + time.Duration(ms)*time.Millisecond)
	}
}

func gone(v *View) { v.Gone, v.Leader = true, "" }

func TestRecorder(t *testing.T) {
	request := cluster.Failover{Leader: "a", Candidate: "b"}
	ours := cluster.Failover{Leader: "b", Candidate: "c"}
	released := &cluster.Beat{LeaseMS: 8000, Number: 2, Owner: "a", Released: true, Successor: "b"}
	for _, c := range []struct {
		name  string
		views []View
		want  []Event
	}{
		{
			name: "failover",
			views: []View{
				at(0, same0), at(8100, gone), at(8300, leads(same0)), at(8700, leads(primary)),
				at(8750, leads(routed)), at(8800, leads(wrote(8790))),
			},
			want: []Event{{
				At: base, Kind: Failover, By: "b", From: "a", To: "b", Outcome: Done, Timeline: 2, TookMS: 8750,
				Cause:  "no sign of life from a for 8.3 s, more than its lease of 8 s",
				Phases: []Phase{{Noticed, 8100}, {Elected, 8300}, {Promoted, 8700}, {Routed, 8750}, {FirstWrite, 8790}},
			}},
		},
		{
			name: "an agent that was restarted leads on",
			views: []View{
				at(0, leads(func(v *View) { routed(v); v.Made = map[string]string{"c": "2026 by basebackup"} })),
				at(1000, leads(routed)),
			},
		},
		{
			name: "an operator overrides the lease",
			views: []View{
				at(0, same0), at(1000, gone),
				at(2000, func(v *View) { v.Gone, v.Leader, v.Request = true, "", cluster.Failover{Candidate: "b"} }),
				at(2100, func(v *View) {
					v.Gone, v.Leader, v.Request, v.Beat = true, "", cluster.Failover{Candidate: "b"}, released
				}),
				at(2200, leads(same0)), at(2700, leads(routed)),
			},
			want: []Event{{
				At: base, Kind: Failover, By: "b", From: "a", To: "b", Outcome: Done, Timeline: 2, TookMS: 2700,
				Cause:  "an operator asked for a failover to b",
				Phases: []Phase{{Noticed, 1000}, {Elected, 2200}, {Promoted, 2700}, {Routed, 2700}},
			}},
		},
		{
			name: "switchover",
			views: []View{
				at(0, same0),
				at(1000, func(v *View) { v.Request = request }),
				at(1400, func(v *View) { v.Request, v.Gone, v.Beat = request, true, released }),
				at(1500, leads(same0)), at(1700, leads(routed)),
			},
			want: []Event{{
				At: base.Add(time.Second), Kind: Switchover, By: "b", From: "a", To: "b", Outcome: Done, Timeline: 2, TookMS: 700,
				Cause:  "asked for by an operator",
				Phases: []Phase{{Noticed, 400}, {Elected, 500}, {Promoted, 700}, {Routed, 700}},
			}},
		},
		{
			name: "the takeover shows before its answer",
			views: []View{
				at(0, same0),
				at(1000, func(v *View) { v.Request = request }),
				at(1400, func(v *View) { v.Request, v.Gone, v.Beat = request, true, released }),
				at(1450, func(v *View) { leads(same0)(v); v.Leads, v.Request = false, request }),
				at(1500, leads(same0)), at(1700, leads(routed)),
			},
			want: []Event{{
				At: base.Add(time.Second), Kind: Switchover, By: "b", From: "a", To: "b", Outcome: Done, Timeline: 2, TookMS: 700,
				Cause:  "asked for by an operator",
				Phases: []Phase{{Noticed, 400}, {Elected, 500}, {Promoted, 700}, {Routed, 700}},
			}},
		},
		{
			name: "the same member leads again after it was fenced",
			views: []View{
				at(0, same0), at(8100, gone), at(8300, leads(routed)),
				at(9000, func(v *View) {
					leads(same0)(v)
					v.Leads, v.Gone, v.Leader = false, true, ""
					v.BeatSeen = cluster.Instant(time.Hour + 8500*time.Millisecond)
				}),
				at(9500, leads(routed)),
			},
			want: []Event{
				{
					At: base, Kind: Failover, By: "b", From: "a", To: "b", Outcome: Done, Timeline: 2, TookMS: 8300,
					Cause:  "no sign of life from a for 8.3 s, more than its lease of 8 s",
					Phases: []Phase{{Noticed, 8100}, {Elected, 8300}, {Promoted, 8300}, {Routed, 8300}},
				},
				{
					At: base.Add(8500 * time.Millisecond), Kind: Resumed, By: "b", From: "b", To: "b", Outcome: Done, Timeline: 2, TookMS: 1000,
					Cause:  "nobody else has led meanwhile",
					Phases: []Phase{{Noticed, 500}, {Elected, 1000}, {Promoted, 1000}, {Routed, 1000}},
				},
			},
		},
		{
			name: "the old leader left",
			views: []View{at(0, same0), at(2000, func(v *View) {
				v.Gone, v.BeatSeen = true, cluster.Instant(time.Hour+1900*time.Millisecond)
				v.Beat = &cluster.Beat{LeaseMS: 8000, Owner: "a", Released: true}
			}), at(2100, leads(same0))},
			want: []Event{{
				At: base.Add(1900 * time.Millisecond), Kind: Failover, By: "b", From: "a", To: "b", Outcome: UnderWay, Timeline: 2,
				Cause: "a gave the lead up", Phases: []Phase{{Noticed, 100}, {Elected, 200}},
			}},
		},
		{
			name:  "bootstrap",
			views: []View{at(0, func(v *View) { v.Leader, v.Beat, v.Gone = "", nil, true }), at(900, leads(routed))},
			want: []Event{{
				At: base, Kind: Bootstrap, By: "b", To: "b", Outcome: Done, Timeline: 2, TookMS: 900,
				Phases: []Phase{{Noticed, 0}, {Elected, 900}, {Promoted, 900}, {Routed, 900}},
			}},
		},
		{
			name: "an agent that starts as the leader records no failover",
			views: []View{
				at(0, func(v *View) { v.Leader, v.Beat, v.Gone = "b", &cluster.Beat{Owner: "b", LeaseMS: 8000}, true }),
				at(500, leads(routed)),
			},
			want: []Event{{
				At: base, Kind: Resumed, By: "b", From: "b", To: "b", Outcome: Done, Timeline: 2, TookMS: 500,
				Cause:  "nobody else has led meanwhile",
				Phases: []Phase{{Noticed, 0}, {Elected, 500}, {Promoted, 500}, {Routed, 500}},
			}},
		},
		{
			name: "a switchover that is refused, and one that is rolled back",
			views: reigning(
				func(v *View) { v.Request = ours }, func(v *View) { v.Refused = "the switchover is refused: c lags" },
				func(v *View) { v.Refused, v.Request = "the switchover is refused: c lags", ours }, func(v *View) { v.Refused = "rolled back: c hangs" },
			),
			want: []Event{
				{At: base.Add(2 * time.Second), Kind: Switchover, By: "b", From: "b", To: "c", Outcome: Refused, Cause: "c lags", TookMS: 1000},
				{At: base.Add(4 * time.Second), Kind: Switchover, By: "b", From: "b", To: "c", Outcome: RolledBack, Cause: "c hangs", TookMS: 1000},
			},
		},
		{
			name: "crash and recovery",
			views: reigning(
				func(v *View) { v.Primary, v.Down = false, true }, func(v *View) { v.Primary, v.Down = false, true }, same0,
			),
			want: []Event{{
				At: base.Add(2 * time.Second), Kind: Crash, By: "b", To: "b", Outcome: Done, TookMS: 2000,
				Cause: "PostgreSQL does not run any more; its log, or the agent's, says why", Phases: []Phase{{Recovered, 2000}},
			}},
		},
		{
			name: "pause, members, configuration",
			views: reigning(
				func(v *View) { v.Paused = true; v.Config = map[string]any{"ttl": 8, "pause": true} },
				func(v *View) {
					v.Others = []string{"c"}
					v.Config = map[string]any{"ttl": 9, "postgresql": map[string]any{"parameters": map[string]any{"x": "secret"}}}
				},
				func(v *View) {
					v.Config = map[string]any{"ttl": 9, "postgresql": map[string]any{"parameters": map[string]any{"x": "other"}}}
				},
			),
			want: []Event{
				{At: base.Add(2 * time.Second), Kind: Paused, By: "b"},
				{At: base.Add(3 * time.Second), Kind: Unpaused, By: "b"},
				{At: base.Add(3 * time.Second), Kind: MemberLost, By: "b", To: "a"},
				{At: base.Add(3 * time.Second), Kind: Configured, By: "b", Cause: "pause, postgresql, ttl"},
				{At: base.Add(4 * time.Second), Kind: MemberBack, By: "b", To: "a"},
				{At: base.Add(4 * time.Second), Kind: Configured, By: "b", Cause: "postgresql.parameters.x"},
			},
		},
		{
			name:  "a guard's watcher that was killed, and then a new guard",
			views: reigning(func(v *View) { v.WatchersLost = 1 }, func(v *View) { v.WatchersLost = 1 }, func(v *View) { v.WatchersLost = 0 }),
			want: []Event{
				{At: base.Add(2 * time.Second), Kind: WatcherLost, By: "b", To: "b", Cause: "the guard's watcher was killed or has crashed"},
			},
		},
		{
			name:  "failsafe",
			views: reigning(func(v *View) { v.Failsafe = true }, func(v *View) { v.Failsafe = true }, same0),
			want: []Event{{
				At: base.Add(2 * time.Second), Kind: Failsafe, By: "b", To: "b", Outcome: Done, TookMS: 2000,
				Cause: "Consul does not answer; all members let the lease go on",
			}},
		},
		{
			name: "WAL that cannot be archived",
			views: reigning(func(v *View) { v.ArchiveTrouble = "f.1 waits" }, func(v *View) { v.ArchiveTrouble = "f.1 and f.2 wait" }, same0,
				func(v *View) { v.ArchiveTrouble = "f.3 waits" }, func(v *View) { v.Leads, v.Leader, v.Reason = false, "a", "fenced" }),
			want: []Event{
				{At: base.Add(2 * time.Second), Kind: ArchiveFails, By: "b", To: "b", Outcome: Done, TookMS: 2000, Cause: "f.1 waits"},
				{At: base.Add(5 * time.Second), Kind: ArchiveFails, By: "b", To: "b", Outcome: UnderWay, TookMS: 1000, Cause: "ended with the lead: fenced"},
			},
		},
		{
			name: "members that were made",
			views: reigning(func(v *View) { v.Made = map[string]string{"c": "1 by pgbackrest in 3 s"} }, func(v *View) { v.Made = nil },
				func(v *View) { v.Made = map[string]string{"c": "1 by pgbackrest in 3 s"} },
				func(v *View) { v.Made = map[string]string{"c": "2 by basebackup in 9 s; method pgbackrest: gone"} }),
			want: []Event{
				{At: base.Add(2 * time.Second), Kind: MemberMade, By: "b", To: "c", Cause: "by pgbackrest in 3 s"},
				{At: base.Add(5 * time.Second), Kind: MemberMade, By: "b", To: "c", Cause: "by basebackup in 9 s; method pgbackrest: gone"},
			},
		},
		{
			name: "a member that cannot go on",
			views: reigning(func(v *View) { v.Stranded = map[string]string{"c": "its WAL is gone"} },
				func(v *View) { v.Stranded = map[string]string{"c": "its WAL is gone"} }, func(v *View) { v.Stranded = nil },
				func(v *View) { v.Stranded = map[string]string{"c": "it cannot be rewound"} }),
			want: []Event{
				{At: base.Add(2 * time.Second), Kind: MemberStranded, By: "b", To: "c", Cause: "its WAL is gone"},
				{At: base.Add(5 * time.Second), Kind: MemberStranded, By: "b", To: "c", Cause: "it cannot be rewound"},
			},
		},
		{
			name:  "the lead is lost before there was a primary",
			views: []View{at(0, same0), at(9000, gone), at(9100, leads(same0)), at(9300, func(v *View) { v.Reason = "fenced" })},
			want: []Event{{
				At: base, Kind: Failover, By: "b", From: "a", To: "b", Timeline: 2,
				Cause:  "no sign of life from a for 9.1 s, more than its lease of 8 s; b has lost the lead again: fenced",
				Phases: []Phase{{Noticed, 9000}, {Elected, 9100}},
			}},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			var r Recorder
			for _, v := range c.views {
				r.Observe(v)
			}
			got := r.Pending()
			if strings.Contains(fmt.Sprint(got), "secret") {
				t.Errorf("a value is told: %v", got)
			}
			if len(got) > len(c.want) && got[0].Kind == Resumed {
				got = got[1:] // how reigning begins
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// reigning is a leader that sees these things, a second apart.
func reigning(edits ...func(*View)) []View {
	views := []View{at(0, func(v *View) { v.Leader, v.Beat, v.Gone = "b", &cluster.Beat{Owner: "b"}, true }), at(1000, leads(routed))}
	for i, edit := range edits {
		views = append(views, at(int64(i+2)*1000, leads(func(v *View) { routed(v); edit(v) })))
	}
	return views
}

func TestPendingUntilWritten(t *testing.T) {
	var r Recorder
	for _, v := range reigning(func(v *View) { v.Paused = true }) {
		r.Observe(v)
	}
	if len(r.Pending()) != 2 {
		t.Fatalf("pending: %v", r.Pending())
	}
	r.Writing()
	if p := r.Pending(); p != nil {
		t.Errorf("pending while they are written: %v", p)
	}
	r.Failed()
	if len(r.Pending()) != 2 {
		t.Errorf("pending after a failure: %v", r.Pending())
	}
}

func TestMergeKeepsWhatWeighs(t *testing.T) {
	var l Log
	event := func(i int, k Kind, outcome Outcome) Event {
		return Event{At: base.Add(time.Duration(i) * time.Second), Kind: k, By: "b", Outcome: outcome, Cause: strings.Repeat("x", causeLimit)}
	}
	l = l.Merge([]Event{event(0, Failover, UnderWay)})
	for i := 1; i <= 300; i++ {
		l = l.Merge([]Event{event(i, MemberLost, "")})
	}
	l = l.Merge([]Event{event(0, Failover, Done)})
	if n := len(l.Events); n != keep+1 || l.Events[0].Kind != Failover || l.Events[0].Outcome != Done {
		t.Errorf("%d events, the first %+v", n, l.Events[0])
	}
	for i := range 300 {
		l = l.Merge([]Event{event(1000+i, Failover, Done)})
	}
	value, err := json.Marshal(l)
	if err != nil || len(value) > 64<<10 {
		t.Errorf("%d bytes, %v", len(value), err)
	}
	back, err := Parse(value)
	if diff := cmp.Diff(l, back); err != nil || diff != "" {
		t.Error(err, diff)
	}
}
