package bouncer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/rs/zerolog"
)

const (
	// presenceTTL is how long a bouncer that has died is still taken for one
	// (Consul may take twice as long). Nobody waits for a bouncer longer than
	// for a handover's deadline, so this is no lease.
	presenceTTL = 15 * time.Second
	// presenceRenew is how often the session is renewed.
	presenceRenew = 5 * time.Second
	// presenceBound bounds one request. It also is how soon a Consul agent that
	// hangs is found out.
	presenceBound = 2 * time.Second
	presenceRetry = time.Second
)

// presenceValue is the value of the key lictor/bouncers/NAME.
type presenceValue struct {
	Name string `json:"name"`
	// URL is where this bouncer is poked and asked.
	URL     string                  `json:"url"`
	Applied map[shardID]ShardStatus `json:"applied"`
}

// presence tells Consul that this bouncer lives and what it has applied. The
// key belongs to a session, with which it vanishes.
type presence struct {
	log    zerolog.Logger
	pool   *consulPool
	key    string
	name   string
	value  func() presenceValue
	change chan struct{}
	// remember is told the session, so that a restarted bouncer can go on with
	// it instead of waiting for it to expire.
	remember func(session string)

	session string
	written []byte

	mu  sync.Mutex
	err error
}

// notify says that the value may have changed.
func (p *presence) notify() {
	select {
	case p.change <- struct{}{}:
	default:
	}
}

// run keeps the key until ctx is done, and then removes it.
func (p *presence) run(ctx context.Context) {
	tick := time.NewTicker(presenceRenew)
	defer tick.Stop()
	retry := time.NewTimer(0)
	defer retry.Stop()
	for {
		renew := false
		select {
		case <-ctx.Done():
			p.leave(context.WithoutCancel(ctx))
			return
		case <-tick.C:
			renew = true
		case <-p.change:
		case <-retry.C:
		}
		err := p.keep(ctx, renew)
		p.note(ctx, err)
		if err != nil {
			retry.Reset(presenceRetry)
		}
	}
}

// errTaken says that another bouncer has the key.
var errTaken = errors.New("the key is held by another session: another bouncer of this name, or this one's predecessor, which expires soon")

// keep renews the session and writes the key if it has changed.
func (p *presence) keep(ctx context.Context, renew bool) error {
	if p.session == "" {
		session, err := attempt(ctx, p.pool, func(ctx context.Context, c *api.Client) (string, error) {
			id, _, err := c.Session().CreateNoChecks(&api.SessionEntry{
				Name: "lictor-bouncer " + p.name, TTL: presenceTTL.String(), Behavior: api.SessionBehaviorDelete,
				// The client leaves zero out, and Consul then takes 15 s.
				LockDelay: time.Millisecond,
			}, (&api.WriteOptions{}).WithContext(ctx))
			return id, err
		})
		if err != nil {
			return fmt.Errorf("creating the session: %w", err)
		}
		p.session, p.written = session, nil
		p.remember(session)
	} else if renew || p.written == nil {
		entry, err := attempt(ctx, p.pool, func(ctx context.Context, c *api.Client) (*api.SessionEntry, error) {
			entry, _, err := c.Session().Renew(p.session, (&api.WriteOptions{}).WithContext(ctx))
			return entry, err
		})
		if err != nil {
			return fmt.Errorf("renewing the session: %w", err)
		}
		if entry == nil {
			p.session, p.written = "", nil
			return p.keep(ctx, false)
		}
	}
	return p.write(ctx, renew)
}

// write puts the value into the key, when it is not what it was. With check it
// also makes sure that nobody has removed the key meanwhile.
func (p *presence) write(ctx context.Context, check bool) error {
	value, err := json.Marshal(p.value())
	if err != nil {
		return fmt.Errorf("key %s: %w", p.key, err)
	}
	if bytes.Equal(value, p.written) {
		if !check {
			return nil
		}
		kv, err := attempt(ctx, p.pool, func(ctx context.Context, c *api.Client) (*api.KVPair, error) {
			kv, _, err := c.KV().Get(p.key, (&api.QueryOptions{}).WithContext(ctx))
			return kv, err
		})
		if err != nil {
			return fmt.Errorf("key %s: %w", p.key, err)
		}
		if kv != nil && kv.Session == p.session {
			return nil
		}
	}
	ok, err := attempt(ctx, p.pool, func(ctx context.Context, c *api.Client) (bool, error) {
		ok, _, err := c.KV().Acquire(&api.KVPair{Key: p.key, Value: value, Session: p.session}, (&api.WriteOptions{}).WithContext(ctx))
		return ok, err
	})
	if err != nil {
		return fmt.Errorf("key %s: %w", p.key, err)
	}
	if !ok {
		return fmt.Errorf("key %s: %w", p.key, errTaken)
	}
	p.written = value
	return nil
}

// leave removes the key at once, so that nobody waits for this bouncer.
func (p *presence) leave(ctx context.Context) {
	if p.session == "" {
		return
	}
	_, err := attempt(ctx, p.pool, func(ctx context.Context, c *api.Client) (struct{}, error) {
		_, err := c.Session().Destroy(p.session, (&api.WriteOptions{}).WithContext(ctx))
		return struct{}{}, err
	})
	if err != nil {
		p.log.Debug().Err(err).Msg("the session could not be removed; it expires")
	}
}

// attempt runs one bounded request and moves on to the next Consul address when
// this one gives no answer.
func attempt[T any](parent context.Context, pool *consulPool, request func(context.Context, *api.Client) (T, error)) (T, error) {
	ctx, client, number, end := pool.use(parent)
	defer end()
	ctx, cancel := context.WithTimeout(ctx, presenceBound)
	defer cancel()
	result, err := request(ctx, client)
	if err != nil && parent.Err() == nil && noAnswer(err) {
		pool.fail(number)
	}
	return result, err
}

// note says so once when the presence cannot be kept, and when it can again.
func (p *presence) note(ctx context.Context, err error) {
	p.mu.Lock()
	before := p.err
	p.err = err
	p.mu.Unlock()
	switch {
	case ctx.Err() != nil:
	case err != nil && (before == nil || errors.Is(err, errTaken) != errors.Is(before, errTaken)):
		p.log.Warn().Err(err).Msg("agents do not see this bouncer: its key in Consul cannot be kept")
	case err == nil && before != nil:
		p.log.Info().Msg("agents see this bouncer again")
	}
}
