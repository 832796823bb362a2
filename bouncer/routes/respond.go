package routes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/consul"
)

// answerRetry is the pause before an answer is written again, when that has failed.
const answerRetry = time.Second

// errOtherSession says that the key of an answer is not this bouncer's.
var errOtherSession = errors.New("the key is held by another session: another bouncer of this name, or this one's predecessor, which expires soon")

// Responder writes the answers to handovers into Consul, for who looks there (agents ask over
// HTTP alone), and removes them when the handover is over.
type Responder struct {
	log       zerolog.Logger
	pool      *consul.Pool
	name      string
	prefix    string
	handovers *Handovers
	// session returns the one that holds this bouncer's keys, empty: none.
	session func() string
}

// NewResponder makes one for the bouncer called name; session returns the one that holds
// its keys, empty: none.
func NewResponder(log zerolog.Logger, pool *consul.Pool, name, prefix string, h *Handovers, session func() string) *Responder {
	return &Responder{log: log, pool: pool, name: name, prefix: prefix, handovers: h, session: session}
}

// Run writes until ctx is done; what is left then goes with the session.
func (r *Responder) Run(ctx context.Context) {
	written := map[config.ShardID]cluster.HandoverAnswer{}
	retry := time.NewTimer(0)
	defer retry.Stop()
	for {
		all, answered := r.handovers.Current()
		if err := r.bring(ctx, all, written); err != nil && ctx.Err() == nil {
			r.log.Warn().Err(err).Msg("an answer to a handover could not be written to Consul; its leader asks over HTTP")
			retry.Reset(answerRetry)
		}
		select {
		case <-ctx.Done():
			return
		case <-answered:
		case <-retry.C:
		}
	}
}

// bring makes the keys say what is to be said. It writes what a leader acts upon,
// not every count. What cannot be written of one shard keeps no other's back.
func (r *Responder) bring(ctx context.Context, all map[config.ShardID]Standing, written map[config.ShardID]cluster.HandoverAnswer) error {
	var failed []error
	for id, one := range all {
		old, was := written[id]
		switch {
		case one.Over && was:
			if err := r.remove(ctx, id); err != nil {
				failed = append(failed, err)
				continue
			}
			delete(written, id)
		case one.Over || one.Answer.ID != one.Value.ID || one.Answer.ID == old.ID && one.Answer.Paused == old.Paused &&
			one.Answer.Quiet() == old.Quiet() && one.Answer.Problem == old.Problem:
		default:
			// A write whose answer is lost may have taken effect: it is to be
			// removed later, and to be made again now.
			written[id] = cluster.HandoverAnswer{}
			if err := r.write(ctx, id, one.Answer); err != nil {
				failed = append(failed, err)
				continue
			}
			written[id] = one.Answer
		}
	}
	return errors.Join(failed...)
}

func (r *Responder) key(id config.ShardID) string {
	i := strings.LastIndexByte(string(id), '/')
	return cluster.NewKeys(string(id[:i]), string(id[i+1:]), r.prefix).HandoverAnswer(r.name)
}

func (r *Responder) write(ctx context.Context, id config.ShardID, a cluster.HandoverAnswer) error {
	session := r.session()
	if session == "" {
		return fmt.Errorf("key %s: this bouncer has no session in Consul", r.key(id))
	}
	value, err := json.Marshal(a)
	if err != nil {
		return fmt.Errorf("key %s: %w", r.key(id), err)
	}
	ok, err := consul.Attempt(ctx, r.pool, func(ctx context.Context, c *api.Client) (bool, error) {
		ok, _, err := c.KV().Acquire(&api.KVPair{Key: r.key(id), Value: value, Session: session}, (&api.WriteOptions{}).WithContext(ctx))
		return ok, err
	})
	if err == nil && !ok {
		err = errOtherSession
	}
	if err != nil {
		return fmt.Errorf("key %s: %w", r.key(id), err)
	}
	return nil
}

func (r *Responder) remove(ctx context.Context, id config.ShardID) error {
	_, err := consul.Attempt(ctx, r.pool, func(ctx context.Context, c *api.Client) (struct{}, error) {
		_, err := c.KV().Delete(r.key(id), (&api.WriteOptions{}).WithContext(ctx))
		return struct{}{}, err
	})
	if err != nil {
		return fmt.Errorf("key %s: %w", r.key(id), err)
	}
	return nil
}
