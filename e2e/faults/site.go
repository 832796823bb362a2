package faults

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/lictor-ha/lictor/e2e/lab"
)

// Options say what to break. Zero values mean the defaults.
type Options struct {
	// Dir holds the lab's files; it must be empty, new, or a lab's leftovers.
	Dir string
	// TTL in seconds; zero: the agent's default. The other times follow it.
	TTL int
	// Async switches synchronous mode off.
	Async bool
	// Dynamic is merged over the shard's dynamic configuration. It must not set
	// the times; for those there is TTL.
	Dynamic map[string]any
	// Outage is how long the faults last that nothing but time ends, 20 s.
	Outage time.Duration
	// Slack is added to every limit on the time for which writes may stop.
	Slack time.Duration
	// CheckLimit bounds the checking of one round's histories, 30 s.
	CheckLimit time.Duration
	Programs   lab.Programs
	// Progress, when set, is told what is being done, one line at a time.
	Progress func(string)
}

func (o Options) withDefaults() Options {
	if o.Outage == 0 {
		o.Outage = 20 * time.Second
	}
	if o.CheckLimit == 0 {
		o.CheckLimit = 30 * time.Second
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	return o
}

// Timing is what the expectations depend on.
type Timing struct {
	TTL, LoopWait time.Duration
}

// timing is that of a shard whose configuration sets nothing but, perhaps, ttl
// (design 5.12).
func timing(ttl int) Timing {
	if ttl == 0 {
		ttl = 8
	}
	t := Timing{TTL: time.Duration(ttl) * time.Second, LoopWait: 2 * time.Second}
	if ttl < 8 {
		t.LoopWait = time.Second
	}
	return t
}

// Site is the installation that is broken, again and again, with the witness that
// watches it. It has one shard.
type Site struct {
	Options Options
	Timing  Timing
	Lab     *lab.Lab
	Shard   *lab.Shard
	Witness *Witness
}

// witnessEvery is how often the witness writes on a primary, and looks for one on
// a replica.
const witnessEvery = 5 * time.Millisecond

// volumeMB is the size of a data directory's file system. It is sparse: only what
// is written takes room.
const volumeMB = 2048

// Open builds a site and starts it, until it is whole. The caller closes it.
func Open(ctx context.Context, opts Options) (*Site, error) {
	opts = opts.withDefaults()
	s := &Site{Options: opts, Timing: timing(opts.TTL)}
	labOptions := lab.Options{
		Dir: opts.Dir, Substrate: lab.Netns, ConsulOnMembers: true,
		TTL: opts.TTL, Async: opts.Async, Dynamic: opts.Dynamic, Programs: opts.Programs, Progress: opts.Progress,
	}
	// Without volumes the faults of disks are not available; all others are.
	err := lab.CanMakeVolumes(ctx)
	if err == nil {
		labOptions.VolumeMB = volumeMB
	} else {
		opts.Progress(err.Error())
	}
	if s.Lab, err = lab.New(ctx, labOptions); err != nil {
		return nil, err
	}
	if err := s.start(ctx); err != nil {
		return nil, errors.Join(err, s.Close(context.WithoutCancel(ctx), true))
	}
	return s, nil
}

func (s *Site) start(ctx context.Context) error {
	if err := s.Lab.Start(ctx); err != nil {
		return err
	}
	s.Shard = s.Lab.Shard(0)
	leader, err := s.Shard.AwaitHealthy(ctx)
	if err != nil {
		return err
	}
	if err := s.Shard.Prepare(ctx); err != nil {
		return err
	}
	conn, err := leader.ConnectLocal(ctx, s.Shard.Name, nil)
	if err != nil {
		return err
	}
	defer hangUp(conn)
	if _, err := conn.Exec(ctx, witnessTables+";"+clientTables); err != nil {
		return fmt.Errorf("tables of the clients: %w", err)
	}
	if err := s.AwaitWhole(ctx); err != nil {
		return err
	}
	s.Witness = startWitness(context.WithoutCancel(ctx), s.Shard, witnessEvery)
	return nil
}

// Close ends everything. keep leaves the files.
func (s *Site) Close(ctx context.Context, keep bool) error {
	if s.Witness != nil {
		s.Witness.Stop()
	}
	if keep {
		return s.Lab.Stop(ctx)
	}
	return s.Lab.Close(ctx)
}

// AwaitWhole waits until everything runs and serves: Consul with all its servers,
// the shard with all its members, in synchronous mode a synchronous standby, the
// poolers, and a client's way to the primary.
func (s *Site) AwaitWhole(ctx context.Context) error {
	if err := s.awaitServing(ctx); err != nil {
		return err
	}
	return s.awaitConsulWhole(ctx)
}

// awaitServing waits for all of that but Consul: its gossip finds a server that
// was cut off again only after up to 30 s.
func (s *Site) awaitServing(ctx context.Context) error {
	if _, err := s.Shard.AwaitHealthy(ctx); err != nil {
		return err
	}
	if !s.Options.Async {
		if err := s.Shard.AwaitSync(ctx); err != nil {
			return err
		}
	}
	if err := s.Lab.AwaitPoolers(ctx); err != nil {
		return err
	}
	return s.Lab.AwaitServing(ctx)
}

// ended lists the processes that do not run though nobody took them down.
func (s *Site) ended() []string {
	var names []string
	for _, h := range s.Lab.Hosts() {
		for _, p := range h.Processes() {
			if !p.Running() {
				names = append(names, fmt.Sprintf("%s on %s (%v)", p.Name, h.Name, p.ExitError()))
			}
		}
	}
	return names
}

// Privileged says why a site cannot be built by this user, nil when it can.
func Privileged() error {
	if os.Geteuid() != 0 {
		return errors.New("the failure lab's hosts are network namespaces, which only root can make")
	}
	return nil
}
