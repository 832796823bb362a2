package ha

import (
	"testing"
	"time"
)

// upgradeNoted: a major upgrade of this member's has not ended; PostgreSQL was not stopped for it yet.
func upgradeNoted(v *View) { v.Postgres.Upgrade = true }

// stoppedForUpgrade: it was stopped.
func stoppedForUpgrade(v *View) {
	down(v)
	v.Postgres.Data, v.Postgres.Primary, v.Postgres.Upgrade, v.Postgres.SystemIdentifier = DataUpgrading, false, true, ""
}

// A major upgrade that nobody works on is taken back, before anything is started, and a primary that still serves
// leads on.
func TestUpgradeIsTakenBack(t *testing.T) {
	const back = "take the major upgrade back"
	leading := holdsLease(7 * time.Second)
	runSituations(t, []situationTest{
		{"of a leader that serves", view(leading, primary, upgradeNoted), back, "has not ended"},
		{"of a leader that has stopped", view(leading, stoppedForUpgrade), back, "has not ended"},
		{"of one whose lease has ended", view(leads("a", ttl+ttl/40+time.Second), stoppedForUpgrade, asked()), back, "has not ended"},
		{"where another one leads", view(leads("b", 0), stoppedForUpgrade), back, "has not ended"},
		{"where another one leads, and it had not stopped", view(leads("b", 0), down, upgradeNoted), back, "has not ended"},
		{"not while a task works on it", view(leading, stoppedForUpgrade, doingTask(TaskUpgrade)), "", "busy: major upgrade"},
		{"not at once after it failed", view(leading, stoppedForUpgrade, func(v *View) {
			v.Attempt = Attempt{Kind: TaskUpgrade, Failures: 1, NotUntil: now + 1}
		}), "", "waiting to try again"},
		{"a leader that was stopped may serve nobody for as long as it takes", view(leading, stoppedForUpgrade, doingTask(TaskUpgrade), asked(peer("c", 1, 9000)), func(v *View) {
			v.Postgres.UnservedSince = now.Add(-time.Hour)
		}), "", "busy: major upgrade"},
	})
	due := view(holdsLease(time.Second), primary, upgradeNoted)
	if d := Decide(due); len(d.Actions) == 0 {
		t.Errorf("a leader that serves does not lead on: %+v", d)
	}
}
