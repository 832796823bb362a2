package postgres

import "testing"

// DateStyle is an ordinary setting of the operator's (postgresql.parameters.datestyle, ALTER ROLE,
// ALTER DATABASE). A login by a WAL sender's slot takes the simple protocol, whose times are text.
func TestNoFreeSlotWithADateStyle(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a, b := pair(ctx, t)
	caughtUp(ctx, t, a, b)
	sql(ctx, t, a, "ALTER ROLE postgres SET datestyle = 'SQL, DMY'")
	caughtUp(ctx, t, a, b)
	for _, p := range []*Instance{a, b} {
		p.hangUp()
		exhaust(ctx, t, p)
		if s, err := p.Observe(ctx); err != nil || !s.Accepting {
			t.Errorf("%s is not observed: %+v %v", p.name, s, err)
		}
	}
}

// ALTER ROLE postgres SET role = ...: the agent's session is somebody else's.
func TestRoleOfTheSession(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a := serving(ctx, t)
	sql(ctx, t, a, "CREATE ROLE weak")
	sql(ctx, t, a, "ALTER ROLE postgres SET role = 'weak'")
	a.hangUp()
	if s, err := a.Observe(ctx); err != nil || !s.Accepting {
		t.Errorf("not observed: %+v %v", s, err)
	}
	if _, err := a.SetSynchronous(ctx, SyncSetting{Names: []string{"b"}}); err != nil {
		t.Error(err)
	}
}

// With default_transaction_isolation = serializable every statement on a hot standby fails ("cannot use
// serializable mode in a hot standby"), that of the agent's own session, too: no replica is observed,
// none is electable, none can be promoted.
func TestSerializableReplica(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	a, b := pair(ctx, t)
	caughtUp(ctx, t, a, b)
	sql(ctx, t, a, "ALTER DATABASE postgres SET default_transaction_isolation = 'serializable'")
	caughtUp(ctx, t, a, b)
	b.hangUp()
	if s, err := b.Observe(ctx); err != nil || !s.Accepting {
		t.Errorf("the replica is not observed: %+v %v", s, err)
	}
	must(t, a.Stop(ctx, Fast))
	if err := b.Promote(ctx, 0); err != nil {
		t.Errorf("not promoted: %v", err)
	}
}
