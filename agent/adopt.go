package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/proof"
)

// adopt takes charge of a PostgreSQL that runs already, and looks at the data
// directory, before anything else happens. It returns the Consul session of the
// agent's earlier run, if the guard remembers one.
func (a *Agent) adopt(ctx context.Context) (session string, err error) {
	a.conf.recall()
	a.pg.Apply(a.m.Dynamic)
	running, err := a.pg.Adopt(ctx)
	if err != nil {
		return "", fmt.Errorf("looking for a running PostgreSQL: %w", err)
	}
	now, seen := a.data.look(ctx)
	if !seen {
		return "", fmt.Errorf("looking at the data directory: %w", ctx.Err())
	}
	a.m.Adopt(now, running)
	a.recallCallbackState()
	if !running {
		return "", nil
	}
	limit, cancel := context.WithTimeout(ctx, a.m.Dynamic.RetryTimeout)
	defer cancel()
	state, err := a.pg.Observe(limit)
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		a.log.Warn().Err(err).Msg("PostgreSQL runs but cannot be observed yet")
	}
	ask, done := context.WithTimeout(ctx, a.m.Dynamic.RetryTimeout)
	defer done()
	guard, none := a.guard.recall(ask)
	if a.m.AdoptRunning(state, a.pg.Upstream(), guard) {
		a.conf.resume(guard.PersistedState.Config)
		session = guard.PersistedState.Session
	}
	if none {
		a.log.Warn().Msg("no guard has started this PostgreSQL: if the one that is started for it now is killed, no signal ends PostgreSQL; " +
			"restart PostgreSQL through the agent at a convenient moment (POST /restart)")
	}
	// What commits wait for now must go on until the key sync says otherwise.
	a.log.Info().Bool("primary", a.m.PG.Primary()).Msg("adopted running PostgreSQL")
	return session, nil
}

// nameLimit bounds each of the two questions of nameIsFree.
const nameLimit = time.Second

// nameIsFree returns an error when another agent of this shard answers by this one's name:
// with two, the member key would go to and fro, and either's copy of the data would count
// as the one synchronous standby. It is asked before PostgreSQL is started, and nobody who
// cannot be asked holds a start up, nor who does not prove to be that member: anybody on its
// host may have the port that it had.
func (a *Agent) nameIsFree(ctx context.Context) error {
	read, cancel := context.WithTimeout(ctx, nameLimit)
	snapshot, err := a.store.Read(read)
	secret := a.secretInConsul(read)
	cancel()
	m, found := snapshot.Member(a.cfg.Name)
	if err != nil || !found || !m.OK() || m.Value.APIURL == "" || m.Value.APIURL == a.m.Value().APIURL {
		return nil //nolint:nilerr // the loop reads the shard until that works
	}
	asked, cancel := context.WithTimeout(ctx, nameLimit)
	defer cancel()
	other, err := a.peers.For(secret).Status(asked, api.PeerOf(m.Value))
	if unproved := (*api.Unproved)(nil); errors.As(err, &unproved) {
		a.log.Warn().Err(err).Msg("somebody answers where this member was before, and is not taken for it")
	}
	if err != nil || other.Scope != a.cfg.Scope || other.Name != "" && other.Name != a.cfg.Name {
		return nil //nolint:nilerr // it has gone: this member has another address now
	}
	return fmt.Errorf("this agent ends before it starts PostgreSQL: member %q of %s runs already, at %s; give this one another name (setting name)",
		a.cfg.Name, a.cfg.Scope, m.Value.APIURL)
}

// secretInConsul holds the shard's secret if Consul shows one: the agent's own keeper has not
// begun yet.
func (a *Agent) secretInConsul(ctx context.Context) *proof.Keeper {
	held := &proof.Keeper{}
	value, index, err := a.store.Get(ctx, a.m.Keys.Secret())
	if err != nil || index == 0 {
		return held
	}
	if secret, err := proof.Parse(value); err == nil {
		held.Keep(secret)
	}
	return held
}
