package agent

import (
	"context"
	"errors"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/consul"
	"github.com/lictor-ha/lictor/agent/postgres"
	"github.com/lictor-ha/lictor/agent/proof"
)

// secretKeeper keeps the shard's secret, on a goroutine of its own.
type secretKeeper struct {
	board   *board
	key     string
	store   *consul.Store
	pg      *postgres.Instance
	secrets *proof.Keeper
	log     zerolog.Logger
}

// keep keeps the shard's secret as Consul has it, makes one where there is none,
// and leaves a copy beside the data for an agent that begins while Consul is away.
func (k *secretKeeper) keep(ctx context.Context) {
	if kept, err := k.pg.Secret(); err != nil {
		k.log.Warn().Err(err).Msg("the shard's secret of before cannot be read")
	} else if s, err := proof.Parse(kept); err == nil {
		k.secrets.Keep(s)
	}
	var index uint64
	told := ""
	seen := false // in Consul, by this run
	for ctx.Err() == nil {
		query, cancel := context.WithTimeout(ctx, watchFor+watchGrace)
		value, modified, next, err := k.store.WatchKey(query, k.key, index, watchFor)
		cancel()
		index = next
		if err == nil {
			seen = seen || modified != 0
			err = k.learn(ctx, value, modified, seen)
		}
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			told = ""
			continue
		case err.Error() != told:
			told = err.Error()
			k.log.Error().Err(err).Str("key", k.key).Msg("the shard's secret cannot be had: members do not believe each other without it")
		}
		index = 0
		pause(ctx, 5*time.Second)
	}
}

// rememberedSecretWaits is how long a member that has the secret of an earlier run alone
// leaves it to the others to put theirs back: that one may have been rotated away.
const rememberedSecretWaits = 2 * time.Second

// restore writes the key that Consul has not: with the secret that is held, or with
// the shard's first one. Another one than the members know would part them for as long as
// some of them cannot read it, for good if Consul fails then: who wants another one
// rotates it.
func (k *secretKeeper) restore(ctx context.Context, seen bool) error {
	secret, held := k.secrets.Secret()
	switch {
	case !held:
		secret = proof.NewSecret()
	case !seen:
		pause(ctx, rememberedSecretWaits)
	}
	write, cancel := context.WithTimeout(ctx, k.board.dynamic.Load().RetryTimeout)
	defer cancel()
	err := k.store.Write(write, k.key, 0, secret.Encode())
	switch {
	case errors.Is(err, consul.ErrConflict):
		return nil // another member was first, which the watch shows
	case err == nil && held:
		k.log.Warn().Str("key", k.key).Strs("secrets", secret.Fingerprints()).
			Msg("the shard's secret was missing in Consul; written back (lictor rotate-secret makes another one)")
	}
	return err
}

// learn takes in what Consul shows; seen: it has shown a secret to this run.
func (k *secretKeeper) learn(ctx context.Context, value []byte, modified uint64, seen bool) error {
	if modified == 0 {
		return k.restore(ctx, seen)
	}
	s, err := proof.Parse(value)
	if err != nil {
		return err
	}
	if now, held := k.secrets.Secret(); held && now.Equal(s) {
		return nil
	}
	before, held := k.secrets.Secret()
	k.secrets.Keep(s)
	log := k.log.Info()
	if held && !s.Follows(before) {
		log = k.log.Warn().Bool("no_rotation", true) // it has nothing of the one before: deleted, or written by hand
	}
	log.Strs("secrets", s.Fingerprints()).Msg("the shard's secret is known")
	if err := k.pg.KeepSecret(s.Encode()); err != nil {
		k.log.Warn().Err(err).Msg("the shard's secret cannot be kept: an agent that begins while Consul is away has none")
	}
	return nil
}
