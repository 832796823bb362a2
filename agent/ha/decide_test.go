package ha

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

const (
	now = cluster.Instant(1000 * time.Second)
	ttl = 8 * time.Second
)

// The shard in these tests: a, b and c; the view is always a's.
func view(changes ...func(*View)) View {
	v := View{
		Shard: Shard{Now: now, Name: "a", Read: now, StatusSeen: now, Session: "sa"},
		Wall:  time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC), WatchdogOK: true,
		Fence: FenceMargins{DemoteBefore: ttl / 4, KillBefore: ttl / 10},
	}
	v.Config.TTL, v.Config.LoopWait, v.Config.RetryTimeout = ttl, 2*time.Second, 3*time.Second
	v.Config.MaximumLagOnFailover = 1 << 20
	v.Config.PrimaryStartTimeout = 300 * time.Second
	v.Config.SynchronousMode = cluster.SyncOff
	v.Postgres = Postgres{Data: DataValid, SystemIdentifier: "77", Running: true, Accepting: true, Timeline: 1, LSN: 5000, Upstream: "b", Streaming: true}
	v.Cluster = cluster.Snapshot{Index: 50, Initialize: cluster.Entry[string]{Value: "77", ModifyIndex: 3}}
	for i, name := range []string{"a", "b", "c"} {
		m := cluster.Member{Name: name, State: cluster.StateRunning, Role: cluster.RoleReplica, Timeline: 1}
		v.Cluster.Members = append(v.Cluster.Members, cluster.Entry[cluster.Member]{Value: m, Session: "s" + name, ModifyIndex: uint64(10 + i)})
	}
	for _, change := range changes {
		change(&v)
	}
	return v
}

// leads makes name the leader in Consul, its last beat seen ago before now.
func leads(name string, ago time.Duration) func(*View) {
	return func(v *View) {
		v.Cluster.Leader = cluster.Entry[string]{Value: name, Session: "s" + name, ModifyIndex: 40}
		v.Cluster.Status = cluster.Entry[cluster.Status]{ModifyIndex: 45, Value: cluster.Status{
			OpTime: 5000, Lictor: &cluster.Beat{LeaseMS: ttl.Milliseconds(), Number: 9, Owner: name},
		}}
		v.StatusSeen = now.Add(-ago)
		for i := range v.Cluster.Members {
			if v.Cluster.Members[i].Value.Name == name {
				v.Cluster.Members[i].Value.Role = cluster.RolePrimary
			}
		}
	}
}

// holdsLease gives a the lease, with that much left of it.
func holdsLease(left time.Duration) func(*View) {
	return func(v *View) {
		leads("a", 0)(v)
		v.Lease.Until = now.Add(left)
		v.Lease.BeatSent = v.Lease.Until.Add(-ttl)
		v.Lease.Renewed = v.Lease.BeatSent
		v.PeersAsked, v.PeersDone = now.Add(-answersAge), true
		v.Postgres.Primary, v.Postgres.Upstream, v.Postgres.Streaming = true, "", false
	}
}

func stranded(v *View)    { v.Postgres.Stranded = "its WAL is gone" }
func rebuildAuto(v *View) { v.Config.Rebuild, v.Postgres.Turn = cluster.RebuildAuto, true }
func undersized(v *View)  { v.Postgres.Undersized = "max_connections is 25 here, 100 on the primary" }

// strayed: a is on timeline 3, b on 5, and the history, which ends with timeline 2, was
// written at this index; b took the lock at 40.
func strayed(written uint64) func(*View) {
	return func(v *View) {
		v.Cluster.Members[1].Value.Timeline, v.Postgres.Timeline, v.Postgres.Streaming = 5, 3, false
		v.Cluster.History = cluster.Entry[cluster.History]{ModifyIndex: written, Value: cluster.History{{Timeline: 1, LSN: 3000}, {Timeline: 2, LSN: 4000}}}
	}
}

func lacksSlots(v *View) { v.Postgres.LacksSlots = []cluster.Slot{{Name: "feed"}} }

func lockGone(v *View) { v.Cluster.Leader = cluster.Entry[string]{} }
func down(v *View) {
	v.Postgres.Running, v.Postgres.Accepting, v.Postgres.Streaming = false, false, false
}
func primary(v *View) { v.Postgres.Primary, v.Postgres.Streaming = true, false }
func paused_(v *View) {
	v.Config.Pause = true
	if b := v.Cluster.Status.Value.Lictor; b != nil {
		b.Paused = true
	}
}
func empty(v *View)    { down(v); v.Postgres.Data = DataEmpty }
func newShard(v *View) { v.Cluster = cluster.Snapshot{Index: 1} }
func released(to string) func(*View) {
	return func(v *View) {
		lockGone(v)
		v.Cluster.Status.Value.Lictor.Released, v.Cluster.Status.Value.Lictor.Successor = true, to
	}
}

func asked(peers ...Peer) func(*View) {
	return func(v *View) { v.PeersAsked, v.PeersDone, v.Peers = now.Add(-100*time.Millisecond), true, peers }
}

func peer(name string, timeline int, lsn int64) Peer {
	return Peer{Name: name, Answered: true, State: cluster.StateRunning, Timeline: timeline, LSN: lsn}
}

func primaryPeer(name string) Peer {
	p := peer(name, 1, 5000)
	p.Primary = true
	return p
}

// archived is a member tagged nostream.
func archived(name string, lsn int64) Peer {
	p := peer(name, 1, lsn)
	p.Tags = map[string]any{"nostream": true}
	return p
}

func request(f cluster.Failover) func(*View) {
	return func(v *View) { v.Cluster.Failover = cluster.Entry[cluster.Failover]{Value: f, ModifyIndex: 48} }
}

func syncKey(leader string, standbys ...string) func(*View) {
	return func(v *View) {
		v.Cluster.Sync = cluster.Entry[cluster.Sync]{Value: cluster.NewSync(leader, standbys), ModifyIndex: 47}
	}
}

type situationTest struct {
	name   string
	view   View
	want   string // the actions, joined by "; "
	reason string // part of the reason
}

func runSituations(t *testing.T, tests []situationTest) {
	t.Helper()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := Decide(tt.view)
			var actions []string
			for _, a := range d.Actions {
				actions = append(actions, fmt.Sprint(a))
			}
			if got := strings.Join(actions, "; "); got != tt.want {
				t.Errorf("actions: got %q, want %q (reason: %s)", got, tt.want, d.Reason)
			}
			if !strings.Contains(d.Reason, tt.reason) {
				t.Errorf("reason: got %q, want it to contain %q", d.Reason, tt.reason)
			}
		})
	}
}

func TestBlindStartsNothing(t *testing.T) {
	blindView := func(v *View) { v.Read = 0; newShard(v) }
	runSituations(t, []situationTest{
		{"empty data directory", view(blindView, empty), "", "Consul has not answered"},
		{"stopped primary", view(blindView, down, primary), "", "Consul has not answered"},
		{"replica runs on", view(blindView), "", "Consul has not answered"},
		{"adopted primary, just found", view(blindView, primary, func(v *View) { v.Adopted = now }), "", "Consul has not answered"},
		{"adopted primary, its guard silent", view(blindView, primary, func(v *View) { v.Adopted, v.AdoptedUntil = now, 1 }), "kill PostgreSQL", "without a lease"},
		{"adopted primary, a lease ago", view(blindView, primary, func(v *View) { v.Adopted = now.Add(-ttl) }), "kill PostgreSQL", "without a lease"},
	})
}

func TestFencing(t *testing.T) {
	runSituations(t, []situationTest{
		{"plenty of lease", view(holdsLease(7 * time.Second)), "", "with the lock"},
		{"demote moment", view(holdsLease(2 * time.Second)), "demote", "about to end"},
		{"already demoting", view(holdsLease(2*time.Second), func(v *View) { v.Task = TaskDemote }), "", "demoting"},
		{"kill moment", view(holdsLease(800*time.Millisecond), func(v *View) { v.Task = TaskDemote }), "kill PostgreSQL", "is over"},
		{"lease long over", view(holdsLease(-time.Minute)), "kill PostgreSQL", "is over"},
		{"lock is another's", view(holdsLease(7*time.Second), leads("b", 0)), "kill PostgreSQL", "held by b"},
		{"lock is free, the last beat is another's", view(holdsLease(7*time.Second), leads("b", 0), lockGone), "kill PostgreSQL", "b has led since"},
		{"lock is another's, beat under way", view(holdsLease(7*time.Second), leads("b", 0), func(v *View) { v.Lease.InFlight = true }), "kill PostgreSQL", "held by b"},
		{"primary while another leads", view(primary, leads("b", 0)), "kill PostgreSQL", "while b leads"},
		{"primary while another's lease runs without its lock", view(primary, leads("b", 0), lockGone), "kill PostgreSQL", "without a lease"},
		{"primary, own lock, just adopted", view(primary, leads("a", 0), func(v *View) { v.Adopted, v.AdoptedUntil = now, now.Add(ttl/2) }), "take over (status at 45)", "taking our own lock"},
		{"primary, own lock, adopted until now", view(primary, leads("a", 0), func(v *View) { v.Adopted, v.AdoptedUntil = now, now }), "kill PostgreSQL", "without a lease"},
		{"primary, own lock, adopted without a deadline", view(primary, leads("a", 0), func(v *View) { v.Adopted = now }), "kill PostgreSQL", "without a lease"},
		{"primary, led in pause, adopted without a deadline", view(primary, leads("a", 0), func(v *View) {
			v.Adopted = now
			v.Cluster.Status.Value.Lictor.Paused = true
		}), "take over (status at 45)", "taking our own lock"},
		{"primary that nobody ever led, adopted without a guard", view(primary, func(v *View) { v.Adopted = now }), "take over (status at 0)", "taking our own lock"},
		{"primary, own lock, never adopted", view(primary, leads("a", 0)), "kill PostgreSQL", "without a lease"},
		{"primary, own lease released", view(primary, leads("a", 0), released(""), func(v *View) { v.Adopted = now }), "kill PostgreSQL", "without a lease"},
		{"paused, lease over", view(holdsLease(-time.Second), paused_), "take over (status at 45)", "paused"},
		{"paused, another leads", view(primary, leads("b", 0), paused_), "kill PostgreSQL", "while b leads"},
	})
}

func silentFor(d time.Duration) func(*View) {
	return func(v *View) { v.Read = v.Now.Add(-d) }
}

func TestUncertainReadsFirst(t *testing.T) {
	uncertainLease := func(v *View) { v.Lease.Uncertain = true }
	runSituations(t, []situationTest{
		{"leader", view(holdsLease(7*time.Second), uncertainLease), "read Consul again", "unknown"},
		{"leader at its demote moment", view(holdsLease(2*time.Second), uncertainLease), "demote", "about to end"},
		{"candidate", view(leads("b", time.Minute), uncertainLease, asked()), "read Consul again", "unknown"},
		{"fenced, Consul silent for a lease", view(leads("a", 0), down, uncertainLease, silentFor(11*time.Second)), "start as replica of nobody; read Consul again", "to serve reads"},
		{"fenced, Consul silent for less", view(leads("a", 0), down, uncertainLease, silentFor(time.Second)), "read Consul again", "unknown"},
		{"fenced in pause, Consul silent", view(leads("a", 0), down, paused_, uncertainLease, silentFor(11*time.Second)), "read Consul again", "unknown"},
	})
}

func TestStarting(t *testing.T) {
	made := func(v *View) { down(v); v.Postgres.Data = DataBootstrapped }
	keyOf := func(session string) func(*View) {
		return func(v *View) { v.Cluster.Initialize = cluster.Entry[string]{Session: session, ModifyIndex: 4} }
	}
	runSituations(t, []situationTest{
		{"new shard", view(newShard, empty), "bootstrap", "does not exist"},
		{"new shard, nofailover", view(newShard, empty, func(v *View) { v.Tags = map[string]any{"nofailover": true} }), "", "nofailover"},
		{"somebody bootstraps", view(newShard, empty, func(v *View) {
			v.Cluster.Initialize = cluster.Entry[string]{Session: "sb", ModifyIndex: 4}
		}), "", "member that bootstraps"},
		{"cut short by Patroni", view(newShard, empty, func(v *View) {
			v.Cluster.Initialize = cluster.Entry[string]{ModifyIndex: 4}
		}), "", "delete the key"},
		{"leader to clone from", view(empty, leads("b", 0)), "clone from b", "b leads"},
		{"leader not yet primary", view(empty, leads("b", 0), func(v *View) { v.Cluster.Members[1].Value.Role = cluster.RoleReplica }), "", "running primary"},
		{"clonefrom replica", view(empty, leads("b", 0), func(v *View) { v.Cluster.Members[2].Value.Tags = map[string]any{"clonefrom": true} }), "clone from c", ""},
		{"leader that does not exist", view(empty, leads("ghost", 0)), "", "key of the leader ghost is missing"},
		{"no leader", view(empty, leads("b", time.Minute), lockGone), "", "waiting for a leader to clone"},
		{"foreign data", view(down, func(v *View) { v.Postgres.Data, v.Postgres.DataProblem = DataForeign, "it holds photos" }), "", "it holds photos"},
		{"another shard's data", view(down, leads("b", 0), func(v *View) { v.Postgres.SystemIdentifier = "99" }), "", "its system identifier is 99"},
		{"unfinished data", view(down, func(v *View) { v.Postgres.Data = DataIncomplete }), "clear away the unfinished data directory", ""},
		{"bootstrapped, the key is ours", view(newShard, made, keyOf("sa")), "register the shard: take over (status at 0)", "registering"},
		{"bootstrapped, under way", view(newShard, made, keyOf("sa"), func(v *View) { v.Lease.InFlight = true }), "", "registering"},
		{"bootstrapped, refused just now", view(newShard, made, keyOf("sa"), func(v *View) { v.Lease.NotBefore = now.Add(time.Second) }), "", "could not be registered"},
		{"bootstrapped, outcome unknown", view(newShard, made, keyOf("sa"), func(v *View) { v.Lease.Uncertain = true }), "read Consul again", "unknown"},
		{"bootstrapped, Consul silent for a lease", view(newShard, made, keyOf("sa"), silentFor(time.Minute), func(v *View) { v.Lease.Uncertain = true }), "read Consul again", "unknown"},
		{"bootstrapped, no session", view(newShard, made, keyOf("sa"), func(v *View) { v.Session = "" }), "", "waiting for a Consul session"},
		{"bootstrapped, the key went with the session", view(newShard, made), "take the key initialize", "taken again"},
		{"bootstrapped, another makes the shard", view(newShard, made, keyOf("sb")), "", "held by another session"},
		{"bootstrapped, another has made the shard", view(made, func(v *View) { v.Cluster.Initialize.Value = "99" }), "clear away the unfinished data directory", "another member"},
		{"bootstrapped, another has restored the same backup", view(made, leads("b", 0)), "clear away the unfinished data directory", "another member"},
		{"bootstrapped, another has restored the same backup and ended", view(made, leads("b", time.Minute), lockGone), "clear away the unfinished data directory", "another member"},
		{"bootstrapped, registered", view(made, leads("a", 0)), "finish the bootstrap", "is registered"},
		{"bootstrapped, registered, the lease runs", view(made, holdsLease(7*time.Second)), "finish the bootstrap", "is registered"},
		{"bootstrapped, somebody leads without the key", view(newShard, made, leads("b", 0)), "", "b leads a shard"},
		{"clone failed just now", view(empty, leads("b", 0), func(v *View) {
			v.Attempt = Attempt{Kind: TaskClone, Failures: 2, NotUntil: now.Add(3 * time.Second)}
		}), "", "try again after 2 failures"},
	})
}

func TestLeading(t *testing.T) {
	beatDue := holdsLease(6 * time.Second)
	failed := func(v *View) { v.Attempt = Attempt{Kind: TaskStart, Failures: 3, NotUntil: now.Add(time.Second)} }
	gaveUp := func(left time.Duration) func(*View) {
		return func(v *View) { v.Attempt = Attempt{Kind: TaskDemote, Failures: 3, NotUntil: now.Add(left)} }
	}
	crashed := func(v *View) { down(v); v.Postgres.DownSince = now.Add(-time.Second) }
	unserved := func(d time.Duration) func(*View) {
		return func(v *View) { v.Postgres.Accepting, v.Postgres.UnservedSince = false, now.Add(-d) }
	}
	doing := func(kind TaskKind) func(*View) { return func(v *View) { v.Task = kind } }
	hung := func(v *View) { v.Postgres.Hung = true }
	atOnce := func(v *View) { v.Config.PrimaryStartTimeout = 0 }
	recovers := func(v *View) { v.Postgres.Accepting, v.Postgres.DownSince = false, now.Add(-301*time.Second) }
	runSituations(t, []situationTest{
		{"beat due", view(beatDue), "beat", "with the lock"},
		{"beat not due", view(holdsLease(7 * time.Second)), "", "with the lock"},
		{"beat under way", view(beatDue, func(v *View) { v.Lease.InFlight = true }), "", "with the lock"},
		{"beats while a task runs", view(beatDue, func(v *View) { v.Task = TaskRestart }), "beat", "busy: restart"},
		{"session lost, lease runs", view(holdsLease(7*time.Second), lockGone), "take over (status at 45)", "taken again"},
		{"lock by an earlier session of ours", view(holdsLease(7*time.Second), func(v *View) { v.Session = "new" }), "take over (status at 45)", "taken again"},
		{"no session yet", view(holdsLease(7*time.Second), func(v *View) { v.Session = "" }), "", "waiting for a Consul session"},
		{"replica is promoted", view(holdsLease(7*time.Second), func(v *View) { v.Postgres.Primary = false }), "promote", ""},
		{"starting", view(holdsLease(7*time.Second), func(v *View) { v.Postgres.Accepting = false }), "", "is starting"},
		{"crashed", view(holdsLease(7*time.Second), crashed), "start as primary", "started again"},
		{"crashed before its promotion", view(holdsLease(7*time.Second), crashed, func(v *View) { v.Postgres.Primary = false }), "start as replica of nobody", "before its promotion"},
		{"crashed, timeout 0, others unknown", view(holdsLease(7*time.Second), crashed, func(v *View) { v.Config.PrimaryStartTimeout = 0 }), "start as primary; ask the other members", ""},
		{"crashed, timeout 0, another can lead", view(holdsLease(7*time.Second), crashed, func(v *View) { v.Config.PrimaryStartTimeout = 0 }, asked(peer("b", 1, 5000))), "give the lease up to b", "b can lead"},
		{"crashed, timeout 0, nobody can lead", view(holdsLease(7*time.Second), crashed, func(v *View) { v.Config.PrimaryStartTimeout = 0 }, asked(Peer{Name: "b"})), "start as primary", ""},
		{"timeout over", view(holdsLease(7*time.Second), crashed, func(v *View) { v.Postgres.DownSince = now.Add(-301 * time.Second) }, asked(peer("b", 1, 5000))), "give the lease up to b", "primary_start_timeout"},
		{"crash loop", view(holdsLease(7*time.Second), crashed, func(v *View) { v.Postgres.Crashes = 3 }, asked(peer("b", 1, 5000))), "give the lease up to b", "again and again"},
		{"cannot be started", view(holdsLease(7*time.Second), crashed, failed, asked(peer("b", 1, 5000))), "give the lease up to b", "again and again"},
		{"cannot be started, alone", view(holdsLease(7*time.Second), crashed, failed, asked()), "", "try again"},
		{"cannot be promoted", view(holdsLease(7*time.Second), func(v *View) {
			v.Postgres.Primary, v.Attempt = false, Attempt{Kind: TaskPromote, Failures: 3}
		}, asked(peer("b", 1, 4000), peer("c", 1, 5000))), "give the lease up to c", "promotion fails"},
		{"paused and down", view(holdsLease(7*time.Second), crashed, paused_), "", "paused"},
		{"in crash recovery for too long", view(holdsLease(7*time.Second), recovers, asked(peer("b", 1, 5000))), "give the lease up to b", "primary_start_timeout"},
		{"its postmaster hangs", view(holdsLease(7*time.Second), unserved(301*time.Second), asked(peer("b", 1, 5000))), "give the lease up to b", "served nobody"},
		{"its postmaster hangs, not for long", view(holdsLease(7*time.Second), unserved(299*time.Second), asked(peer("b", 1, 5000))), "", "is starting"},
		{"its postmaster hangs, alone", view(holdsLease(7*time.Second), unserved(301*time.Second), asked()), "", "is starting"},
		{"its postmaster hangs, paused", view(holdsLease(7*time.Second), unserved(301*time.Second), paused_, asked(peer("b", 1, 5000))), "", "paused"},
		{"its postmaster hangs, timeout 0, for less than a lease", view(holdsLease(7*time.Second), unserved(ttl-1), atOnce, asked(peer("b", 1, 5000))), "", "is starting"},
		{"its postmaster hangs, timeout 0, for a lease", view(holdsLease(7*time.Second), unserved(ttl), atOnce, asked(peer("b", 1, 5000))), "give the lease up to b", "served nobody"},
		{"its postmaster hangs, having served, others unknown", view(holdsLease(7*time.Second), unserved(301*time.Second), hung), "ask the other members", "is starting"},
		{"its postmaster hangs, having served", view(holdsLease(7*time.Second), unserved(301*time.Second), hung, asked(peer("b", 1, 5000))), "give the lease up to b", "served nobody"},
		{"its postmaster hangs, having served, alone", view(holdsLease(7*time.Second), unserved(301*time.Second), hung, asked()), "kill the PostgreSQL that hangs", "started again"},
		{"its postmaster hangs, having served, nobody can lead", view(holdsLease(7*time.Second), unserved(301*time.Second), hung, asked(Peer{Name: "b"})), "kill the PostgreSQL that hangs", "started again"},
		{"its postmaster hangs, having served, alone, not for long", view(holdsLease(7*time.Second), unserved(299*time.Second), hung, asked()), "", "is starting"},
		{"its postmaster hangs, having served, alone, paused", view(holdsLease(7*time.Second), unserved(301*time.Second), hung, paused_, asked()), "", "paused"},
		{"its postmaster hangs, having served, alone, timeout 0", view(holdsLease(7*time.Second), unserved(ttl), hung, atOnce, asked()), "kill the PostgreSQL that hangs", "started again"},
		{"its postmaster and its disk hang, alone", view(holdsLease(7*time.Second), unserved(301*time.Second), hung, asked(), func(v *View) { v.Postgres.DiskTrouble = "hangs" }), "", "is starting"},
		{"a restart of a postmaster that hangs, alone", view(holdsLease(7*time.Second), unserved(301*time.Second), hung, doing(TaskRestart), asked()), "kill the PostgreSQL that hangs", "started again"},
		{"its postmaster was killed as it hung, alone", view(holdsLease(7*time.Second), unserved(302*time.Second), crashed, func(v *View) { v.Postgres.DownSince = 0 }, asked()), "start as primary", "started again"},
		{"a handover, within its own limit", view(holdsLease(7*time.Second), unserved(301*time.Second), doing(TaskHandover), asked(peer("b", 1, 5000))), "", "busy: handover"},
		{"a handover that does not end", view(beatDue, unserved(316*time.Second), doing(TaskHandover), asked(peer("b", 1, 5000))), "give the lease up to b", "served nobody"},
		{"a demotion, beats go on", view(beatDue, unserved(301*time.Second), doing(TaskDemote), asked(peer("b", 1, 5000))), "beat", "busy: demote"},
		{"a demotion that does not end", view(beatDue, unserved(316*time.Second), doing(TaskDemote), asked(peer("b", 1, 5000))), "", "busy: demote"},
		{"giving up, beats go on", view(beatDue, unserved(301*time.Second), asked(peer("b", 1, 5000))), "beat; give the lease up to b", "served nobody"},
		{"giving up does not work", view(beatDue, unserved(316*time.Second), doing(TaskInterrupted), asked(peer("b", 1, 5000))), "give the lease up to b", "served nobody"},
		{"giving up has failed just now", view(holdsLease(7*time.Second), unserved(301*time.Second), gaveUp(time.Second), asked(peer("b", 1, 5000))), "", ""},
		{"giving up has failed a while ago", view(holdsLease(7*time.Second), unserved(301*time.Second), gaveUp(0), asked(peer("b", 1, 5000))), "give the lease up to b", "served nobody"},
		{"a start has failed just now", view(holdsLease(7*time.Second), unserved(301*time.Second), failed, asked(peer("b", 1, 5000))), "give the lease up to b", "served nobody"},
		{"a restart that does not end", view(holdsLease(7*time.Second), unserved(301*time.Second), doing(TaskRestart), asked(peer("b", 1, 5000))), "give the lease up to b", "served nobody"},
		{"a promotion that does not end", view(holdsLease(7*time.Second), unserved(301*time.Second), doing(TaskPromote), asked(peer("b", 1, 5000))), "give the lease up to b", "served nobody"},
		{"a restore that has told nobody yet does not end", view(holdsLease(7*time.Second), unserved(301*time.Second), doing(TaskRestore), asked(peer("b", 1, 5000))), "give the lease up to b", "served nobody"},
		{"a demotion", view(holdsLease(7*time.Second), unserved(301*time.Second), doing(TaskDemote), asked(peer("b", 1, 5000))), "", "busy: demote"},
		{"paused and in crash recovery for too long", view(holdsLease(7*time.Second), recovers, paused_, asked(peer("b", 1, 5000))), "", "paused"},
	})
}

func TestSynchronous(t *testing.T) {
	on := func(v *View) { v.Config.SynchronousMode, v.Config.SynchronousNodeCount = cluster.SyncOn, 1 }
	streams := func(name string, sync bool, flush int64) func(*View) {
		return func(v *View) {
			v.Postgres.Standbys = append(v.Postgres.Standbys, Standby{Name: name, Streaming: true, Sync: sync, FlushLSN: flush})
		}
	}
	waitsFor := func(since int64, names ...string) func(*View) {
		return func(v *View) { v.Postgres.SyncNames, v.Postgres.SyncSince = names, since }
	}
	lease := holdsLease(7 * time.Second)
	runSituations(t, []situationTest{
		{"new leader, no key", view(lease, on, streams("b", false, 1)), "sync key: a with []", ""},
		{"key of the old leader", view(lease, on, syncKey("b", "a"), streams("b", false, 1)), "sync key: a with []", ""},
		{"PostgreSQL must wait first", view(lease, on, syncKey("a"), streams("b", false, 1)), "commits wait for [b]", "chosen"},
		{"most advanced is chosen", view(lease, on, syncKey("a"), streams("b", false, 1), streams("c", false, 2)), "commits wait for [c]", "chosen"},
		{"not yet sync", view(lease, on, syncKey("a"), waitsFor(100, "b"), streams("b", false, 200)), "", ""},
		{"not yet caught up", view(lease, on, syncKey("a"), waitsFor(100, "b"), streams("b", true, 99)), "", ""},
		{"caught up", view(lease, on, syncKey("a"), waitsFor(100, "b"), streams("b", true, 100)), "sync key: a with [b]", "caught up"},
		{"settled", view(lease, on, syncKey("a", "b"), waitsFor(100, "b"), streams("b", true, 100), streams("c", false, 900)), "", ""},
		{"standby gone: key first", view(lease, on, syncKey("a", "b"), waitsFor(100, "b"), streams("c", false, 100)), "sync key: a with []", "is gone"},
		{"standby gone: then PostgreSQL", view(lease, on, syncKey("a"), waitsFor(100, "b")), "commits wait for []", ""},
		{"strict and alone", view(lease, on, func(v *View) { v.Config.SynchronousStrict = true }, syncKey("a"), waitsFor(100, "b")), "commits wait for [*]", ""},
		{"nosync is not chosen", view(lease, on, syncKey("a"), streams("b", false, 1), func(v *View) {
			v.Cluster.Members[1].Value.Tags = map[string]any{"nosync": true}
		}), "", ""},
		{"not a member", view(lease, on, syncKey("a"), streams("pg_receivewal", false, 1)), "", ""},
		{"off: key first", view(lease, syncKey("a", "b"), waitsFor(100, "b")), "delete the sync key", ""},
		{"off: then PostgreSQL", view(lease, waitsFor(100, "b")), "commits wait for []", ""},
	})
}

func TestHandover(t *testing.T) {
	lease := holdsLease(7 * time.Second)
	at := func(d time.Duration) *time.Time { w := view().Wall.Add(d); return &w }
	runSituations(t, []situationTest{
		{"asks first", view(lease, request(cluster.Failover{Leader: "a", Candidate: "b"})), "ask the other members", ""},
		{"named candidate", view(lease, request(cluster.Failover{Leader: "a", Candidate: "b"}), asked(peer("b", 1, 5000), peer("c", 1, 5000))), "hand over to b", ""},
		{"best candidate", view(lease, request(cluster.Failover{Leader: "a"}), asked(peer("b", 1, 4000), peer("c", 1, 5000))), "hand over to c", ""},
		{"candidate silent", view(lease, request(cluster.Failover{Leader: "a", Candidate: "b"}), asked(Peer{Name: "b"}, peer("c", 1, 5000))), "clear the failover key", "b does not answer"},
		{"candidate on another timeline", view(lease, request(cluster.Failover{Candidate: "b"}), asked(peer("b", 2, 6000))), "clear the failover key", "does not follow timeline 1"},
		{"candidate lags", view(lease, request(cluster.Failover{Candidate: "b"}), asked(peer("b", 1, 5000-2<<20))), "clear the failover key", "lags"},
		{"candidate does not stream", view(lease, request(cluster.Failover{Candidate: "b"}), asked(archived("b", 5000))), "clear the failover key", "b is tagged nostream"},
		{"the best does not stream", view(lease, request(cluster.Failover{Leader: "a"}), asked(archived("b", 5000), peer("c", 1, 4000))), "hand over to c", ""},
		{"a segment was switched after the candidate was asked", view(lease, request(cluster.Failover{Candidate: "b"}), asked(peer("b", 1, 5000)), func(v *View) {
			v.PeersAskedLSN, v.Postgres.LSN, v.Cluster.Status.Value.OpTime = 5000, 16<<20, 16<<20
		}), "hand over to b", ""},
		{"the candidate lagged when it was asked", view(lease, request(cluster.Failover{Candidate: "b"}), asked(peer("b", 1, 5000-2<<20)), func(v *View) {
			v.PeersAskedLSN, v.Postgres.LSN, v.Cluster.Status.Value.OpTime = 5000, 16<<20, 16<<20
		}), "clear the failover key", "lags"},
		{"candidate not synchronous", view(lease, syncKey("a", "c"), func(v *View) {
			v.Config.SynchronousMode = cluster.SyncOn
		}, request(cluster.Failover{Candidate: "b"}), asked(peer("b", 1, 5000))), "clear the failover key", "not a synchronous standby"},
		{"other leader named", view(lease, request(cluster.Failover{Leader: "b", Candidate: "c"})), "clear the failover key", "names b"},
		{"this is its outcome", view(lease, request(cluster.Failover{Leader: "b"})), "clear the failover key", "is done"},
		{"ourselves", view(lease, request(cluster.Failover{Leader: "b", Candidate: "a"})), "clear the failover key", ""},
		{"scheduled", view(lease, request(cluster.Failover{Leader: "a", ScheduledAt: at(time.Hour)})), "", ""},
		{"scheduled, missed", view(lease, request(cluster.Failover{Leader: "a", ScheduledAt: at(-time.Hour)})), "clear the failover key", "too long ago"},
		{"scheduled, 1.5 loop_waits late", view(lease, request(cluster.Failover{Leader: "a", ScheduledAt: at(-3 * time.Second)}), asked(peer("b", 1, 5000))), "hand over to b", ""},
		{"scheduled, later than that", view(lease, request(cluster.Failover{Leader: "a", ScheduledAt: at(-3*time.Second - 1)})), "clear the failover key", "too long ago"},
		{"scheduled, due, paused", view(lease, paused_, request(cluster.Failover{Leader: "a", Candidate: "b", ScheduledAt: at(-time.Hour)}), asked(peer("b", 1, 5000))), "", ""},
		{"scheduled, due", view(lease, request(cluster.Failover{Leader: "a", ScheduledAt: at(-time.Second)}), asked(peer("b", 1, 5000))), "hand over to b", ""},
		{"paused without candidate", view(lease, paused_, request(cluster.Failover{Leader: "a"})), "clear the failover key", "named candidate"},
		{"giving", view(leads("a", 0), down, func(v *View) { v.Giving = &Giving{Successor: "b"} }), "release the lease to b", ""},
	})
}

func TestStopping(t *testing.T) {
	stop := func(v *View) { v.Stopping = true }
	runSituations(t, []situationTest{
		{"leader", view(holdsLease(7*time.Second), stop), "hand over to ", "given up"},
		{"leader, handing over", view(holdsLease(6*time.Second), stop, func(v *View) { v.Task = TaskHandover }), "beat", "handover"},
		{"replica", view(leads("b", 0), stop), "demote", ""},
		{"taking the lock", view(leads("b", 0), stop, func(v *View) { v.Lease.InFlight = true }), "", "answer"},
		{"stopped", view(leads("b", 0), stop, down), "exit", ""},
		{"not released yet", view(leads("a", 0), stop, down, func(v *View) { v.Giving = &Giving{} }), "release the lease", ""},
		{"paused", view(holdsLease(7*time.Second), stop, paused_), "exit", "stay"},
	})
}

func TestFollowing(t *testing.T) {
	runSituations(t, []situationTest{
		{"content", view(leads("b", 0)), "", "following b"},
		{"another upstream", view(leads("c", 0)), "follow c", ""},
		{"down", view(leads("b", 0), down), "rejoin as replica of b", ""},
		{"down, leader not yet primary", view(leads("b", 0), down, func(v *View) { v.Cluster.Members[1].Value.Role = cluster.RoleReplica }), "", "waiting until b is a primary"},
		{"replay waits for a restart", view(leads("b", 0), undersized), "restart as replica of b", "replay stands still: max_connections"},
		{"replay waits for a restart, and it has failed", view(leads("b", 0), undersized, func(v *View) {
			v.Attempt = Attempt{Kind: TaskRestart, Failures: 2, NotUntil: now.Add(time.Second)}
		}), "", "waiting to try again after 2"},
		{"replay waits for a restart, paused", view(leads("b", 0), undersized, paused_), "", "paused"},
		{"replay waits for a restart, a task runs", view(leads("b", 0), undersized, func(v *View) { v.Task = TaskRestart }), "", "busy"},
		{"lacks a logical slot", view(leads("b", 0), lacksSlots), "copy the logical slots of b", "lacks logical slots"},
		{"lacks a logical slot, and does not stream", view(leads("b", 0), lacksSlots, func(v *View) { v.Postgres.Streaming = false }), "", "a replica"},
		{"lacks a logical slot, and follows somebody else", view(leads("c", 0), lacksSlots), "follow c", ""},
		{"lacks a logical slot, paused", view(leads("b", 0), lacksSlots, paused_), "", "paused"},
		{"lacks a logical slot, and copying it has failed", view(leads("b", 0), lacksSlots, func(v *View) {
			v.Attempt = Attempt{Kind: TaskRestart, Failures: 1, NotUntil: now.Add(time.Second)}
		}), "", "waiting to try again"},
		{"replay waits for a restart, and so does the upstream", view(leads("c", 0), undersized), "follow c", ""},
		{"its WAL is gone", view(leads("b", 0), stranded), "", "following b"},
		{"its WAL is gone, rebuild is auto, not its turn", view(leads("b", 0), stranded, func(v *View) { v.Config.Rebuild = cluster.RebuildAuto }), "", "following b"},
		{"its WAL is gone, rebuild is auto", view(leads("b", 0), stranded, rebuildAuto), "make the data anew", "its WAL is gone"},
		{"its WAL is gone, rebuild is auto, and it has failed", view(leads("b", 0), stranded, rebuildAuto, func(v *View) {
			v.Attempt = Attempt{Kind: TaskReinit, Failures: 2, NotUntil: now.Add(time.Second)}
		}), "", "waiting to try again after 2"},
		{"its WAL is gone, rebuild is auto, paused", view(leads("b", 0), stranded, rebuildAuto, paused_), "", "paused"},
		{"its WAL is gone from the last upstream, rebuild is auto", view(leads("c", 0), stranded, rebuildAuto), "follow c", ""},
		{"its WAL is gone, rebuild is auto, a promotion is under way", view(leads("b", 0), stranded, rebuildAuto, func(v *View) { v.Cluster.Members[1].Value.Role = cluster.RoleReplica }), "", "following b"},
		{"its WAL is gone, rebuild is auto, nobody leads", view(lockGone, stranded, rebuildAuto), "", ""},
		{"down, and cannot be rewound", view(leads("b", 0), down, stranded), "rejoin as replica of b", ""},
		{"down, and cannot be rewound, rebuild is auto, not its turn", view(leads("b", 0), down, stranded, func(v *View) { v.Config.Rebuild = cluster.RebuildAuto }), "rejoin as replica of b", ""},
		{"down, and cannot be rewound, rebuild is auto", view(leads("b", 0), down, stranded, rebuildAuto), "make the data anew", "its WAL is gone"},
		{"leader unknown", view(leads("ghost", 0)), "", "ghost is missing"},
		{"lock gone, lease runs", view(leads("b", time.Second), lockGone), "", "following b"},
		{"replicatefrom", view(leads("b", 0), func(v *View) { v.Tags = map[string]any{"replicatefrom": "c"} }), "follow c", ""},
		{"replicatefrom itself", view(leads("b", 0), func(v *View) { v.Tags = map[string]any{"replicatefrom": "a"} }), "", "following b"},
		{"left behind", view(leads("b", 0), func(v *View) {
			v.Cluster.Members[1].Value.Timeline, v.Postgres.Streaming = 2, false
			v.Cluster.History = cluster.Entry[cluster.History]{ModifyIndex: 41, Value: cluster.History{{Timeline: 1, LSN: 4999}}}
		}), "rejoin as replica of b", "timeline 1 ended before"},
		{"behind, but not beyond the fork", view(leads("b", 0), func(v *View) {
			v.Cluster.Members[1].Value.Timeline, v.Postgres.Streaming = 2, false
			v.Cluster.History = cluster.Entry[cluster.History]{ModifyIndex: 41, Value: cluster.History{{Timeline: 1, LSN: 5000}}}
		}), "", "following b"},
		{"on a timeline of which the history does not tell", view(leads("b", 0), strayed(41)), "rejoin as replica of b", "is another's"},
		{"on a timeline of which the history does not tell yet", view(leads("b", 0), strayed(39)), "", "following b"},
		{"on a timeline of which Patroni's history does not tell", view(leads("b", 0), strayed(39), func(v *View) { v.Cluster.Status.Value.Lictor = nil }), "rejoin as replica of b", "is another's"},
		{"Patroni leads", view(leads("b", time.Hour), func(v *View) { v.Cluster.Status.Value.Lictor = nil }), "", "following b"},
	})
}

// A member tagged nostream follows nobody: its restore_command brings the leader's WAL.
func TestFollowingByTheArchive(t *testing.T) {
	noStream := func(v *View) {
		v.Tags = map[string]any{"nostream": true}
		v.Postgres.Upstream, v.Postgres.Streaming = "", false
	}
	streams := func(v *View) { v.Postgres.Upstream, v.Postgres.Streaming = "b", true }
	forked := func(at int64) func(*View) {
		return func(v *View) {
			v.Cluster.Members[1].Value.Timeline = 2
			v.Cluster.History = cluster.Entry[cluster.History]{ModifyIndex: 9, Value: cluster.History{{Timeline: 1, LSN: at}}}
		}
	}
	runSituations(t, []situationTest{
		{"content", view(leads("b", 0), noStream), "", "following b by the archive"},
		{"another leader", view(leads("c", 0), noStream), "", "following c by the archive"},
		{"replicatefrom", view(leads("b", 0), noStream, func(v *View) { v.Tags["replicatefrom"] = "c" }), "", "following b by the archive"},
		{"down", view(leads("b", 0), noStream, down), "rejoin as replica of b, by the archive alone", ""},
		{"down, leader not yet primary", view(leads("b", 0), noStream, down, func(v *View) { v.Cluster.Members[1].Value.Role = cluster.RoleReplica }), "", "waiting until b is a primary"},
		{"empty", view(leads("b", 0), noStream, empty), "clone from b, by the archive alone", ""},
		{"left behind", view(leads("b", 0), noStream, forked(4999)), "rejoin as replica of b, by the archive alone", "timeline 1 ended before"},
		{"behind, but not beyond the fork", view(leads("b", 0), noStream, forked(5000)), "", "following b by the archive"},
		{"replay waits for a restart", view(leads("b", 0), noStream, undersized), "restart as replica of nobody", "replay stands still"},
		{"tagged while it streams", view(leads("b", 0), noStream, streams), "follow nobody", "WAL comes from the archive"},
		{"tagged while it streams, and that has failed", view(leads("b", 0), noStream, streams, func(v *View) {
			v.Attempt = Attempt{Kind: TaskStart, Failures: 2, NotUntil: now.Add(time.Second)}
		}), "", "waiting to try again after 2"},
		{"tagged while it streams, paused", view(leads("b", 0), noStream, streams, paused_), "", "paused"},
		{"tagged while commits wait for it", view(leads("b", 0), noStream, streams, syncKey("b", "a")), "", "until it does without"},
		{"commits wait for another", view(leads("b", 0), noStream, streams, syncKey("b", "c")), "follow nobody", ""},
		{"the tag is gone", view(leads("b", 0), noStream, func(v *View) { v.Tags = nil }), "follow b", "b leads"},
		{"parted", view(leads("b", 0), noStream, func(v *View) { v.Detached = 45 }), "", "until b is seen to lead on"},
		{"nobody leads", view(leads("b", 8201*time.Millisecond), noStream, asked()), "take over (status at 45)", "best"},
		{"nobody leads, and it lags", view(leads("b", 8201*time.Millisecond), noStream, asked(), func(v *View) { v.Cluster.Status.Value.OpTime = 5000 + 2<<20 }), "", "lags"},
		{"nobody leads, another one has more", view(leads("b", 8201*time.Millisecond), noStream, asked(peer("c", 1, 6000))), "", "c is ahead"},
		{"nobody leads, another one has less by the archive", view(leads("b", 8201*time.Millisecond), asked(archived("c", 4000))), "take over (status at 45)", "best"},
	})
}

func TestElecting(t *testing.T) {
	// The margin for drift: 8 s of lease are over after 8.2 s.
	justNot, just := 8199*time.Millisecond, 8201*time.Millisecond
	failsafe := func(names ...string) func(*View) {
		return func(v *View) {
			v.Cluster.Failsafe = cluster.Entry[map[string]string]{Value: map[string]string{}, ModifyIndex: 46}
			for _, n := range names {
				v.Cluster.Failsafe.Value[n] = "http://" + n
			}
		}
	}
	take := "take over (status at 45)"
	runSituations(t, []situationTest{
		{"lease runs to the last", view(leads("b", justNot), asked()), "", "following b"},
		{"lease nearly over", view(leads("b", 7500*time.Millisecond)), "ask the other members", "following b"},
		{"lease over, lock stands", view(leads("b", just), asked()), take, "best"},
		{"a promotion would wait for a restart", view(leads("b", just), asked(), undersized), "restart as replica of nobody", "max_connections"},
		{"a promotion would wait for a restart, the lease is ours", view(leads("b", 0), released("a"), undersized), "restart as replica of nobody", "max_connections"},
		{"lease over, lock gone", view(leads("b", just), lockGone, asked()), take, "best"},
		{"drift margin without lock", view(leads("b", justNot), lockGone, asked()), "", "following b"},
		{"lease of the beat counts, not our ttl", view(leads("b", just), asked(), func(v *View) {
			v.Cluster.Status.Value.Lictor.LeaseMS = 30000
		}), "", "following b"},
		{"nobody asked yet", view(leads("b", just)), "ask the other members", ""},
		{"answers out", view(leads("b", just), asked(), func(v *View) { v.PeersDone = false }), "", "waiting for the others"},
		{"stale reading", view(leads("b", just), asked(), func(v *View) { v.Read = now.Add(-5 * time.Second) }), "read Consul again", ""},
		{"the other is ahead", view(leads("b", just), asked(peer("c", 1, 6000))), "", "c is ahead"},
		{"the other is behind", view(leads("b", just), asked(peer("c", 1, 4000))), take, ""},
		{"the other is on a newer timeline", view(leads("b", just), asked(peer("c", 2, 4000))), "", "c is ahead"},
		{"the other is ahead but silent", view(leads("b", just), asked(Peer{Name: "c", Timeline: 1, LSN: 6000})), take, ""},
		{"the other is ahead but nofailover", view(leads("b", just), asked(Peer{Name: "c", Answered: true, State: "running", Timeline: 1, LSN: 6000, Tags: map[string]any{"nofailover": true}})), take, ""},
		{"equal, higher priority there", view(leads("b", just), asked(Peer{Name: "c", Answered: true, State: "running", Timeline: 1, LSN: 5000, Tags: map[string]any{"failover_priority": 2}})), "", "c is ahead"},
		{"old primary still answers", view(leads("b", just), asked(Peer{Name: "b", Answered: true, State: "running", Primary: true, Timeline: 1, LSN: 5000})), "", "b still runs as a primary"},
		{"old primary answers for ever", view(leads("b", 2*ttl+time.Second), asked(Peer{Name: "b", Answered: true, State: "running", Primary: true, Timeline: 1, LSN: 5000})), take, ""},
		{"nofailover", view(leads("b", just), asked(), func(v *View) { v.Tags = map[string]any{"nofailover": true} }), "", "nofailover"},
		{"priority 0", view(leads("b", just), asked(), func(v *View) { v.Tags = map[string]any{"failover_priority": 0} }), "", "nofailover"},
		{"far on a timeline that the shard has left", view(leads("b", just), asked(), func(v *View) {
			v.Cluster.Status.Value.OpTime = 6000 + 2<<20
			v.Postgres.LSN = 6000 + 2<<20
			v.Cluster.History = cluster.Entry[cluster.History]{Value: cluster.History{{Timeline: 1, LSN: 5000}}, ModifyIndex: 3}
		}), "", "lags"},
		{"lags too far", view(leads("b", just), asked(), func(v *View) { v.Cluster.Status.Value.OpTime = 5000 + 2<<20 }), "", "lags"},
		{"watchdog required", view(leads("b", just), asked(), func(v *View) { v.WatchdogOK = false }), "", "watchdog"},
		{"synchronous standby", view(leads("b", just), asked(), syncKey("b", "a")), take, ""},
		{"not synchronous", view(leads("b", just), asked(), syncKey("b", "c")), "", "not a synchronous standby"},
		{"not synchronous, mode switched off later", view(leads("b", just), asked(), syncKey("b", "c"), func(v *View) { v.Config.SynchronousMode = cluster.SyncOff }), "", "not a synchronous standby"},
		{"sync key not understood", view(leads("b", just), asked(), func(v *View) { v.Cluster.Sync = cluster.Entry[cluster.Sync]{ModifyIndex: 4, Err: fmt.Errorf("bad")} }), "", "not understood"},
		{"ahead but not synchronous does not count", view(leads("b", just), asked(peer("c", 1, 9000)), syncKey("b", "a")), take, ""},
		{"in the failsafe list", view(leads("b", just), asked(), failsafe("a", "b")), take, ""},
		{"not in the failsafe list", view(leads("b", just), asked(), failsafe("b", "c")), "", "failsafe list"},
		{"released to anybody", view(leads("b", time.Second), released(""), asked()), take, ""},
		{"released to us", view(leads("b", time.Second), released("a")), take, "given to us"},
		{"released to another, first half", view(leads("b", 3900*time.Millisecond), released("c"), asked()), "", "not over"},
		{"released to another, who did not take it", view(leads("b", 4100*time.Millisecond), released("c"), asked()), take, ""},
		{"PostgreSQL down", view(leads("b", just), down), "start as replica of nobody", ""},
		{"PostgreSQL starting", view(leads("b", just), func(v *View) { v.Postgres.Accepting = false }), "", "is starting"},
		{"was primary, down, nobody led since", view(leads("a", just), down, primary, asked()), take, "our own lock"},
		{"was primary, down, lease still runs", view(leads("a", time.Second), down, primary, asked(peer("b", 1, 5000))), take, "our own lock"},
		{"was primary, down, the others were not asked", view(leads("a", just), down, primary), "ask the other members", "our own lock"},
		{"was primary, down, led before in this run", view(leads("a", just), down, primary, func(v *View) { v.Lease.Renewed = 1 }), take, "our own lock"},
		{"was primary, down, the others are being asked", view(leads("a", just), down, primary, asked(), func(v *View) { v.PeersDone = false }), "", "waiting for the others' answers"},
		{"was primary, down, another does not answer", view(leads("a", just), down, primary, asked(), func(v *View) { v.PeersDone, v.PeersAsked = false, now.Add(-enoughTime) }), take, "our own lock"},
		{"was primary, down, another runs as one", view(leads("a", time.Second), down, primary, asked(primaryPeer("b"))), "", "b runs as a primary"},
		{"was primary, down, another is being stopped", view(leads("a", time.Second), down, primary, asked(primaryPeer("b")), func(v *View) { v.Peers[0].State = cluster.StateStopping }), "", "b runs as a primary"},
		{"was primary, down, another was one", view(leads("a", time.Second), down, primary, asked(primaryPeer("b")), func(v *View) { v.Peers[0].State = cluster.StateStopped }), take, "our own lock"},
		{"was primary, down, another runs as a replica", view(leads("a", time.Second), down, primary, asked(peer("b", 1, 5000))), take, "our own lock"},
		{"was primary, down, another runs as one for ever", view(leads("a", 2*just), down, primary, asked(primaryPeer("b"))), take, "our own lock"},
		{"was primary, down, Consul silent for a lease", view(leads("a", just), down, primary, func(v *View) { v.Read = now.Add(-ttl - time.Second) }), "start as replica of nobody", ""},
		{"was primary, down, takeover just failed", view(leads("a", just), down, primary, func(v *View) { v.Lease.NotBefore = now.Add(time.Second) }), "", "could not be taken"},
		{"answer to our takeover was lost", view(leads("a", time.Second)), take, "our own lock"},
		{"no status key: the full time from first sight", view(func(v *View) { v.StatusSeen = now.Add(-8 * time.Second) }, asked()), "", "not over"},
		{"no status key: over", view(func(v *View) { v.StatusSeen = now.Add(-9 * time.Second) }, asked()), "take over (status at 0)", ""},
		{"new to Consul, primary data", view(newShard, down, primary, asked()), "take over (status at 0)", ""},
		{"new to Consul, standby data", view(newShard, func(v *View) { v.StatusSeen = now.Add(-time.Minute) }, asked()), "", "standby's"},
		{"operator chose us", view(leads("b", just), asked(peer("c", 1, 6000)), request(cluster.Failover{Candidate: "a"})), take, ""},
		{"operator chose another", view(leads("b", just), asked(peer("c", 1, 4000)), request(cluster.Failover{Candidate: "c"})), "", "chosen by the operator"},
		{"Patroni's free lock", view(leads("b", 0), lockGone, asked(), func(v *View) { v.Cluster.Status.Value.Lictor = nil }), take, ""},
		{"paused", view(leads("b", just), asked(), paused_), "", "paused"},
	})
}

// A takeover carries the indexes of everything that it rests on. What the key sync
// promises goes on until the new leader is about to be promoted: then it is the only
// one that may lead.
func TestTakeOverChecks(t *testing.T) {
	v := view(leads("b", time.Minute), asked(), syncKey("b", "a"))
	d := Decide(v)
	if len(d.Actions) != 1 {
		t.Fatalf("actions: %v (%s)", d.Actions, d.Reason)
	}
	got, ok := d.Actions[0].(TakeOver)
	if !ok || got.Status != 45 || got.Leader != 40 || got.Failsafe != 0 || got.SyncIndex != 47 {
		t.Errorf("got %+v", d.Actions[0])
	}
	if got.Sync != nil {
		t.Errorf("sync: got %+v, want the promise of before", got.Sync)
	}
	replica := func(v *View) { v.Postgres.Primary = false }
	v = view(holdsLease(7*time.Second), replica, syncKey("b", "a"))
	promote, ok := findAction[Promote](Decide(v))
	if !ok || promote.SyncIndex != 47 || promote.Sync == nil || promote.Sync.Leader != "a" || len(promote.Sync.Standbys()) != 0 {
		t.Errorf("%+v", promote)
	}
	// A primary that runs already acknowledges commits: its takeover says so at once.
	v = view(leads("b", time.Minute), asked(), syncKey("b", "a"), primary)
	if got := v.takeOver(); got.Sync == nil || got.Sync.Leader != "a" || len(got.Sync.Standbys()) != 0 {
		t.Errorf("sync: got %+v, want a alone", got.Sync)
	}
}

func findAction[T Action](d Decision) (T, bool) {
	for _, action := range d.Actions {
		if found, ok := action.(T); ok {
			return found, true
		}
	}
	var none T
	return none, false
}

func TestWakeIsTheNextMomentThatMatters(t *testing.T) {
	for _, tt := range []struct {
		name string
		view View
		want cluster.Instant
	}{
		{"next beat", view(holdsLease(7 * time.Second)), now.Add(time.Second)},
		{"demote moment while a beat is out", view(holdsLease(5*time.Second), func(v *View) { v.Lease.InFlight = true }), now.Add(3 * time.Second)},
		{"kill moment while demoting", view(holdsLease(2*time.Second), func(v *View) { v.Task = TaskDemote }), now.Add(1200 * time.Millisecond)},
		{"lease of a lost leader", view(leads("b", 8*time.Second), lockGone, asked(), func(v *View) { v.Cluster.Status.Value.Lictor.Released = false }), now.Add(200 * time.Millisecond)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if d := Decide(tt.view); d.Wake != tt.want {
				t.Errorf("got %s, want %s (%s)", d.Wake, tt.want, d.Reason)
			}
		})
	}
}
