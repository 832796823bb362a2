package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/consul"
	"github.com/lictor-ha/lictor/agent/metrics"
	"github.com/lictor-ha/lictor/agent/postgres"
	"github.com/lictor-ha/lictor/agent/systemd"
)

// node is what the REST API reaches the agent through (api.Node). Its methods run on the
// goroutines of requests; what they want of the loop's state they ask the loop for.
type node struct {
	*board
	m       *loopState // in what is asked of the loop alone
	conf    *dynamicConfig
	compat  string
	source  config.Source
	show    func() // on the loop
	keys    cluster.Keys
	store   *consul.Store
	pg      *postgres.Instance
	backups config.Backup
	// upgradeBinDir is lictor.upgrade_bin_dir.
	upgradeBinDir   string
	checkingUpgrade chan struct{} // holds one while a check for a major upgrade goes on
	kickPostgres    chan struct{}
	reloading       chan struct{} // holds one while the configuration file is read anew
	systemd         *systemd.Notifier
	metrics         *metrics.Metrics
	log             zerolog.Logger
}

// Observe looks at PostgreSQL anew (api.Node).
func (n *node) Observe(ctx context.Context) {
	asked := time.Now()
	kick(n.kickPostgres)
	// If that takes too long, the age of what is shown tells.
	_ = n.await(ctx, func(s api.State) bool { return s.ObservedAt.After(asked) })
}

// Reload re-reads the configuration file, as SIGHUP does (api.Node), and makes what
// can change at run time take effect. A file that is not valid changes nothing.
func (n *node) Reload(ctx context.Context) error {
	select { // one at a time: none takes effect after one that was read later
	case n.reloading <- struct{}{}:
		defer func() { <-n.reloading }()
	case <-ctx.Done():
		return ctx.Err()
	}
	n.systemd.Reloading()
	defer n.systemd.Ready()
	cfg, warnings, err := config.Load(n.source)
	if err != nil {
		n.metrics.Reloads.WithLabelValues("refused").Inc()
		return fmt.Errorf("the configuration stays as it was: %w", err)
	}
	for _, w := range warnings {
		n.log.Warn().Msg(w.String())
	}
	return n.ask(ctx, func() error {
		n.metrics.Reloads.WithLabelValues("done").Inc()
		n.conf.reconfigure(cfg)
		return nil
	})
}

// watchReload reloads when it is told to.
func (n *node) watchReload(ctx context.Context, asked <-chan struct{}) {
	for {
		select {
		case <-asked:
			if err := n.Reload(ctx); err != nil && ctx.Err() == nil {
				n.log.Error().Err(err).Msg("reload failed")
			}
		case <-ctx.Done():
			return
		}
	}
}

// Switchover leaves the request in the key failover, where the leader finds it,
// and waits for the outcome (api.Node).
func (n *node) Switchover(ctx context.Context, request cluster.Failover) (api.Outcome, error) {
	before := n.State()
	began := time.Now()
	old := before.Cluster.LeaderName()
	value, err := json.Marshal(request)
	if err != nil {
		return api.Outcome{}, fmt.Errorf("the request: %w", err)
	}
	snapshot, err := n.store.Read(ctx)
	if err != nil {
		return api.Outcome{}, err
	}
	if err := n.ask(ctx, func() error { n.m.ForgetRefusal(); return nil }); err != nil {
		return api.Outcome{}, err
	}
	if err := n.store.Write(ctx, n.keys.Failover(), snapshot.Failover.ModifyIndex, value); err != nil {
		return api.Outcome{}, translate(err)
	}
	if request.ScheduledAt != nil {
		return api.Outcome{Leader: old, Known: true}, nil
	}
	var last api.State
	limit, cancel := context.WithTimeout(ctx, 2*before.Dynamic.TTL+30*time.Second)
	defer cancel()
	err = n.await(limit, func(s api.State) bool {
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

// leaderServes reports whether the leader says of itself that it is a primary.
func leaderServes(s api.State) bool {
	m, found := s.Cluster.Member(s.Cluster.LeaderName())
	return found && m.Value.State == cluster.StateRunning && m.Value.Role != cluster.RoleReplica
}

// CancelSwitchover clears a scheduled request (api.Node).
func (n *node) CancelSwitchover(ctx context.Context) error {
	snapshot, err := n.store.Read(ctx)
	if err != nil {
		return err
	}
	if !snapshot.Failover.OK() || snapshot.Failover.Value.ScheduledAt == nil {
		return api.ErrNone
	}
	return translate(n.store.Write(ctx, n.keys.Failover(), snapshot.Failover.ModifyIndex, []byte("{}")))
}

// ChangeConfig changes the dynamic configuration (api.Node). What is not valid
// is refused before it reaches Consul.
func (n *node) ChangeConfig(ctx context.Context, change func(map[string]any) (map[string]any, error)) (map[string]any, []cluster.Warning, error) {
	snapshot, err := n.store.Read(ctx)
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
	old, _, err := n.conf.rules.Parse(raw)
	if err != nil {
		n.log.Warn().Err(err).Msg("the dynamic configuration that is to be changed is not valid itself")
	}
	changed, err := change(raw)
	if err != nil {
		return nil, nil, err
	}
	next, warnings, err := n.conf.rules.Parse(changed)
	if err == nil {
		err = n.conf.checkChange(ctx, old, next)
	}
	if err == nil {
		err = next.MaintenanceWindows.CheckZones()
	}
	if err == nil {
		err = snapshot.CheckTakeover(old, next)
	}
	if err == nil {
		err = n.conf.checkOwn(ctx, snapshot, old, next)
	}
	if err == nil {
		err = n.conf.checkSites(ctx, n.State, old, next)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", api.ErrRefused, err)
	}
	changed = inForce(n.compat, next, changed)
	value, err := cluster.CanonicalJSON(changed)
	if err != nil {
		return nil, nil, fmt.Errorf("the new configuration: %w", err)
	}
	if present, err := cluster.CanonicalJSON(raw); err == nil && bytes.Equal(present, value) {
		return changed, warnings, nil // nothing to be told to anybody
	}
	if err := n.store.Write(ctx, n.keys.Config(), snapshot.Config.ModifyIndex, value); err != nil {
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
