package ha

import (
	"testing"
	"time"
)

// upgradeNoted: a major upgrade of this member's has not ended; PostgreSQL was not stopped for it yet.
func upgradeNoted(v *View) { v.Postgres.Upgrade = &Upgrade{From: "77"} }

// upgradeStopped: it was stopped.
func upgradeStopped(v *View) {
	down(v)
	v.Postgres.Data, v.Postgres.Primary, v.Postgres.Upgrade = DataUpgrading, true, &Upgrade{From: "77"}
}

// A major upgrade that nobody works on is taken back, before anything is started, and a primary that still serves
// leads on.
func TestUpgradeIsTakenBack(t *testing.T) {
	const back = "take the major upgrade back"
	leading := holdsLease(7 * time.Second)
	runSituations(t, []situationTest{
		{"of a leader that serves", view(leading, primary, upgradeNoted), back, "has not ended"},
		{"of a leader that has stopped", view(leading, upgradeStopped), back, "has not ended"},
		{"of one whose lease has ended", view(leads("a", ttl+ttl/40+time.Second), upgradeStopped, asked()), back, "has not ended"},
		{"where another one leads", view(leads("b", 0), upgradeStopped), back, "has not ended"},
		{"where another one leads, and it had not stopped", view(leads("b", 0), down, upgradeNoted), back, "has not ended"},
		{"not while a task works on it", view(leading, upgradeStopped, doingTask(TaskUpgrade)), "", "busy: major upgrade"},
		{"not at once after it failed", view(leading, upgradeStopped, func(v *View) {
			v.Attempt = Attempt{Kind: TaskUpgrade, Failures: 1, NotUntil: now + 1}
		}), "", "waiting to try again"},
		{"a leader that was stopped may serve nobody for as long as it takes", view(leading, upgradeStopped, doingTask(TaskUpgrade), asked(peer("c", 1, 9000)), func(v *View) {
			v.Postgres.UnservedSince = now.Add(-time.Hour)
		}), "", "busy: major upgrade"},
		{"also before that is seen", view(leading, upgradeNoted, doingTask(TaskUpgrade), asked(peer("c", 1, 9000)), func(v *View) {
			v.Postgres.Replacing, v.Postgres.UnservedSince = true, now.Add(-time.Hour)
		}), "", "busy: major upgrade"},
		{"before it was stopped it may not", view(leading, primary, upgradeNoted, doingTask(TaskUpgrade), asked(peer("c", 1, 9000)), func(v *View) {
			v.Postgres.UnservedSince = now.Add(-time.Hour)
		}), "give the lease up to c", "served nobody"},
		{"nor where the disk fails", view(leading, upgradeStopped, doingTask(TaskUpgrade), asked(peer("c", 1, 9000)), func(v *View) {
			v.Postgres.DiskTrouble, v.Postgres.DiskSince = "no space left", now.Add(-ttl)
		}), "give the lease up to c", "no space left"},
		{"nor where it cannot be taken back", view(leading, upgradeStopped, asked(peer("c", 1, 9000)), func(v *View) {
			v.Postgres.UnservedSince = now.Add(-time.Hour)
		}), "give the lease up to c", "served nobody"},
	})
	due := view(holdsLease(time.Second), primary, upgradeNoted)
	if d := Decide(due); len(d.Actions) == 0 {
		t.Errorf("a leader that serves does not lead on: %+v", d)
	}
}

// announces: the announcement was sent, or was about to be, in the place of the status with that index.
func announces(index uint64, fits bool) func(*View) {
	return func(v *View) {
		upgradeStopped(v)
		v.Postgres.Upgrade = &Upgrade{From: "77", To: "88", Index: index, Fits: fits}
	}
}

// Once it may have been announced Consul decides, and nothing is taken back as long as it may still be.
func TestUpgradeThatMayBeAnnounced(t *testing.T) {
	const back, forward = "take the major upgrade back", "begin with the upgraded data"
	leading, own, status := holdsLease(7*time.Second), leads("a", ttl+ttl/40+time.Second), view().Cluster.Status.ModifyIndex
	if status == 0 {
		status = view(leading).Cluster.Status.ModifyIndex
	}
	upgraded := func(v *View) { initialized("88")(v); routed("88", "77")(v) }
	runSituations(t, []situationTest{
		{"it was", view(leading, announces(status, true), upgraded), forward, "the new data are the shard's"},
		{"it was, and the lease has ended", view(own, announces(status-1, true), upgraded, asked()), forward, "the new data are the shard's"},
		{"it was, and the programs are the old ones", view(leading, announces(status-1, false), upgraded), "", "begins anew"},
		{"it was not, and cannot come any more", view(leading, announces(status-1, false)), back, "taken back"},
		{"it may still come", view(leading, announces(status, false)), "", "after the next beat"},
		{"its outcome is not known", view(leading, announces(status, false), func(v *View) { v.Lease.Uncertain = true }), "read Consul again", "not known"},
		{"it is under way", view(leading, announces(status, false), inFlight), "", "not known"},
		{"another one leads since", view(leads("b", 0), announces(status-1, false)), back, "taken back"},
		{"it may still come, and the lease has ended", view(own, announces(status, false), asked(), func(v *View) { v.Lease.Renewed = 1 }), "take over (status at 45)", "taking our own lock again"},
	})
	for name, v := range map[string]View{
		"announced": view(own, announces(1, true), upgraded, asked()), "refused": view(own, announces(1, true), asked()), "may come": view(own, announces(status, true), asked()),
	} {
		for _, act := range Decide(v).Actions {
			switch act.(type) {
			case StartPrimary, Promote, Clone, Rejoin, DiscardIncomplete:
				t.Errorf("%s: %v while the note is there", name, act)
			}
		}
	}
}
