package consul

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/agent/cluster/settings"
)

const (
	// minSessionTTL is Consul's own default limit (session_ttl_min); a session
	// is the backstop behind the lease, so it need not be shorter.
	minSessionTTL = 10 * time.Second
	// lockDelay is the shortest that can be asked for: Consul's Go client leaves
	// zero out, and Consul then takes 15 s.
	lockDelay = time.Millisecond
)

// SessionTTL is the TTL of an agent's session for a lease of ttl. (Consul
// expires a session only at up to twice its TTL:
// https://developer.hashicorp.com/consul/docs/dynamic-app-config/sessions.)
func SessionTTL(ttl time.Duration) time.Duration { return max(minSessionTTL, ttl) }

// Session is what a session is to be.
type Session struct {
	Name string
	// TTL is the lease's.
	TTL time.Duration
	// Node is the Consul node that it belongs to; empty: that of the agent that is asked.
	Node string
	// Checks are health checks of that node to tie it to: none by default, as a flapping
	// check must not cost a leader its lock.
	Checks []string
}

// CreateSession makes a session with behavior delete, so that the keys it holds
// vanish with it.
func (s *Store) CreateSession(ctx context.Context, want Session) (id string, err error) {
	entry := api.SessionEntry{
		Name: want.Name, Node: want.Node, Checks: want.Checks,
		TTL: SessionTTL(want.TTL).String(), LockDelay: lockDelay, Behavior: api.SessionBehaviorDelete,
	}
	err = s.try(ctx, func(ctx context.Context, c *api.Client) error {
		id, err = settings.CreateSession(ctx, c, entry)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("creating the session %s: %w", want.Name, err)
	}
	return id, nil
}

// RenewSession renews a session. ErrNoSession says that it is gone for good.
func (s *Store) RenewSession(ctx context.Context, id string) error {
	err := s.try(ctx, func(ctx context.Context, c *api.Client) error {
		// The Go client's own method hides the status code, by which try tells
		// whether another address may do better.
		_, err := c.Raw().Write("/v1/session/renew/"+id, nil, nil, (&api.WriteOptions{}).WithContext(ctx))
		var status api.StatusError
		if errors.As(err, &status) && status.Code == http.StatusNotFound {
			return ErrNoSession
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("renewing the session: %w", err)
	}
	return nil
}

// DestroySession ends a session, and with it the keys it holds.
func (s *Store) DestroySession(ctx context.Context, id string) error {
	err := s.try(ctx, func(ctx context.Context, c *api.Client) error {
		_, err := c.Session().Destroy(id, (&api.WriteOptions{}).WithContext(ctx))
		return err
	})
	if err != nil {
		return fmt.Errorf("destroying the session: %w", err)
	}
	return nil
}

// SessionName tells what a session was named, empty when there is none. A
// restarted agent knows its predecessor's session by its name.
func (s *Store) SessionName(ctx context.Context, id string) (string, error) {
	var name string
	err := s.try(ctx, func(ctx context.Context, c *api.Client) error {
		entry, _, err := c.Session().Info(id, (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx))
		if err == nil && entry != nil {
			name = entry.Name
		}
		return err
	})
	if err != nil {
		return "", fmt.Errorf("reading a session: %w", err)
	}
	return name, nil
}
