package bouncer

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/lictor-ha/lictor/bouncer/pgbouncer"
)

const (
	// loginPatience is how long a planned PAUSE waits for logins to the primary to
	// end. PAUSE closes a connection that is just logging in, which PgBouncer takes
	// for a failed login, and the first queries after RESUME get an error for it
	// (check_fast_fail in its objects.c).
	loginPatience = 300 * time.Millisecond
	loginPace     = 5 * time.Millisecond
	// loginRetryMost bounds loginRetry.
	loginRetryMost = 2 * time.Second
)

// loginRetry is for how long PgBouncer tries no other login after one that has
// failed (server_login_retry). Clients that are released earlier would not be served
// earlier, and those that come then would get an error.
func (c Config) loginRetry() time.Duration {
	seconds, err := strconv.ParseFloat(c.setting("server_login_retry"), 64)
	if err != nil || seconds <= 0 {
		return 0
	}
	return min(time.Duration(seconds*float64(time.Second)), loginRetryMost)
}

// holdBack makes the clients of shards without a primary wait.
func (c *conductor) holdBack(ctx context.Context, link linkState, views []*ShardView) {
	var (
		waiting, careful []string
		pools            map[string]poolCount
	)
	c.unheld = false
	for _, v := range views {
		h := c.judge(v)
		if h == nil || h.expired || !link.Up {
			continue
		}
		patient := v.planned() && time.Since(h.since) < loginPatience
		if patient {
			if pools == nil {
				pools = c.countPools(ctx)
			}
			if slices.ContainsFunc(v.written(), func(name string) bool { return pools[name].logins > 0 && !c.standing[name].Paused }) {
				c.again(time.Now().Add(loginPace))
				continue
			}
		}
		for _, name := range v.written() {
			if d, exists := c.standing[name]; !exists || d.Paused {
				continue
			}
			over, err := c.pauser.ended(name)
			if err != nil && !errors.Is(err, errLogins) {
				c.log.Warn().Err(err).Str("shard", string(v.id)).Msg("PAUSE failed, trying again")
			}
			if over {
				c.pauser.stop(name)
			}
			c.pauser.start(ctx, name, patient)
			if !v.planned() {
				h.paused = time.Now()
			}
			if patient {
				careful = append(careful, name)
			}
			c.unheld = true
			waiting = append(waiting, name)
		}
	}
	c.awaitPaused(ctx, waiting)
	if slices.ContainsFunc(careful, func(name string) bool { return !c.standing[name].Paused }) {
		c.again(time.Now().Add(loginPace))
	}
}

// again makes the next pass come at that time at the latest.
func (c *conductor) again(at time.Time) {
	if c.soon.IsZero() || at.Before(c.soon) {
		c.soon = at
	}
}

// judge keeps the hold of one shard and returns it, nil when its clients need
// not wait. A hold ends when PgBouncer leads to a primary, and by its deadline
// whatever keeps PgBouncer from that.
func (c *conductor) judge(v *ShardView) *hold {
	h := c.holds[v.id]
	if c.leads(v) || h == nil && v.served() && !c.heldBefore(v) {
		return nil
	}
	now := time.Now()
	switch {
	case h == nil && !v.served() && !v.confirmed && !v.ill && v.handover == nil && !c.foundPaused(v):
		// Old knowledge is no reason to begin.
		return nil
	case h == nil:
		h = &hold{since: now, deadline: now.Add(c.config.hold()), leader: v.route.Leader.Name}
		c.holds[v.id] = h
		c.log.Info().Str("shard", string(v.id)).Str("state", string(v.State)).Bool("answers", !v.ill).Str("leader", h.leader).
			Bool("planned", v.handover != nil).Dur("at_most", c.config.hold()).Msg("holding clients")
	case h.leader != v.route.Leader.Name && !v.served():
		h.leader, h.deadline, h.expired = v.route.Leader.Name, now.Add(c.config.hold()), false
	case !h.expired && now.After(h.deadline):
		h.expired = true
		c.log.Warn().Str("shard", string(v.id)).Str("state", string(v.State)).Dur("held", now.Sub(h.since)).
			Msg("PgBouncer does not lead to a primary; releasing clients, hold_timeout is over")
	}
	return h
}

// leads tells whether clients of the shard can be sent on: it has a primary, and
// PgBouncer leads to it.
func (c *conductor) leads(v *ShardView) bool { return v.served() && stands(v, c.standing) }

// foundPaused tells whether a database of the shard is paused already.
func (c *conductor) foundPaused(v *ShardView) bool {
	return slices.ContainsFunc(v.written(), func(name string) bool { return c.standing[name].Paused })
}

// heldBefore tells whether a database of the shard is paused as an earlier bouncer left
// it, and was not released since.
func (c *conductor) heldBefore(v *ShardView) bool {
	return slices.ContainsFunc(v.written(), func(name string) bool { return c.found[name] && c.standing[name].Paused })
}

// awaitPaused waits until PgBouncer has accepted the PAUSEs; queries must not
// reach a new leader that is not yet a primary. PgBouncer tells of acceptance
// only when asked.
func (c *conductor) awaitPaused(ctx context.Context, names []string) {
	if len(names) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, pauseBound)
	defer cancel()
	for {
		standing, err := c.console.databases(ctx)
		if err != nil {
			return
		}
		c.standing = standing
		names = slices.DeleteFunc(names, func(name string) bool {
			over, failed := c.pauser.ended(name)
			return standing[name].Paused || over && failed != nil
		})
		if len(names) == 0 {
			return
		}
		select {
		case <-time.After(pausePace):
		case <-ctx.Done():
			c.log.Warn().Strs("databases", names).Msg("PgBouncer has not accepted PAUSE in time; going on")
			return
		}
	}
}

// letGo releases the clients of those shards that have a primary, and PgBouncer
// leads to it, and of those whose time is up.
func (c *conductor) letGo(ctx context.Context, link linkState, views []*ShardView) error {
	if !link.Up || c.standing == nil {
		return nil
	}
	if !c.handovers.unknown().IsZero() {
		return nil
	}
	var errs []error
	released := false
	for _, v := range views {
		h := c.holds[v.id]
		ready := c.leads(v)
		if !ready && (h == nil || !h.expired) {
			continue
		}
		if h != nil && !h.expired {
			if at := h.paused.Add(c.config.loginRetry()); time.Now().Before(at) {
				c.again(at)
				continue
			}
		}
		for _, name := range v.offered() {
			if c.standing[name].Paused && (h != nil || c.found[name]) {
				c.pauser.stop(name)
				err := c.console.resume(ctx, name)
				if errors.Is(err, pgbouncer.ErrUnreachable) {
					return errors.Join(append(errs, err)...) // it would be waited for again and again
				}
				errs = append(errs, err)
				released = true
			}
			delete(c.found, name)
		}
		if ready && h != nil {
			delete(c.holds, v.id)
			c.log.Info().Str("shard", string(v.id)).Str("leader", v.route.Leader.Name).
				Dur("held", time.Since(h.since)).Msg("clients released")
		}
	}
	if released {
		if standing, err := c.console.databases(ctx); err == nil {
			c.standing = standing
		}
	}
	return errors.Join(errs...)
}
