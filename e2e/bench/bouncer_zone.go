package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lictor-ha/lictor/e2e/lab"
)

const (
	zoneShards  = 12
	zoneMembers = 3
	zoneTTL     = 8 // the default
	// zoneMargin is what may be needed beyond the lease.
	zoneMargin = 2 * time.Second
)

// zoneFigures are of the loss of a zone: one member of each of 12 shards, four of
// them primaries, and one of three Consul servers, on hosts that fall silent at once. Routed is when both bouncers
// had verified that PgBouncer leads to the new primary, from the loss on.
type zoneFigures struct {
	Shards    int       `json:"shards"`
	Primaries int       `json:"primaries_lost"`
	Routed    []float64 `json:"routed_ms"`
	Worst     float64   `json:"worst_ms"`
	Limit     float64   `json:"limit_ms"`
	// Apart is by how much the two bouncers differed at most.
	Apart float64 `json:"bouncers_apart_ms"`
	// Others is how many of the other eight shards changed their primary.
	Others int   `json:"other_primaries_changed"`
	Lost   int64 `json:"lost_acked"`
}

func zoneLoss(ctx context.Context, r *bouncerReport) error {
	l, err := newZoneLab(ctx)
	defer func() { closeLab(l) }()
	if err != nil {
		return err
	}
	var work []*lab.Workload
	for i, s := range l.Shards() {
		if err := placePrimary(ctx, s, s.Members()[i%zoneMembers]); err != nil {
			return err
		}
		if err := whole(ctx, s); err != nil {
			return err
		}
		w := s.StartWorkload(ctx, lab.WorkloadOptions{WriteEvery: 200 * time.Millisecond, ReadEvery: -1})
		defer w.Stop()
		work = append(work, w)
	}
	if err := sleep(ctx, 5*time.Second); err != nil {
		return err
	}
	f := &zoneFigures{Shards: zoneShards, Limit: milliseconds(zoneTTL*time.Second + zoneMargin)}
	before, err := bouncersSee(ctx, l)
	if err != nil {
		return err
	}
	begun := time.Now()
	group, groupCtx := errgroup.WithContext(ctx)
	for _, s := range l.Shards() {
		group.Go(func() error { return s.Members()[0].PowerOff(groupCtx) })
	}
	// It is the one that every bouncer asks first.
	group.Go(func() error { return l.ConsulServers()[0].PowerOff(groupCtx) })
	if err := group.Wait(); err != nil {
		return err
	}
	if err := f.await(ctx, l, begun); err != nil {
		return err
	}
	after, err := bouncersSee(ctx, l)
	if err != nil {
		return err
	}
	for i, s := range l.Shards() {
		if i%zoneMembers != 0 && before[0][s.Name].Leader != after[0][s.Name].Leader {
			f.Others++
		}
	}
	for _, w := range work {
		if err := moreWrites(ctx, w); err != nil {
			return err
		}
		w.Stop()
		loss, err := w.LostAcked(ctx)
		if err != nil {
			return err
		}
		f.Lost += loss.Lost
	}
	r.ZoneLoss = f
	progress("   zone: %+v", *f)
	return nil
}

// newZoneLab builds 12 shards of 3 small members.
func newZoneLab(ctx context.Context) (*lab.Lab, error) {
	l, err := unstarted(ctx, lab.Options{
		Substrate: lab.Netns, Shards: zoneShards, Members: zoneMembers, TTL: zoneTTL,
		Parameters: map[string]any{
			"shared_buffers": "8MB", "max_connections": 40, "wal_keep_size": "32MB", "max_wal_size": "64MB", "min_wal_size": "32MB",
			"autovacuum_naptime": "5min", "jit": "off",
		},
	})
	if err != nil {
		return nil, err
	}
	if err := l.Start(ctx); err != nil {
		return l, err
	}
	for _, s := range l.Shards() {
		if err := whole(ctx, s); err != nil {
			return l, err
		}
		if err := s.Prepare(ctx); err != nil {
			return l, err
		}
	}
	return l, l.AwaitServing(ctx)
}

// placePrimary makes a member the primary.
func placePrimary(ctx context.Context, s *lab.Shard, wanted *lab.Member) error {
	for {
		leader, err := s.Leader(ctx)
		if err != nil {
			return err
		}
		if leader == wanted {
			return nil
		}
		if err := whole(ctx, s); err != nil {
			return err
		}
		snapshot, err := s.Snapshot(ctx)
		if err != nil {
			return err
		}
		next := wanted
		if standbys := snapshot.Sync.Value.Standbys(); !slices.Contains(standbys, wanted.Name) {
			next = s.Member(standbys[0]) // by way of the one that may
		}
		if err := s.Switchover(ctx, leader, next); err != nil {
			return err
		}
		if _, err := s.AwaitLeader(ctx, leader); err != nil {
			return err
		}
	}
}

// bouncersSee is what each bouncer says of each shard.
func bouncersSee(ctx context.Context, l *lab.Lab) ([]map[string]shardStatus, error) {
	var list []map[string]shardStatus
	for _, b := range l.BouncerHosts() {
		status, err := bouncerStatus(ctx, l, b)
		if err != nil {
			return nil, err
		}
		shards := map[string]shardStatus{}
		for _, s := range l.Shards() {
			shards[s.Name] = status.Shards["service/"+s.Name]
		}
		list = append(list, shards)
	}
	return list, nil
}

// await waits until every bouncer leads to new primaries of the shards that lost
// theirs, and clients are released.
func (f *zoneFigures) await(ctx context.Context, l *lab.Lab, begun time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		seen, err := bouncersSee(ctx, l)
		if err != nil {
			return err
		}
		f.Primaries, f.Routed, f.Worst, f.Apart = 0, nil, 0, 0
		missing := 0
		for i, s := range l.Shards() {
			if i%zoneMembers != 0 {
				continue
			}
			f.Primaries++
			var at []time.Time
			for _, shards := range seen {
				one := shards[s.Name]
				if one.VerifiedAt != nil && one.VerifiedAt.After(begun) && one.Leader != s.Members()[0].Name && !one.Held && !one.Paused {
					at = append(at, *one.VerifiedAt)
				}
			}
			if len(at) < len(seen) {
				missing++
				continue
			}
			first, last := slices.MinFunc(at, time.Time.Compare), slices.MaxFunc(at, time.Time.Compare)
			f.Routed = append(f.Routed, milliseconds(last.Sub(begun)))
			f.Worst = max(f.Worst, milliseconds(last.Sub(begun)))
			f.Apart = max(f.Apart, milliseconds(last.Sub(first)))
		}
		if missing == 0 {
			return nil
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("%d shards are not routed to a new primary: %w", missing, err)
		}
	}
}
