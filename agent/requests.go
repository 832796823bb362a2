package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/consul"
)

// State is what the loop last saw (api.Node), and how far a clone is by now.
func (a *Agent) State() api.State {
	s := *a.shown.Load()
	if c := a.cloned.Load(); c != nil && s.Task.Kind != "" && !c.began.Before(s.Task.Since) {
		s.Task.From, s.Task.Bytes, s.Task.Total = c.from, c.bytes, c.total
	}
	return s
}

// ask runs f on the loop's goroutine and waits for what it returns.
func (a *Agent) ask(ctx context.Context, f func() error) error {
	answer := make(chan error, 1)
	select {
	case a.events <- func() { answer <- f() }:
	case <-ctx.Done():
		return ctx.Err()
	case <-a.ctx.Done():
		return errStopping
	}
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-a.ctx.Done():
		return errStopping
	}
}

// await waits until condition holds for what the loop shows.
func (a *Agent) await(ctx context.Context, condition func(api.State) bool) error {
	for {
		changed := a.changed.wait()
		if condition(a.State()) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-a.ctx.Done():
			return errStopping
		}
	}
}

// Observe looks at PostgreSQL anew (api.Node).
func (a *Agent) Observe(ctx context.Context) {
	asked := time.Now()
	kick(a.kickPostgres)
	// If that takes too long, the age of what is shown tells.
	_ = a.await(ctx, func(s api.State) bool { return s.ObservedAt.After(asked) })
}

// Reload re-reads the configuration file, as SIGHUP does (api.Node), and makes what
// can change at run time take effect. A file that is not valid changes nothing.
func (a *Agent) Reload(ctx context.Context) error {
	select { // one at a time: none takes effect after one that was read later
	case a.reloading <- struct{}{}:
		defer func() { <-a.reloading }()
	case <-ctx.Done():
		return ctx.Err()
	}
	a.systemd.Reloading()
	defer a.systemd.Ready()
	cfg, warnings, err := config.Load(a.source)
	if err != nil {
		a.meter.Reloads.WithLabelValues("refused").Inc()
		return fmt.Errorf("the configuration stays as it was: %w", err)
	}
	for _, w := range warnings {
		a.log.Warn().Msg(w.String())
	}
	return a.ask(ctx, func() error {
		a.meter.Reloads.WithLabelValues("done").Inc()
		a.reconfigure(cfg)
		return nil
	})
}

// watchReload reloads when it is told to.
func (a *Agent) watchReload(ctx context.Context, asked <-chan struct{}) {
	for {
		select {
		case <-asked:
			if err := a.Reload(ctx); err != nil && ctx.Err() == nil {
				a.log.Error().Err(err).Msg("reload failed")
			}
		case <-ctx.Done():
			return
		}
	}
}

// Switchover leaves the request in the key failover, where the leader finds it,
// and waits for the outcome (api.Node).
func (a *Agent) Switchover(ctx context.Context, request cluster.Failover) (api.Outcome, error) {
	before := a.State()
	began := time.Now()
	old := before.Cluster.LeaderName()
	value, err := json.Marshal(request)
	if err != nil {
		return api.Outcome{}, fmt.Errorf("the request: %w", err)
	}
	snapshot, err := a.store.Read(ctx)
	if err != nil {
		return api.Outcome{}, err
	}
	if err := a.ask(ctx, func() error { a.m.Refused = ""; return nil }); err != nil {
		return api.Outcome{}, err
	}
	if err := a.store.Write(ctx, a.keys.Failover(), snapshot.Failover.ModifyIndex, value); err != nil {
		return api.Outcome{}, translate(err)
	}
	if request.ScheduledAt != nil {
		return api.Outcome{Leader: old, Known: true}, nil
	}
	var last api.State
	limit, cancel := context.WithTimeout(ctx, 2*before.Dynamic.TTL+30*time.Second)
	defer cancel()
	err = a.await(limit, func(s api.State) bool {
		last = s
		leader := s.Cluster.LeaderName()
		cleared := s.Cluster.Failover.OK() && s.Cluster.Failover.Value.Empty() && s.Cluster.Failover.ModifyIndex > snapshot.Failover.ModifyIndex
		return leader != "" && leader != old && leaderServes(s) || cleared && leader == old && s.Refused != ""
	})
	leader := last.Cluster.LeaderName()
	return api.Outcome{
		Leader: leader,
		Known:  err == nil,
		Done:   err == nil && leader != "" && leader != old,
		Reason: last.Refused,
		Took:   time.Since(began),
	}, nil
}

// leaderServes tells whether the leader says of itself that it is a primary.
func leaderServes(s api.State) bool {
	m, found := s.Cluster.Member(s.Cluster.LeaderName())
	return found && m.Value.State == cluster.StateRunning && m.Value.Role != cluster.RoleReplica
}

// CancelSwitchover clears a scheduled request (api.Node).
func (a *Agent) CancelSwitchover(ctx context.Context) error {
	snapshot, err := a.store.Read(ctx)
	if err != nil {
		return err
	}
	if !snapshot.Failover.OK() || snapshot.Failover.Value.ScheduledAt == nil {
		return api.ErrNone
	}
	return translate(a.store.Write(ctx, a.keys.Failover(), snapshot.Failover.ModifyIndex, []byte("{}")))
}

// ChangeConfig changes the dynamic configuration (api.Node). What is not valid
// is refused before it reaches Consul.
func (a *Agent) ChangeConfig(ctx context.Context, change func(map[string]any) (map[string]any, error)) (map[string]any, []cluster.Warning, error) {
	snapshot, err := a.store.Read(ctx)
	if err != nil {
		return nil, nil, err
	}
	if !snapshot.Config.Exists() {
		return nil, nil, api.ErrNone
	}
	raw, err := cluster.DecodeObject(snapshot.Config.Value)
	if err != nil {
		return nil, nil, fmt.Errorf("the present value of the key config: %w", err)
	}
	old, _, err := a.rules().Parse(raw)
	if err != nil {
		a.log.Warn().Err(err).Msg("the dynamic configuration that is to be changed is not valid itself")
	}
	changed, err := change(raw)
	if err != nil {
		return nil, nil, err
	}
	next, warnings, err := a.rules().Parse(changed)
	if err == nil {
		err = a.checkChange(ctx, old, next)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", api.ErrRefused, err)
	}
	changed = inForce(a.cfg, next, changed)
	value, err := cluster.CanonicalJSON(changed)
	if err != nil {
		return nil, nil, fmt.Errorf("the new configuration: %w", err)
	}
	if present, err := cluster.CanonicalJSON(raw); err == nil && bytes.Equal(present, value) {
		return changed, warnings, nil // nothing to be told to anybody
	}
	if err := a.store.Write(ctx, a.keys.Config(), snapshot.Config.ModifyIndex, value); err != nil {
		return nil, nil, translate(err)
	}
	return changed, warnings, nil
}

func translate(err error) error {
	if errors.Is(err, consul.ErrConflict) {
		return fmt.Errorf("%w: %w", api.ErrConflict, err)
	}
	return err
}
