package routes

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/consul"
)

const (
	// patroniWait is how long one blocking query on a leader lasts, and so how
	// old the list of replicas may be: Patroni's members write their keys all
	// the time, too often to be woken by each.
	patroniWait = 10 * time.Second
	// patroniPromotion is the same while a leader is being promoted, when its
	// member's key is watched.
	patroniPromotion = time.Second
	patroniBound     = 5 * time.Second
	// patroniBackoff is the least pause after an error.
	patroniBackoff = 200 * time.Millisecond
	// patroniRate is how many times a second a shard may be read.
	patroniRate = 5
	// patroniMost is how many bytes Consul may say of one shard's keys: their values in base64, those of a
	// hundred members and a history of a thousand failovers among them.
	patroniMost = 16 << 20
	// patroniSurvey is how often it is looked which shards are Patroni's.
	patroniSurvey = time.Second
)

// PatroniFollower follows the shards that Patroni runs: those that say so, and those of
// the configuration for which Lictor's agents have written no route. Each costs
// one open query; Consul allows one address 200 connections
// (limits.http_max_conns_per_client).
type PatroniFollower struct {
	config  config.Config
	log     zerolog.Logger
	pool    *consul.Pool
	table   *Table
	changed func()
	// answered reports whether Consul has said which routes there are.
	answered func() bool
}

func NewPatroniFollower(
	c config.Config, log zerolog.Logger, pool *consul.Pool, b *Table, changed func(), answered func() bool,
) *PatroniFollower {
	return &PatroniFollower{config: c, log: log, pool: pool, table: b, changed: changed, answered: answered}
}

// Run follows until ctx is done.
func (p *PatroniFollower) Run(ctx context.Context) {
	var running sync.WaitGroup
	defer running.Wait()
	followed := map[config.ShardID]context.CancelFunc{}
	survey := time.NewTicker(patroniSurvey)
	defer survey.Stop()
	for {
		for _, s := range p.config.Shards {
			id := s.ID()
			want := s.Patroni || p.answered() && !p.table.routed(id)
			stop, does := followed[id]
			switch {
			case want && !does:
				one, cancel := context.WithCancel(ctx)
				followed[id] = cancel
				running.Go(func() { p.follow(one, s) })
			case does && !want:
				stop()
				delete(followed, id)
			}
		}
		select {
		case <-survey.C:
		case <-ctx.Done():
			for _, stop := range followed {
				stop()
			}
			return
		}
	}
}

// follow follows one shard until ctx is done.
func (p *PatroniFollower) follow(ctx context.Context, s config.Shard) {
	defer p.table.foundWrong(s.ID(), nil)
	keys := cluster.NewKeys(s.Namespace, s.Scope, p.config.RoutesPrefix)
	pause := patroniBackoff
	// A query on a leader that is not there returns whenever anything changes.
	restarts := rate.NewLimiter(patroniRate, patroniRate)
	var begun uint64 // when the key initialize was made
	for restarts.Wait(ctx) == nil {
		snapshot, made, err := p.read(ctx, keys)
		open := false
		if err == nil {
			pause = patroniBackoff
			if made == 0 || begun != 0 && made != begun {
				p.table.forgotten(s.ID())
			}
			begun = made
			open, err = p.take(s, snapshot)
		}
		p.note(ctx, s, err)
		if err == nil {
			err = p.await(ctx, keys, snapshot, open)
		}
		if err != nil {
			select {
			case <-time.After(pause/2 + rand.N(pause)):
			case <-ctx.Done():
			}
			pause = min(2*pause, patroniWait)
		}
	}
}

// read reads all keys of a shard consistently, and tells the index at which the key initialize was made, 0: it is not there.
func (p *PatroniFollower) read(ctx context.Context, keys cluster.Keys) (s cluster.Snapshot, made uint64, err error) {
	ctx, cancel := context.WithTimeout(consul.Limited(ctx, patroniMost), patroniBound)
	defer cancel()
	type result struct {
		pairs api.KVPairs
		index uint64
	}
	r, err := consul.Hedged(ctx, p.pool, func(ctx context.Context, c *api.Client) (result, error) {
		pairs, meta, err := c.KV().List(keys.Prefix(), (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx))
		if err = consul.Led(meta, err); err != nil {
			return result{}, err
		}
		return result{pairs, meta.LastIndex}, nil
	})
	if err != nil {
		return cluster.Snapshot{}, 0, fmt.Errorf("reading %s: %w", keys.Prefix(), err)
	}
	kvs := make([]cluster.KV, len(r.pairs))
	for i, pair := range r.pairs {
		kvs[i] = cluster.KV{Key: pair.Key, Value: pair.Value, Session: pair.Session, ModifyIndex: pair.ModifyIndex}
		if pair.Key == keys.Initialize() {
			made = pair.CreateIndex
		}
	}
	return cluster.ParseSnapshot(keys, kvs, r.index), made, nil
}

// take hands what was read to the table, and reports whether the leader serves.
func (p *PatroniFollower) take(s config.Shard, snapshot cluster.Snapshot) (open bool, err error) {
	var before *cluster.Route
	if k, found := p.table.Get(s.ID()); found {
		before = &k.Route
	}
	maxLag := s.MaxReplicaLag
	if maxLag == 0 {
		maxLag = config.DefaultReplicaLag
	}
	route, index, err := patroniRoute(snapshot, before, maxLag, time.Now())
	if err != nil {
		how := "by Patroni's keys"
		if !s.Patroni { // a new shard of Lictor's is one of these, too
			how += ", as it has no route of Lictor's yet"
		}
		return false, fmt.Errorf("shard %s, %s: %w", s.ID(), how, err)
	}
	changed, err := p.table.followed(s.ID(), route, index)
	if changed {
		p.log.Info().Str("shard", string(s.ID())).Str("leader", route.Leader.Name).Str("state", string(route.State)).
			Int("replicas", len(route.Replicas)).Msg("Patroni's keys have changed")
		p.changed()
	}
	return route.State == cluster.RouteOpen || snapshot.LeaderName() == "", err
}

// await waits until there may be something new: another leader or, while one is
// being promoted, anything of a member.
func (p *PatroniFollower) await(parent context.Context, keys cluster.Keys, s cluster.Snapshot, open bool) error {
	ctx, client, number, end := p.pool.Use(parent)
	defer end()
	wait := patroniWait
	if !open {
		wait = patroniPromotion
	}
	ctx, cancel := context.WithTimeout(consul.Limited(ctx, patroniMost), wait+wait/16+watchGrace)
	defer cancel()
	options := (&api.QueryOptions{WaitIndex: max(s.Index, 1), WaitTime: wait}).WithContext(ctx)
	var err error
	if open {
		_, _, err = client.KV().Get(keys.Leader(), options)
	} else {
		_, _, err = client.KV().List(keys.Members(), options)
	}
	if err != nil && parent.Err() == nil && consul.NoAnswer(err) {
		p.pool.Fail(number)
	}
	if err != nil {
		return fmt.Errorf("watching %s: %w", keys.Prefix(), err)
	}
	return nil
}

// note keeps what is wrong with a shard, and says it once.
func (p *PatroniFollower) note(ctx context.Context, s config.Shard, err error) {
	if ctx.Err() != nil {
		return
	}
	if p.table.foundWrong(s.ID(), err) && err != nil {
		p.log.Error().Err(err).Str("shard", string(s.ID())).Msg("shard cannot be followed")
	}
}
