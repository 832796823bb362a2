package postgres

import (
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// remoteOf is a remote primary with two addresses, of which one may be that of a standby.
func remoteOf(t *testing.T, p *Instance, hosts string) (Upstream, cluster.Dynamic) {
	t.Helper()
	d, _, err := cluster.ParseDynamic(map[string]any{"standby_cluster": map[string]any{
		"host": hosts, "port": p.port, "primary_slot_name": "site_b", "recovery_min_apply_delay": "1min", "restore_command": "false",
	}})
	must(t, err)
	s := d.StandbyCluster
	return Upstream{Name: s.Upstream(), Host: s.Host, Port: s.Port, Remote: true}, d
}

// A standby leader is copied from the primary among a remote shard's hosts, and follows it by the slot and
// with the commands of standby_cluster; other replicas have neither.
func TestFollowRemotePrimary(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	a, b := newInstance(t, settings(t, dir, "a")), newInstance(t, settings(t, dir, "b"))
	bootstrapped(ctx, t, a)
	must(t, a.Start(ctx, StartAs{Role: Primary}))
	observe(ctx, t, a, "primary", func(s State) bool { return s.Accepting })
	sql(ctx, t, a, "SELECT pg_create_physical_replication_slot('site_b')")
	up, d := remoteOf(t, a, "127.0.0.3,127.0.0.1") // nobody listens at the first
	b.Apply(d)
	must(t, b.MakeReplica(ctx, &up, "", nil))
	if strayed, err := b.CheckRemote(ctx, up, true); strayed || err != nil {
		t.Errorf("strayed: %v %v", strayed, err)
	}
	must(t, b.Start(ctx, StartAs{Role: Replica, Upstream: &up}))
	observe(ctx, t, b, "the standby leader streams", func(s State) bool { return s.InRecovery && s.ReplicationState == Streaming })
	if got := b.Upstream(); got != up.Name {
		t.Errorf("follows %q", got)
	}
	for _, test := range []struct{ parameter, want string }{
		{"primary_slot_name", "site_b"}, {"recovery_min_apply_delay", "1min"},
	} {
		if got := value(ctx, t, b, "SHOW "+test.parameter); got != test.want {
			t.Errorf("%s is %q, want %q", test.parameter, got, test.want)
		}
	}
	if got := value(ctx, t, b, "SHOW restore_command"); !strings.Contains(got, "false") {
		t.Errorf("restore_command is %q", got)
	}
	if got := value(ctx, t, b, "SHOW primary_conninfo"); !strings.Contains(got, "target_session_attrs=read-write") || !strings.Contains(got, "127.0.0.3,127.0.0.1") || strings.Contains(got, secret) {
		t.Errorf("primary_conninfo is %q", got)
	}
	observe(ctx, t, a, "the slot is used", func(s State) bool { return len(s.Slots) == 1 && s.Slots[0].Active })

	// Another member leads: this one is its replica.
	other := upstream(a)
	must(t, b.Follow(ctx, other))
	observe(ctx, t, b, "a replica", func(State) bool { return value(ctx, t, b, "SHOW primary_slot_name") == "b" })
	if got := value(ctx, t, b, "SHOW recovery_min_apply_delay"); got != "0" {
		t.Errorf("recovery_min_apply_delay of a replica is %q", got)
	}
	must(t, b.Follow(ctx, up))
	observe(ctx, t, b, "the standby leader again", func(State) bool { return value(ctx, t, b, "SHOW primary_slot_name") == "site_b" })

	// What cannot be followed is named.
	for name, test := range map[string]struct {
		from *Instance
		want string
	}{"a standby": {b, "is no primary"}, "another cluster": {nil, "not of one cluster"}, "nobody": {newInstance(t, settings(t, dir, "nobody")), "cannot be followed"}} {
		if test.from == nil {
			test.from = newInstance(t, settings(t, dir, "c"))
			bootstrapped(ctx, t, test.from)
			must(t, test.from.Start(ctx, StartAs{Role: Primary}))
			observe(ctx, t, test.from, "primary", func(s State) bool { return s.Accepting })
		}
		wrong, _ := remoteOf(t, test.from, "127.0.0.1")
		if _, err := b.CheckRemote(ctx, wrong, true); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

// The remote shard has failed over, and this one had received what its new primary lacks: it is told while it
// runs, and rewound.
func TestRemotePrimaryLeftUsBehind(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a, b := pair(ctx, t) // the remote shard: b will lead it
	c := newInstance(t, settings(t, newDir(t), "c"))
	up, d := remoteOf(t, a, "127.0.0.1")
	d.StandbyCluster.PrimarySlotName, d.StandbyCluster.RecoveryMinApplyDelay = "", ""
	c.Apply(d)
	must(t, c.MakeReplica(ctx, &up, "", nil))
	must(t, c.Start(ctx, StartAs{Role: Replica, Upstream: &up}))
	observe(ctx, t, c, "the standby leader streams", func(s State) bool { return s.ReplicationState == Streaming })
	must(t, b.Unfollow(ctx)) // it is lost, as the next row
	sql(ctx, t, a, "CREATE TABLE public.only_here AS SELECT generate_series(1, 1000)")
	at := observe(ctx, t, a, "its WAL", func(s State) bool { return s.Accepting }).WriteLSN
	observe(ctx, t, c, "it has all WAL", func(s State) bool { return s.ReplayedLSN >= at })
	must(t, a.Kill(ctx))
	must(t, b.Promote(ctx, 0))
	must(t, b.Checkpoint(ctx))
	now, _ := remoteOf(t, b, "127.0.0.1")
	strayed, err := c.CheckRemote(ctx, now, false)
	if err != nil || !strayed {
		t.Fatalf("strayed: %v %v", strayed, err)
	}
	must(t, c.Stop(ctx, Fast))
	if outcome, err := c.Rewind(ctx, now, true); err != nil || outcome != Rewound {
		t.Fatalf("%s %v", outcome, err)
	}
	must(t, c.Start(ctx, StartAs{Role: Replica, Upstream: &now}))
	observe(ctx, t, c, "it streams again", func(s State) bool { return s.ReplicationState == Streaming && s.Timeline == 2 })
}
