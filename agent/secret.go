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
	seen := false // in Consul, by this run
	for ctx.Err() == nil {
		query, cancel := context.WithTimeout(ctx, watchFor+watchGrace)
		value, modified, next, err := a.store.WatchKey(query, a.keys.Secret(), index, watchFor)
		cancel()
		index = next
		if err == nil {
			seen = seen || modified != 0
			err = a.learnSecret(ctx, value, modified, seen)
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

// rememberedSecretWaits is how long a member that has the secret of an earlier run alone
// leaves it to the others to put theirs back: that one may have been rotated away.
const rememberedSecretWaits = 2 * time.Second

// restoreSecret writes the key that Consul has not: with the secret that is held, or with
// the shard's first one. Another one than the members know would part them for as long as
// some of them cannot read it, for good if Consul fails then: who wants another one
// rotates it.
func (a *Agent) restoreSecret(ctx context.Context, seen bool) error {
	secret, held := a.secrets.Secret()
	switch {
	case !held:
		secret = proof.NewSecret()
	case !seen:
		pause(ctx, rememberedSecretWaits)
	}
	write, cancel := context.WithTimeout(ctx, a.dynamic.Load().RetryTimeout)
	defer cancel()
	err := a.store.Write(write, a.keys.Secret(), 0, secret.Encode())
	switch {
	case errors.Is(err, consul.ErrConflict):
		return nil // another member was first, which the watch shows
	case err == nil && held:
		a.log.Warn().Str("key", a.keys.Secret()).Strs("secrets", secret.Fingerprints()).
			Msg("the shard's secret was missing in Consul; written back (lictor rotate-secret makes another one)")
	}
	return err
}

// learnSecret takes in what Consul shows; seen: it has shown a secret to this run.
func (a *Agent) learnSecret(ctx context.Context, value []byte, modified uint64, seen bool) error {
	if modified == 0 {
		return a.restoreSecret(ctx, seen)
	}
	s, err := proof.Parse(value)
	if err != nil {
		return err
	}
	if now, held := a.secrets.Secret(); held && now.Equal(s) {
		return nil
	}
	before, held := a.secrets.Secret()
	a.secrets.Keep(s)
	log := a.log.Info()
	if held && !s.Follows(before) {
		log = a.log.Warn().Bool("no_rotation", true) // it has nothing of the one before: deleted, or written by hand
	}
	log.Strs("secrets", s.Fingerprints()).Msg("the shard's secret is known")
	if err := a.pg.KeepSecret(s.Encode()); err != nil {
		a.log.Warn().Err(err).Msg("the shard's secret cannot be kept: an agent that begins while Consul is away has none")
	}
	return nil
}
