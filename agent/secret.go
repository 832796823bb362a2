package agent

import (
	"context"
	"errors"
	"time"

	"github.com/lictor-ha/lictor/agent/consul"
	"github.com/lictor-ha/lictor/agent/proof"
)

// keepSecret keeps the shard's secret as Consul has it, makes one where there is none,
// and leaves a copy beside the data for an agent that begins while Consul is away.
func (a *Agent) keepSecret(ctx context.Context) {
	if kept, err := a.pg.Secret(); err != nil {
		a.log.Warn().Err(err).Msg("the shard's secret of before cannot be read")
	} else if s, err := proof.Parse(kept); err == nil {
		a.secrets.Keep(s)
	}
	var index uint64
	told := ""
	for ctx.Err() == nil {
		query, cancel := context.WithTimeout(ctx, watchFor+watchGrace)
		value, modified, next, err := a.store.WatchKey(query, a.keys.Secret(), index, watchFor)
		cancel()
		index = next
		if err == nil {
			err = a.learnSecret(ctx, value, modified)
		}
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			told = ""
			continue
		case err.Error() != told:
			told = err.Error()
			a.log.Error().Err(err).Str("key", a.keys.Secret()).Msg("the shard's secret cannot be had: members do not believe each other without it")
		}
		index = 0
		pause(ctx, 5*time.Second)
	}
}

// learnSecret takes in what Consul shows.
func (a *Agent) learnSecret(ctx context.Context, value []byte, modified uint64) error {
	if modified == 0 {
		write, cancel := context.WithTimeout(ctx, a.dynamic.Load().RetryTimeout)
		defer cancel()
		err := a.store.Write(write, a.keys.Secret(), 0, proof.NewSecret().Encode())
		if errors.Is(err, consul.ErrConflict) {
			return nil // another member has made one, which the watch shows
		}
		return err
	}
	s, err := proof.Parse(value)
	if err != nil {
		return err
	}
	if now, held := a.secrets.Secret(); held && now.Equal(s) {
		return nil
	}
	a.secrets.Keep(s)
	a.log.Info().Strs("secrets", s.Fingerprints()).Msg("the shard's secret is known")
	if err := a.pg.KeepSecret(s.Encode()); err != nil {
		a.log.Warn().Err(err).Msg("the shard's secret cannot be kept: an agent that begins while Consul is away has none")
	}
	return nil
}
