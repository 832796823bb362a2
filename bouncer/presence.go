package bouncer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/cluster/settings"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/consul"
)

const (
	// presenceTTL is how long a bouncer that has died is still taken for one
	// (Consul may take twice as long). Nobody waits for a bouncer longer than
	// for a handover's deadline, so this is no lease.
	presenceTTL = 15 * time.Second
	// presenceRenew is how often the session is renewed.
	presenceRenew = 5 * time.Second
	// presenceCheck is after how many renewals it is looked whether the key is
	// still there: somebody may have deleted it.
	presenceCheck = 6
	presenceRetry = time.Second
	// presencePace limits how often the key is written: in a storm of changes it
	// would be large, and the same to whoever reads it.
	presencePace = time.Second
	// appliedPart is how much of what has been applied is written in a second.
	appliedPart = 32 << 10
)

// presence tells Consul that this bouncer lives and, by a key of its own, what it has
// applied. The keys belong to a session, with which they vanish.
type presence struct {
	log    zerolog.Logger
	pool   *consul.Pool
	key    string
	name   string
	node   string // of Consul, that the session belongs to; empty: that of the agent that is asked
	value  func() cluster.Bouncer
	change chan struct{}
	// remember is told the session, so that a restarted bouncer can go on with
	// it instead of waiting for it to expire.
	remember func(session string)

	// applied is what the key for operators says: it may be large, and agents do not read it.
	appliedKey     string
	applied        func() map[string]cluster.BouncerShard
	writtenApplied []byte
	nextApplied    time.Time
	// together: Consul refuses that key, so its content is in the other one.
	together bool

	// stays reports whether this bouncer goes on with the key, with another configuration.
	stays func() bool

	session string
	// made is the number of the Consul address that the session was made at: it
	// belongs to that agent's node, and ends when Consul gives the node up.
	made    int
	written []byte
	// stale: the value may have changed since it was written.
	stale bool

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

// run keeps the key until ctx is done, and then removes it, unless the next configuration has it, too.
func (p *presence) run(ctx context.Context) {
	tick := time.NewTicker(presenceRenew)
	defer tick.Stop()
	retry := time.NewTimer(0)
	defer retry.Stop()
	pace := rate.NewLimiter(rate.Every(presencePace), 3)
	renewals := 0
	for {
		renew := false
		select {
		case <-ctx.Done():
			if p.stays == nil || !p.stays() {
				p.leave(context.WithoutCancel(ctx))
			}
			return
		case <-tick.C:
			renew = true
			renewals++
		case <-p.change:
			p.stale = true
			if r := pace.Reserve(); r.Delay() > 0 {
				retry.Reset(r.Delay())
				r.Cancel()
				continue
			}
		case <-retry.C:
		}
		err := p.keep(ctx, renew, renewals%presenceCheck == 0)
		p.note(ctx, err)
		if err != nil {
			retry.Reset(presenceRetry)
		} else if wait := p.keepApplied(ctx); wait > 0 {
			retry.Reset(wait)
		}
	}
}

// errTaken says that another bouncer has the key.
var errTaken = errors.New("the key is held by another session: another bouncer of this name, or this one's predecessor, which expires soon")

// keep renews the session and writes the key if it has changed, with check also if
// somebody has removed it.
func (p *presence) keep(ctx context.Context, renew, check bool) error {
	if p.session == "" {
		session, number, err := p.create(ctx)
		if err != nil {
			return err
		}
		p.session, p.made, p.written = session, number, nil
		p.writtenApplied = nil
		p.remember(session)
	} else if p.made != p.pool.InUse() {
		if err := p.move(ctx); err != nil {
			return err
		}
	} else if renew || p.written == nil {
		entry, err := consul.Attempt(ctx, p.pool, func(ctx context.Context, c *api.Client) (*api.SessionEntry, error) {
			entry, _, err := c.Session().Renew(p.session, (&api.WriteOptions{}).WithContext(ctx))
			return entry, err
		})
		if err != nil {
			return fmt.Errorf("renewing the session: %w", err)
		}
		if entry == nil {
			p.session, p.written = "", nil
			return p.keep(ctx, false, false)
		}
	}
	if check && renew && p.written != nil {
		if there, err := p.there(ctx); err != nil {
			return err
		} else if !there {
			p.written, p.writtenApplied = nil, nil
		}
	}
	if !p.stale && p.written != nil {
		return nil
	}
	return p.write(ctx)
}

// there reports whether the key is still there, with our session: somebody may have
// removed it.
func (p *presence) there(ctx context.Context) (bool, error) {
	kv, err := consul.Attempt(ctx, p.pool, func(ctx context.Context, c *api.Client) (*api.KVPair, error) {
		kv, _, err := c.KV().Get(p.key, (&api.QueryOptions{}).WithContext(ctx))
		return kv, err
	})
	if err != nil {
		return false, fmt.Errorf("key %s: %w", p.key, err)
	}
	return kv != nil && kv.Session == p.session, nil
}

// create makes a session, at the Consul address with that number.
func (p *presence) create(ctx context.Context) (session string, number int, err error) {
	number = p.pool.InUse()
	session, err = consul.Attempt(ctx, p.pool, func(ctx context.Context, c *api.Client) (string, error) {
		return settings.CreateSession(ctx, c, api.SessionEntry{
			Name: "lictor-bouncer " + p.name, Node: p.node, TTL: presenceTTL.String(), Behavior: api.SessionBehaviorDelete,
			// The client leaves zero out, and Consul then takes 15 s.
			LockDelay: time.Millisecond,
		})
	})
	if err != nil {
		return "", 0, fmt.Errorf("creating the session: %w", err)
	}
	return session, number, nil
}

// move takes the key over with a session of the Consul address that is in use now:
// the node that the old one belongs to may be lost, and Consul ends its sessions
// when it gives the node up. Agents that look for bouncers just then, because their
// primary was on the same host, would not find this one.
func (p *presence) move(ctx context.Context) error {
	session, number, err := p.create(ctx)
	if err != nil {
		return err
	}
	value, err := p.marshal()
	if err != nil {
		return err
	}
	old := p.session
	done, err := consul.Attempt(ctx, p.pool, func(ctx context.Context, c *api.Client) (bool, error) {
		done, _, _, err := c.Txn().Txn(api.TxnOps{
			{KV: &api.KVTxnOp{Verb: api.KVUnlock, Key: p.key, Value: value, Session: old}},
			{KV: &api.KVTxnOp{Verb: api.KVLock, Key: p.key, Value: value, Session: session}},
		}, (&api.QueryOptions{}).WithContext(ctx))
		return done, err
	})
	if err != nil {
		p.end(ctx, session)
		return fmt.Errorf("key %s: %w", p.key, err)
	}
	p.session, p.made, p.written, p.writtenApplied = session, number, value, nil
	if !done { // the old session has lost the key already
		p.written = nil
	}
	p.stale = p.stale || !done
	p.remember(session)
	p.end(ctx, old)
	return nil
}

// end removes a session, which otherwise expires.
func (p *presence) end(ctx context.Context, session string) {
	_, err := consul.Attempt(ctx, p.pool, func(ctx context.Context, c *api.Client) (struct{}, error) {
		_, err := c.Session().Destroy(session, (&api.WriteOptions{}).WithContext(ctx))
		return struct{}{}, err
	})
	if err != nil {
		p.log.Debug().Err(err).Msg("a session could not be removed; it expires")
	}
}

// write puts the value into the key, when it is not what it was.
func (p *presence) write(ctx context.Context) error {
	p.stale = true // until it is written
	value, err := p.marshal()
	if err != nil {
		return err
	}
	if bytes.Equal(value, p.written) {
		p.stale = false
		return nil
	}
	ok, err := consul.Attempt(ctx, p.pool, func(ctx context.Context, c *api.Client) (bool, error) {
		ok, _, err := c.KV().Acquire(&api.KVPair{Key: p.key, Value: value, Session: p.session}, (&api.WriteOptions{}).WithContext(ctx))
		return ok, err
	})
	if err != nil {
		return fmt.Errorf("key %s: %w", p.key, err)
	}
	if !ok {
		return fmt.Errorf("key %s: %w", p.key, errTaken)
	}
	p.written, p.stale = value, false
	return nil
}

// marshal is the content of the presence key.
func (p *presence) marshal() ([]byte, error) {
	b := p.value()
	if p.together {
		b.Applied = p.applied()
	}
	value, err := json.Marshal(b)
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", p.key, err)
	}
	return value, nil
}

// keepApplied writes what has been applied, unless it stands there, and tells when to come
// again. Nobody waits for it: what goes wrong is no trouble of the presence.
func (p *presence) keepApplied(ctx context.Context) (wait time.Duration) {
	if p.together {
		return 0
	}
	if wait := time.Until(p.nextApplied); wait > 0 {
		return wait
	}
	value, err := json.Marshal(cluster.BouncerApplied{Applied: p.applied()})
	if err != nil || bytes.Equal(value, p.writtenApplied) {
		return 0
	}
	ok, err := consul.Attempt(ctx, p.pool, func(ctx context.Context, c *api.Client) (bool, error) {
		ok, _, err := c.KV().Acquire(&api.KVPair{Key: p.appliedKey, Value: value, Session: p.session}, (&api.WriteOptions{}).WithContext(ctx))
		return ok, err
	})
	var answer api.StatusError
	switch {
	case errors.As(err, &answer) && answer.Code == http.StatusForbidden:
		p.log.Warn().Str("key", p.appliedKey).Msg("the token may not write this key; what is applied stands in the bouncer's own key, which every agent reads")
		p.together, p.stale = true, true
		return presencePace
	case err != nil || !ok:
		p.log.Debug().Err(err).Str("key", p.appliedKey).Msg("what is applied could not be written")
		return presenceRetry
	}
	p.writtenApplied = value
	p.nextApplied = time.Now().Add(max(presencePace, time.Duration(len(value))*time.Second/appliedPart))
	return 0
}

// leave removes the key at once, so that nobody waits for this bouncer.
func (p *presence) leave(ctx context.Context) {
	if p.session == "" {
		return
	}
	p.end(ctx, p.session)
	p.session = ""
}

// samePresence reports whether two configurations have one key in one Consul, as far as can be told.
func samePresence(a, b config.Config) bool {
	addresses := func(c config.Config) []string {
		return append([]string{c.Consul.URL + c.Consul.Host}, c.Consul.Hosts...)
	}
	return a.Name == b.Name && a.Keys().Bouncers() == b.Keys().Bouncers() && a.Consul.DC == b.Consul.DC && a.Consul.Node == b.Consul.Node &&
		slices.ContainsFunc(addresses(a), func(address string) bool { return address != "" && slices.Contains(addresses(b), address) })
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
