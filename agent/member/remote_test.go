package member

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/pg"
)

const remotePrimary = "remote primary db9:5432"

// standby is a world whose shard is the standby of another one.
func standby(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.Dynamic.StandbyCluster = cluster.StandbyCluster{Host: "db9", Port: 5432}
	w.agree("Guard.Awake")
	return w
}

// leadingStandby is one whose member is the standby leader.
func leadingStandby(t *testing.T) *world {
	t.Helper()
	w := standby(t).leading()
	w.sawReplica(200*mib, remotePrimary)
	return w
}

func remoteUpstream() pg.Upstream {
	return pg.Upstream{Name: remotePrimary, Host: "db9", Port: 5432, Remote: true}
}

// A PostgreSQL that runs is stopped when the remote primary can be followed, and not before; one that
// is down is started without it. What has diverged and cannot be rewound is neither started nor removed.
func TestRejoinTheRemotePrimary(t *testing.T) {
	diverged := fmt.Errorf("on the same timeline: %w", ErrDiverged)
	for _, tt := range []struct {
		name          string
		down          bool
		check, rewind error
		want          []string
		fails         bool
	}{
		{name: "it runs", want: []string{"CheckRemote", "Stop", "Rewind", "Start", "Look"}},
		{name: "it runs, and the other does not answer", check: errBoom, want: []string{"CheckRemote", "AskSite", "Look"}, fails: true},
		{name: "it runs, and cannot be rewound", check: diverged, want: []string{"CheckRemote", "Look"}, fails: true},
		{name: "it is down", down: true, want: []string{"CheckRemote", "Stop", "Rewind", "Start", "Look"}},
		{name: "it is down, and the other does not answer", down: true, check: errBoom, want: []string{"CheckRemote", "Start", "Look"}},
		{name: "it is down, and cannot be rewound", down: true, check: diverged, want: []string{"CheckRemote", "Look"}, fails: true},
		{name: "the rewind fails", down: true, rewind: diverged, want: []string{"CheckRemote", "Stop", "Rewind", "Look"}, fails: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := standby(t)
			w.mayRemove = "setting"
			w.Snapshot = w.shard("a")
			w.agree("Postgres.Stop", "Postgres.Start")
			w.sawPrimary(100 * mib)
			if tt.down {
				w.running, w.PG.Running = false, false
			}
			w.always["Postgres.Rewind"] = func(c *call) { c.fail(tt.rewind) }
			if tt.rewind == nil {
				w.agree("Postgres.Rewind")
			}
			w.asked = nil
			w.begin(ha.Rejoin{Upstream: remotePrimary})
			c := w.take("Postgres.CheckRemote")
			if up := c.args[1].(pg.Upstream); up != remoteUpstream() {
				t.Fatalf("%+v", up)
			}
			c.answer(false, tt.check)
			if c := w.find("Postgres.AskSite"); c != nil {
				w.answer("Postgres.AskSite", cluster.Site{}, errBoom)
			}
			w.settle()
			w.looked()
			var asked []string
			for _, name := range tt.want {
				asked = append(asked, "Postgres."+name)
			}
			w.wantAsked("Postgres", asked...)
			if failed := w.Attempt.Failures > 0; failed != tt.fails || (w.Upstream == remotePrimary) == tt.fails {
				t.Errorf("failed: %v, follows %q", failed, w.Upstream)
			}
		})
	}
}

// A standby leader whose WAL is none of the remote primary's, and that no rewind can help, goes on
// serving readers: it is not stopped again for what cannot succeed, until the settings are others.
func TestStandbyLeaderBeyondRewind(t *testing.T) {
	beyond := fmt.Errorf("WAL is gone: %w", ErrBeyondRewind)
	for name, rewinds := range map[string]bool{"not allowed": false, "allowed": true} {
		t.Run(name, func(t *testing.T) {
			w := leadingStandby(t)
			w.mayRewind = rewinds
			w.always["Postgres.Rewind"] = func(c *call) { c.fail(beyond) }
			w.agree("Postgres.Stop", "Postgres.Start")
			w.asked = nil
			w.begin(ha.Rejoin{Upstream: remotePrimary})
			w.answer("Postgres.CheckRemote", true, nil)
			w.settle()
			w.looked()
			if rewinds {
				w.wantAsked("Postgres", "Postgres.CheckRemote", "Postgres.Stop", "Postgres.Rewind", "Postgres.Start", "Postgres.Look")
			} else {
				w.wantAsked("Postgres", "Postgres.CheckRemote", "Postgres.Look")
			}
			if w.Attempt.Failures == 0 || !w.PG.Running {
				t.Fatalf("%+v, running: %v", w.Attempt, w.PG.Running)
			}
			strays := func() bool {
				t.Helper()
				w.pass(w.Dynamic.LoopWait)
				v := w.View()
				v.Postgres.Accepting, v.Postgres.Streaming, v.Postgres.Upstream = true, false, remotePrimary
				w.remote.mind(v.Postgres)
				w.answer("Postgres.CheckRemote", true, nil)
				return w.View().Postgres.Strayed
			}
			if strays() || !slices.ContainsFunc(w.Logged(), func(line string) bool { return strings.Contains(line, "cannot follow the remote primary") }) {
				t.Errorf("it would be stopped again; logged: %v", w.Logged())
			}
			w.mayRewind = !rewinds
			if !strays() {
				t.Error("with another setting it is not tried again")
			}
		})
	}
}

// A standby leader that receives nothing asks whether its WAL is still the remote primary's, once at a
// time and no more often than each loop_wait; what it was told ends with its next receiving, or task.
func TestStandbyLeaderAsksTheRemotePrimary(t *testing.T) {
	w := leadingStandby(t)
	mind := func(streaming bool) {
		v := w.View()
		v.Postgres.Streaming = streaming
		w.remote.mind(v.Postgres)
	}
	mind(true)
	w.none("Postgres.CheckRemote")
	mind(false)
	mind(false)
	c := w.take("Postgres.CheckRemote")
	w.none("Postgres.CheckRemote")
	c.answer(false, errBoom)
	if w.View().Postgres.Strayed || len(w.Logged()) == 0 {
		t.Fatalf("strayed: %v, logged: %v", w.View().Postgres.Strayed, w.Logged())
	}
	mind(false)
	w.none("Postgres.CheckRemote")
	w.pass(w.Dynamic.LoopWait)
	mind(false)
	w.answer("Postgres.CheckRemote", true, nil)
	if !w.View().Postgres.Strayed || len(w.Logged()) != 0 {
		t.Fatalf("strayed: %v, logged: %v", w.View().Postgres.Strayed, w.Logged())
	}
	// What is told ends with the trouble, also where the answer comes late.
	w.pass(w.Dynamic.LoopWait)
	mind(false)
	w.answer("Postgres.CheckRemote", false, errBoom)
	w.pass(w.Dynamic.LoopWait)
	mind(false)
	if len(w.Logged()) == 0 {
		t.Fatal("the trouble is not told")
	}
	mind(true)
	w.answer("Postgres.CheckRemote", false, errBoom)
	if len(w.Logged()) != 0 {
		t.Fatalf("it receives, and tells: %v", w.Logged())
	}
	w.pass(w.Dynamic.LoopWait)
	mind(false)
	w.answer("Postgres.CheckRemote", true, nil)
	mind(true)
	if w.View().Postgres.Strayed {
		t.Fatal("it has strayed, and receives")
	}

	// A task has changed the data meanwhile.
	w.pass(w.Dynamic.LoopWait)
	mind(false)
	w.edge = w.Now()
	w.answer("Postgres.CheckRemote", true, nil)
	if w.View().Postgres.Strayed {
		t.Fatal("of the data before the task")
	}

	// Who does not lead asks nobody, and has no trouble with it.
	w.pass(w.Dynamic.LoopWait)
	mind(false)
	w.answer("Postgres.CheckRemote", false, errBoom)
	w.Snapshot = w.shard("b")
	w.pass(w.Dynamic.LoopWait)
	mind(false)
	w.none("Postgres.CheckRemote")
	if len(w.Logged()) != 0 {
		t.Errorf("it does not lead, and tells: %v", w.Logged())
	}
}

// A shard that is promoted has no trouble with the one that it followed.
func TestRemoteTroubleEndsWithThePromotion(t *testing.T) {
	w := leadingStandby(t)
	v := w.View()
	v.Postgres.Streaming = false
	w.remote.mind(v.Postgres)
	w.answer("Postgres.CheckRemote", false, errBoom)
	if len(w.Logged()) == 0 {
		t.Fatal("the trouble is not told")
	}
	w.Dynamic.StandbyCluster = cluster.StandbyCluster{}
	w.sawPrimary(300 * mib)
	w.remote.mind(w.View().Postgres)
	if len(w.Logged()) != 0 {
		t.Errorf("it is a primary, and tells: %v", w.Logged())
	}
}

// A shard whose configuration was written past the API has its own member for the remote primary: it is told,
// even while WAL goes round.
func TestStandbyOfItself(t *testing.T) {
	w := leadingStandby(t)
	host, port, err := w.Snapshot.Members[1].Value.Address()
	if err != nil {
		t.Fatal(err)
	}
	w.Dynamic.StandbyCluster = cluster.StandbyCluster{Host: host, Port: port}
	v := w.View()
	v.Postgres.Streaming = true
	w.remote.mind(v.Postgres)
	if logged := strings.Join(w.Logged(), ""); !strings.Contains(logged, "a member of this shard") {
		t.Errorf("told: %q", logged)
	}
}

// The first member of a standby shard copies the remote primary, and keeps the key initialize until its
// first lease.
func TestBootstrapFromTheRemotePrimary(t *testing.T) {
	w := standby(t)
	w.Snapshot = w.shard("")
	w.Snapshot.Initialize = cluster.Entry[string]{}
	w.Data.State, w.running = ha.DataEmpty, false
	w.asked = nil
	w.begin(ha.Bootstrap{From: remotePrimary})
	w.answer("Consul.BeginBootstrap")
	c := w.take("Postgres.MakeReplica")
	if up := c.args[0].(*pg.Upstream); *up != remoteUpstream() {
		t.Fatalf("%+v", up)
	}
	c.answer()
	w.Data.State = ha.DataValid
	w.looked()
	w.wantAsked("Postgres", "Postgres.MakeReplica", "Postgres.Look")
	w.Data.State = ha.DataValid
	own := cluster.Snapshot{Initialize: cluster.Entry[string]{Session: "sa", ModifyIndex: 3}}
	w.bootstrap.clearStale(own)
	w.none("Consul.EndBootstrap")
	w.Dynamic.StandbyCluster = cluster.StandbyCluster{}
	w.bootstrap.clearStale(own)
	w.take("Consul.EndBootstrap")

	// An upstream that the configuration does not name any more.
	w.begin(ha.Bootstrap{From: remotePrimary})
	if w.Attempt.Kind != ha.TaskBootstrap || w.Attempt.Failures == 0 {
		t.Errorf("%+v", w.Attempt)
	}
}

// What others see of a standby leader: its role, no route for writers, a position that a primary's of
// before is not mixed with.
func TestStandbyLeaderInConsul(t *testing.T) {
	w := leadingStandby(t)
	if got := w.Value().Role; got != cluster.RoleStandbyLeader {
		t.Errorf("role %s", got)
	}
	if r, ok := w.route.wanted(); !ok || r.State != cluster.RouteDown {
		t.Errorf("%+v", r)
	}
	if s := w.nextStatus(); !s.Lictor.Standby || s.OpTime != 200*mib || s.Lictor.Timeline != 5 {
		t.Errorf("%+v", s)
	}
	if w.noteService(true); !w.unservedSince.IsZero() {
		t.Error("it serves nobody")
	}

	// A primary of before: what it has beyond is not the shard's.
	w.Snapshot.Status.Value.OpTime = 900 * mib
	w.PG.Observed.Replaying = true
	w.Snapshot.Status.Value.Lictor.Standby = false
	w.sawPrimary(900 * mib)
	if s := w.nextStatus(); s.Lictor.Standby {
		t.Error("a primary's position counts as a standby leader's")
	}
	if got := w.Value().Role; got != cluster.RolePrimary {
		t.Errorf("role %s", got)
	}
	w.gone()
	if s := w.nextStatus(); s.Lictor.Standby {
		t.Error("the position of a primary that was stopped counts as a standby leader's")
	}

	w = leadingStandby(t)
	w.Snapshot = w.shard("b")
	if got := w.Value().Role; got != cluster.RoleReplica {
		t.Errorf("role %s of a member that does not lead", got)
	}
	w = leadingStandby(t)
	w.Dynamic.StandbyCluster = cluster.StandbyCluster{}
	if got := w.Value().Role; got != cluster.RoleReplica {
		t.Errorf("role %s when standby_cluster is removed", got)
	}
	if r, ok := w.route.wanted(); !ok || r.State != cluster.RoutePromoting {
		t.Errorf("%+v", r)
	}
}

// A standby leader keeps the others' slots and writes the history, as a primary does.
func TestStandbyLeaderKeepsWhatTheOthersNeed(t *testing.T) {
	w := leadingStandby(t)
	w.useSlots = true
	w.agree("Consul.Touch")
	w.asked = nil
	w.Publish()
	w.settle()
	if w.find("Postgres.SyncSlots") == nil {
		t.Errorf("no slots; asked: %v", w.asked)
	}
	w.answer("Postgres.TimelineHistory", cluster.History{{Timeline: 2, LSN: 50}}, nil)
	if w.find("Consul.WriteAsLeader") == nil {
		t.Errorf("no history; asked: %v", w.asked)
	}
}

func TestUpstreamOfTheRemotePrimary(t *testing.T) {
	w := standby(t)
	if up, err := w.upstreamOf(remotePrimary); err != nil || up != remoteUpstream() {
		t.Errorf("%+v %v", up, err)
	}
	w.Dynamic.StandbyCluster.Port = 5433
	if up, err := w.upstreamOf(remotePrimary); err == nil {
		t.Errorf("%+v", up)
	}
	if _, err := w.upstreamOf("remote primary db9:5433"); err != nil {
		t.Error(err)
	}
}
