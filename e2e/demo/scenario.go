package demo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lictor-ha/lictor/e2e/lab"
)

// scenario is one way to break the cluster. It returns when the fault has been
// taken back; whether the shard has recovered is looked at afterwards.
type scenario struct {
	name  string
	key   byte
	title string
	run   func(ctx context.Context, s *stage) error
}

// stage is what a scenario acts upon.
type stage struct {
	lab     *lab.Lab
	shard   *lab.Shard
	primary *lab.Member
	say     func(line string)
}

// scenarioTimeout bounds one scenario with its recovery.
const scenarioTimeout = 5 * time.Minute

// hostLoss is the scenario of --once.
const hostLoss = "host-loss"

// scenarios is the list, in the order in which it is shown.
func scenarios() []scenario {
	return []scenario{
		{hostLoss, 'h', "lose the primary's host: kill all its processes at once", loseHost},
		{"kill-postmaster", 'p', "kill the primary's postmaster", killPostmaster},
		{"kill-agent", 'a', "kill the primary's agent; it is started again, as systemd would", killAgent},
		{"switchover", 's', "hand the leadership over to a replica", switchover},
		{"freeze-primary", 'f', "freeze the primary's host for 20 s", freezePrimary},
		{"replica-loss", 'r', "lose a replica's host", loseReplica},
		{"consul-leader-loss", 'l', "kill the leader of the Consul servers", loseConsulLeader},
		{"consul-loss", 'c', "kill all Consul servers for 20 s", loseConsul},
		{"pooler-loss", 'b', "lose a PgBouncer host", losePooler},
	}
}

// Scenarios are the names of all scenarios and what each does, one a line.
func Scenarios() string {
	var lines strings.Builder
	for _, s := range scenarios() {
		fmt.Fprintf(&lines, "  %-20s%s\n", s.name, s.title)
	}
	return strings.TrimSuffix(lines.String(), "\n")
}

// choose returns the scenarios of a name; none for the empty one.
func choose(name string) ([]scenario, error) {
	all := scenarios()
	switch name {
	case "":
		return nil, nil
	case "all":
		return all, nil
	}
	var names []string
	for _, s := range all {
		if s.name == name {
			return []scenario{s}, nil
		}
		names = append(names, s.name)
	}
	return nil, fmt.Errorf("%q: there is none of that name, only %s and all", name, strings.Join(names, ", "))
}

// play runs one scenario on a shard and measures what its clients see.
func (d *demo) play(ctx context.Context, s scenario, shard *lab.Shard, say func(string)) (Result, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, scenarioTimeout, fmt.Errorf("gave up after %v", scenarioTimeout))
	defer cancel()
	result, err := d.measure(ctx, s, shard, say)
	if err != nil {
		return Result{}, fmt.Errorf("scenario %s on %s: %w", s.name, shard.Name, err)
	}
	d.results = append(d.results, result)
	return result, nil
}

func (d *demo) measure(ctx context.Context, s scenario, shard *lab.Shard, say func(string)) (Result, error) {
	if err := d.awaitWhole(ctx, shard); err != nil {
		return Result{}, err
	}
	old, err := shard.Leader(ctx)
	if err != nil {
		return Result{}, err
	}
	clients := d.workloads[slices.Index(d.lab.Shards(), shard)]

	begun := time.Now()
	if err := s.run(ctx, &stage{lab: d.lab, shard: shard, primary: old, say: say}); err != nil {
		return Result{}, err
	}
	if err := d.awaitWhole(ctx, shard); err != nil {
		return Result{}, err
	}
	recovered := time.Now()
	// A gap ends with an acknowledgement: one of after the recovery.
	if err := awaitAckSince(ctx, clients.Writes, recovered); err != nil {
		return Result{}, err
	}
	now := time.Now()
	loss, err := clients.LostAcked(ctx)
	if err != nil {
		return Result{}, err
	}
	leader, err := shard.Leader(ctx)
	if err != nil {
		return Result{}, err
	}
	return Result{
		Name: s.name, Shard: shard.Name,
		WriteGapMS:   clients.Writes.LongestGap(begun, now).Milliseconds(),
		ClientErrors: len(clients.Writes.Errors(begun, now)) + len(clients.Reads.Errors(begun, now)),
		Acked:        loss.Acked, LostAcked: loss.Lost,
		RecoveredMS: recovered.Sub(begun).Milliseconds(),
		OldPrimary:  old.Name, NewPrimary: leader.Name,
	}, nil
}

func awaitAckSince(ctx context.Context, h *lab.History, since time.Time) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !h.LastAck().At.After(since) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("no write is acknowledged though the shard is whole: %w", context.Cause(ctx))
		}
	}
	return nil
}

// pause lets a fault last for a while.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// outage is how long the faults last that nothing but time ends.
const outage = 20 * time.Second

func loseHost(ctx context.Context, s *stage) error {
	s.say("killing every process of " + s.primary.Name + ", the primary's host")
	if err := s.primary.PowerOff(ctx); err != nil {
		return err
	}
	successor, err := s.shard.AwaitLeader(ctx, s.primary)
	if err != nil {
		return err
	}
	s.say(successor.Name + " is the primary now; starting " + s.primary.Name + " again")
	return s.primary.Start(ctx)
}

func killPostmaster(ctx context.Context, s *stage) error {
	postmaster, err := s.primary.Postmaster()
	if err != nil {
		return err
	}
	s.say(fmt.Sprintf("killing process %d, the postmaster of %s", postmaster.PID, s.primary.Name))
	if err := postmaster.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	return awaitNewPostmaster(ctx, s.primary, postmaster.PID)
}

// awaitNewPostmaster waits until the member runs another postmaster: only then
// can its shard be whole again.
func awaitNewPostmaster(ctx context.Context, m *lab.Member, old int) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if now, err := m.Postmaster(); err == nil && now.PID != old {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%s starts no new postmaster: %w", m.Name, context.Cause(ctx))
		}
	}
}

func killAgent(ctx context.Context, s *stage) error {
	agent := s.primary.Processes()[0]
	s.say(fmt.Sprintf("killing process %d, the agent of %s, and starting it again", agent.PID(), s.primary.Name))
	if err := agent.Kill(ctx); err != nil {
		return err
	}
	return s.primary.Start(ctx)
}

func switchover(ctx context.Context, s *stage) error {
	candidate, err := s.candidate(ctx)
	if err != nil {
		return err
	}
	s.say(fmt.Sprintf("switching over from %s to %s", s.primary.Name, candidate.Name))
	if err := s.shard.Switchover(ctx, s.primary, candidate); err != nil {
		return err
	}
	_, err = s.shard.AwaitLeader(ctx, s.primary)
	return err
}

// candidate is a synchronous standby, or, without one, any replica.
func (s *stage) candidate(ctx context.Context) (*lab.Member, error) {
	snapshot, err := s.shard.Snapshot(ctx)
	if err != nil {
		return nil, err
	}
	replicas, err := s.shard.Replicas(ctx)
	if err != nil {
		return nil, err
	}
	if len(replicas) == 0 {
		return nil, errors.New("the shard has no replica")
	}
	for _, m := range replicas {
		if snapshot.Sync.OK() && slices.Contains(snapshot.Sync.Value.Standbys(), m.Name) {
			return m, nil
		}
	}
	return replicas[0], nil
}

func freezePrimary(ctx context.Context, s *stage) error {
	s.say(fmt.Sprintf("freezing every process of %s for %v", s.primary.Name, outage))
	if err := s.primary.Freeze(ctx); err != nil {
		return err
	}
	err := pause(ctx, outage)
	s.say("thawing " + s.primary.Name)
	return errors.Join(err, s.primary.Thaw(ctx))
}

func loseReplica(ctx context.Context, s *stage) error {
	replica, err := s.candidate(ctx)
	if err != nil {
		return err
	}
	s.say("killing every process of " + replica.Name + ", a replica")
	if err := replica.PowerOff(ctx); err != nil {
		return err
	}
	if _, err := s.shard.AwaitHealthy(ctx, replica); err != nil {
		return err
	}
	if err := pause(ctx, outage/4); err != nil {
		return err
	}
	s.say("starting " + replica.Name + " again")
	return replica.Start(ctx)
}

func loseConsulLeader(ctx context.Context, s *stage) error {
	leader, err := s.lab.ConsulLeader(ctx)
	if err != nil {
		return err
	}
	s.say("killing " + leader.Name + ", the leader of the Consul servers")
	if err := leader.PowerOff(ctx); err != nil {
		return err
	}
	if err := s.lab.AwaitConsul(ctx); err != nil {
		return err
	}
	s.say("Consul has a new leader; starting " + leader.Name + " again")
	return leader.Start(ctx)
}

func loseConsul(ctx context.Context, s *stage) error {
	s.say(fmt.Sprintf("killing all Consul servers for %v", outage))
	var group errgroup.Group
	for _, server := range s.lab.ConsulServers() {
		group.Go(func() error { return server.PowerOff(ctx) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if err := pause(ctx, outage); err != nil {
		return err
	}
	s.say("starting the Consul servers again")
	return s.lab.StartConsul(ctx)
}

func losePooler(ctx context.Context, s *stage) error {
	pooler := s.lab.BouncerHosts()[0]
	s.say("killing every process of " + pooler.Name)
	if err := pooler.PowerOff(ctx); err != nil {
		return err
	}
	if err := pause(ctx, outage/4); err != nil {
		return err
	}
	s.say("starting " + pooler.Name + " again")
	if err := pooler.Start(ctx); err != nil {
		return err
	}
	return s.lab.AwaitPoolers(ctx)
}
