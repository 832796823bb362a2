package ha

import (
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// discards makes the status say that what was written up to a timeline was discarded.
func discards(timeline int) func(*View) {
	return func(v *View) { v.Cluster.Status.Value.Lictor.Discarded = timeline }
}

// noted: a restore of this member's, which has written that number, has not ended.
func noted(timeline int) func(*View) {
	return func(v *View) { v.Postgres.Restore = &Discard{Timeline: timeline} }
}

func setAside(v *View) {
	down(v)
	v.Postgres.Data, v.Postgres.Primary = DataSetAside, false
}

// WAL that a restore has discarded leads nobody.
func TestDiscardedWAL(t *testing.T) {
	expired := leads("b", ttl+ttl/40+time.Second)
	own := leads("a", ttl+ttl/40+time.Second)
	on2 := func(v *View) { v.Postgres.Timeline = 2 }
	forced := request(cluster.Failover{Candidate: "a"})
	restores := func(v *View) { // c would be one that could lead
		*v = view(holdsLease(7*time.Second), discards(1), doingTask(TaskRestore), asked(peer("c", 2, 9000)))
		v.Postgres.UnservedSince, v.Postgres.DiskTrouble, v.Postgres.DiskSince = now.Add(-time.Hour), "hangs", now.Add(-time.Hour)
	}
	runSituations(t, []situationTest{
		{"a replica that has it does not lead", view(expired, discards(1), asked()), "", "is on timeline 1, and what was written up to timeline 1 was discarded by a restore"},
		{"not even where the operator says so", view(expired, discards(1), forced, asked()), "", "discarded by a restore"},
		{"one whose timeline is not known does not", view(expired, discards(1), func(v *View) { v.Postgres.Timeline = 0 }, asked()), "", "discarded by a restore"},
		{"one of the restored shard does", view(expired, discards(1), on2, asked()), "take over (status at 45)", "best"},
		{"and waits for nobody who has it", view(expired, discards(1), on2, asked(peer("c", 1, 9000))), "take over (status at 45)", "best"},
		{"nothing was discarded", view(expired, discards(0), asked()), "take over (status at 45)", "best"},

		{"a restore that has not ended is undone", view(own, discards(1), noted(1), setAside), "put the data back", "put back"},
		{"by a leader, too", view(holdsLease(7*time.Second), discards(1), noted(1), setAside, asked()), "put the data back", "put back"},
		{"and where another one leads", view(leads("b", 0), noted(1), setAside), "put the data back", "put back"},
		{"not at once after it failed", view(own, discards(1), noted(1), setAside, func(v *View) { v.Attempt = Attempt{Kind: TaskRestore, Failures: 1, NotUntil: now + 1} }), "", "waiting to try again"},
		{"then the lock is taken again", view(own, discards(1), noted(1), down, primary, asked(), func(v *View) { v.Lease.Renewed = 1 }), "take over (status at 45)", "taking our own lock again"},
		{"by a replica, too", view(own, discards(1), noted(1), lockGone, asked()), "take over (status at 45)", "best"},
		{"nothing is started before a beat", view(holdsLease(7*time.Second), discards(1), noted(1), down, asked()), "", "the next beat says that nothing was discarded"},
		{"the note goes with the beat", view(holdsLease(7*time.Second), discards(0), noted(1), down, asked()), "drop the note of the restore", "undone"},
		{"not while a write is under way", view(holdsLease(7*time.Second), discards(0), noted(1), down, asked(), inFlight), "", "a restore is undone"},
		{"the note of one that was never told", view(leads("b", 0), noted(1)), "drop the note of the restore", "undone"},
		{"then it is started", view(holdsLease(7*time.Second), discards(0), down, asked()), "start as primary", "started again"},

		{"a restore that replaces the data may take its time", view(restores, func(v *View) { v.Postgres.Replacing = true }), "", "busy: restore"},
		{"so may one that puts the old ones back", view(restores, noted(1), setAside), "", "busy: restore"},
		{"before it has told anybody it may not", view(restores), "give the lease up to c", "served nobody"},
	})
	v := view(holdsLease(7*time.Second), discards(1), on2, asked(peer("c", 1, 9000)))
	if v.electable(peer("c", 1, 9000)) == "" || v.electable(peer("c", 2, 9000)) != "" {
		t.Error("whom a lease is given to")
	}
	// The leader's data know of the restore, and Consul has gone back to before it.
	v = view(holdsLease(7*time.Second), discards(0), on2, asked(peer("c", 1, 9000)), func(v *View) { v.Postgres.Discards = 1 })
	if v.electable(peer("c", 1, 9000)) == "" || v.electable(peer("c", 2, 9000)) != "" {
		t.Error("whom a lease is given to when Consul has forgotten")
	}
}
