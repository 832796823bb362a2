package bouncer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
	"github.com/lictor-ha/lictor/bouncer/render"
)

const (
	// loginPatience is how long a planned PAUSE waits for logins to the primary to
	// end. PAUSE closes a connection that is just logging in, which PgBouncer takes
	// for a failed login, and the first queries after RESUME get an error for it
	// (check_fast_fail in its objects.c).
	loginPatience = 300 * time.Millisecond
	loginPace     = 5 * time.Millisecond
	// lateMost is how long a PAUSE whose acceptance is not known may take to show.
	lateMost = 2 * pooler.CommandBound
	// loginRetryMost bounds loginRetry.
	loginRetryMost = 2 * time.Second
)

// loginRetry is for how long PgBouncer tries no other login after one that has
// failed (server_login_retry). Clients that are released earlier would not be served
// earlier, and those that come then would get an error.
func loginRetry(c config.Config) time.Duration {
	seconds, err := strconv.ParseFloat(c.Setting("server_login_retry"), 64)
	if err != nil || seconds <= 0 {
		return 0
	}
	return min(time.Duration(seconds*float64(time.Second)), loginRetryMost)
}

// hold makes the clients of shards without a primary wait.
func (c *reconciler) hold(ctx context.Context, link pooler.LinkState, views []*shard) {
	var (
		names []string
		pools map[string]pooler.PoolCount
	)
	c.unheld = false
	for _, v := range views {
		h := c.judge(v)
		held := h != nil && !h.expired
		if !link.Up || !held && v.operator == nil {
			continue
		}
		wanted, since := c.written(v), time.Time{}
		if held {
			since = h.since
		}
		if v.operator != nil {
			wanted = c.offered(v)
			since = latest(since, v.operator.Since)
		}
		open := slices.DeleteFunc(slices.Clone(wanted), func(name string) bool { d, exists := c.standing[name]; return !exists || d.Paused })
		if len(open) == 0 {
			continue
		}
		if held && !v.planned() {
			h.paused = time.Now()
		} else if time.Since(since) < loginPatience {
			if pools == nil {
				c.pauser.Warm(ctx) // so that nothing comes between the look and PAUSE
				pools = c.countPools(ctx)
			}
			if slices.ContainsFunc(open, func(name string) bool { return pools[name].Logins > 0 }) {
				c.again(time.Now().Add(loginPace))
				continue
			}
		}
		names = append(names, open...)
	}
	if link.Up {
		names = append(names, slices.DeleteFunc(c.pausedElsewhere(views), func(name string) bool { d, exists := c.standing[name]; return !exists || d.Paused })...)
	}
	if names = c.pausable(names); len(names) > 0 {
		c.pause(ctx, names)
	}
}

// pausedElsewhere are the databases of shards that an operator has paused, and that cannot be followed as
// bouncer.yml has them now: they stay paused. What is another shard's by now is not among them.
func (c *reconciler) pausedElsewhere(views []*shard) []string {
	pauses := c.operators.all()
	for _, v := range views {
		delete(pauses, v.ID)
	}
	if len(pauses) == 0 {
		return nil
	}
	var names []string
	for _, p := range pauses {
		if len(p.Databases) == 0 { // as an older bouncer has written it down
			names = append(names, c.config.Unfollowed()...)
		}
		names = append(names, p.Databases...)
	}
	offered := map[string]bool{}
	for _, v := range views {
		for _, name := range v.Offered() {
			offered[name] = true
		}
	}
	slices.Sort(names)
	return holdable(slices.DeleteFunc(slices.Compact(names), func(name string) bool { return offered[name] }))
}

// pause makes the clients of databases wait, and looks whether they do: queries must not
// reach a new leader that is not yet a primary.
func (c *reconciler) pause(ctx context.Context, names []string) {
	sent := time.Now()
	for _, name := range names {
		c.ours[name] = sent
	}
	err := c.pauser.Pause(ctx, names)
	if err != nil {
		c.log.Warn().Err(err).Msg("PAUSE failed, trying again")
	}
	standing, failed := c.console.Databases(ctx)
	if failed != nil {
		c.unheld = true
		return
	}
	c.standing = standing
	for _, name := range names {
		if err == nil || errors.Is(err, pgbouncer.ErrRefused) {
			c.ours[name] = time.Time{} // known by now
		}
		if d, exists := standing[name]; exists && !d.Paused {
			c.unheld = true
		}
	}
}

// again makes the next pass come at that time at the latest.
func (c *reconciler) again(at time.Time) {
	if c.soon.IsZero() || at.Before(c.soon) {
		c.soon = at
	}
}

// judge keeps the hold of one shard and returns it, nil when its clients need
// not wait. A hold ends when PgBouncer leads to a primary, and by its deadline
// whatever keeps PgBouncer from that.
func (c *reconciler) judge(v *shard) *hold {
	h := c.holds[v.ID]
	if len(c.heldOf) > 0 && c.leads(v) {
		delete(c.heldOf, v.ID) // the next one is another hold
	}
	// The same for a thousand shards in each pass, so the cheapest question comes first.
	if h == nil && v.served() && (len(c.ours) == 0 || !c.heldBefore(v)) || c.leads(v) {
		return nil
	}
	now := time.Now()
	switch {
	case h == nil && !v.served() && !v.Confirmed && !v.unhealthy && v.handover == nil && !c.heldBefore(v):
		// Old knowledge is no reason to begin.
		return nil
	case h == nil:
		h = &hold{since: now, deadline: now.Add(c.config.MaxHold()), leader: v.Route.Leader.Name}
		c.holds[v.ID] = h
		if before, had := c.heldOf[v.ID]; had {
			delete(c.heldOf, v.ID)
			if h.goOn(before, now); h.expired {
				c.log.Warn().Str("shard", string(v.ID)).Str("state", string(v.Route.State)).
					Msg("PgBouncer does not lead to a primary; clients are not held, hold_timeout was over before the bouncer began")
				break
			}
		}
		c.log.Info().Str("shard", string(v.ID)).Str("state", string(v.Route.State)).Bool("answers", !v.unhealthy).Str("leader", h.leader).
			Bool("planned", v.handover != nil).Dur("at_most", h.deadline.Sub(now)).Msg("holding clients")
	case h.leader != v.Route.Leader.Name && !v.served() && !h.extended:
		h.leader, h.deadline, h.expired, h.extended = v.Route.Leader.Name, now.Add(c.config.MaxHold()), false, true
	case !h.expired && now.After(h.deadline):
		h.expired = true
		c.log.Warn().Str("shard", string(v.ID)).Str("state", string(v.Route.State)).Dur("held", now.Sub(h.since)).
			Msg("PgBouncer does not lead to a primary; releasing clients, hold_timeout is over")
	}
	return h
}

// leads reports whether clients of the shard can be sent on: it has a primary, and
// PgBouncer leads to it.
func (c *reconciler) leads(v *shard) bool { return v.served() && stands(v.Shard, c.standing) }

// heldBefore reports whether a database of the shard is paused as an earlier bouncer left
// it, or as this one did.
func (c *reconciler) heldBefore(v *shard) bool {
	return slices.ContainsFunc(c.written(v), func(name string) bool { _, ours := c.ours[name]; return ours && c.standing[name].Paused })
}

// release releases the clients of those shards that have a primary, and PgBouncer
// leads to it, of those whose time is up, and whatever else this bouncer has paused
// that no hold needs.
func (c *reconciler) release(ctx context.Context, link pooler.LinkState, views []*shard) error {
	if !link.Up || c.standing == nil || !c.handovers.Unknown().IsZero() {
		return nil
	}
	var ready []*shard
	held := c.heldDatabases(views)
	for _, v := range views {
		h := c.holds[v.ID]
		if h == nil || !c.leads(v) {
			continue
		}
		if at := h.paused.Add(loginRetry(c.config)); !h.expired && time.Now().Before(at) {
			c.again(at)
			continue
		}
		ready = append(ready, v)
		if v.operator != nil {
			continue
		}
		for _, name := range c.offered(v) {
			delete(held, name)
		}
	}
	free := slices.DeleteFunc(slices.Sorted(maps.Keys(c.ours)), func(name string) bool { return held[name] || !mayBePaused(c.standing, name) })
	var errs []error
	if len(free) > 0 {
		refused, err := c.console.ResumeAll(ctx, free)
		if err != nil {
			return err
		}
		for _, name := range free {
			err := refused[name]
			d, shown := c.standing[name]
			switch {
			case err != nil && shown:
				errs = append(errs, fmt.Errorf("releasing the clients of %s: %w", name, err))
			case time.Since(c.ours[name]) > lateMost: // refused, where it is not there or not paused
				delete(c.ours, name)
			}
			if shown {
				d.Paused = err != nil
				c.standing[name] = d
			}
		}
	}
	for _, v := range ready {
		message := "clients released"
		if v.operator != nil {
			message = "no need to hold clients any more; an operator's pause goes on"
		}
		c.log.Info().Str("shard", string(v.ID)).Str("leader", v.Route.Leader.Name).
			Dur("held", time.Since(c.holds[v.ID].since)).Msg(message)
		delete(c.holds, v.ID)
	}
	if len(free) > 0 {
		if standing, err := c.console.Databases(ctx); err == nil {
			c.standing = standing
		}
		if len(c.ours) == 0 {
			c.pauser.Quit()
		}
	}
	return errors.Join(errs...)
}

// leaveBound is how long the end of the bouncer may take to release clients.
const leaveBound = 2 * time.Second

// leave releases those clients, when the bouncer ends, whose primary serves for all that is
// known: nobody would when its handover is called off. Those of a shard without a primary
// wait for the next bouncer.
func (c *reconciler) leave(ctx context.Context) {
	if !c.link.Now().Up || c.seen.Load() == nil || len(c.ours) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, leaveBound)
	defer cancel()
	standing, err := c.console.Databases(ctx)
	if err != nil {
		c.log.Warn().Err(err).Msg("the bouncer ends, and PgBouncer cannot be asked whom it holds")
		return
	}
	waits, pauses := map[string]bool{}, c.operators.all()
	for _, v := range c.viewed().views {
		_, paused := pauses[v.ID]
		serves := !paused && v.Confirmed && v.Route.State == cluster.RouteOpen && !c.healthProber.Unhealthy(v.ID, v.Route.Leader) && stands(v, standing)
		names := v.Offered()
		if v.Fallback {
			names = append(names, c.automatic()...)
		}
		for _, name := range names {
			waits[name] = !serves
		}
	}
	for _, p := range pauses {
		for _, name := range p.Databases {
			if _, known := waits[name]; !known {
				waits[name] = true
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.ours)) {
		if waits[name] || !mayBePaused(standing, name) {
			continue
		}
		err := c.console.Resume(ctx, name)
		if _, shown := standing[name]; errors.Is(err, pgbouncer.ErrRefused) && !shown {
			continue // it has gone
		}
		if err != nil {
			c.log.Warn().Err(err).Msg("the bouncer ends, and clients could not be released")
			return
		}
		c.log.Info().Str("database", name).Msg("the bouncer ends: clients whose primary serves are released")
	}
}

// drop releases all clients of a process that the next configuration does not have, whatever
// they wait for: no bouncer would ever do it.
func (c *reconciler) drop(ctx context.Context) {
	link := c.link.Now()
	if link.Absent {
		return
	}
	c.log.Warn().Str("admin", c.config.PgBouncer.Admin).Msg("this PgBouncer is no longer looked after: stop it, it will not follow its shards")
	if !link.Up && link.Err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, leaveBound)
	defer cancel()
	standing, err := c.console.Databases(ctx)
	if err != nil {
		c.log.Warn().Err(err).Msg("a PgBouncer that is no longer looked after cannot be asked whom it holds")
		return
	}
	names := slices.AppendSeq(slices.Collect(maps.Keys(standing)), maps.Keys(c.ours))
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		if _, ours := c.ours[name]; !mayBePaused(standing, name) || !ours && c.everObserved {
			continue // what is paused before the first look is what an earlier one held
		}
		err := c.console.Resume(ctx, name)
		if _, shown := standing[name]; errors.Is(err, pgbouncer.ErrRefused) && !shown {
			continue // it has gone
		}
		if err == nil {
			c.log.Info().Str("database", name).Msg("released: its PgBouncer is no longer looked after")
			continue
		}
		c.log.Warn().Err(err).Str("database", name).Msg("clients of a PgBouncer that is no longer looked after could not be released")
		if errors.Is(err, pgbouncer.ErrUnreachable) {
			return
		}
	}
}

// written are the databases that lead to the primary of a shard and can be held, those that PgBouncer has
// made by its database * included.
func (c *reconciler) written(v *shard) []string {
	if !v.Fallback {
		return holdable(v.Written())
	}
	return holdable(append(v.Written(), c.automatic()...))
}

// offered are all databases of a shard that can be held, those that PgBouncer has made by its database *
// included.
func (c *reconciler) offered(v *shard) []string {
	if !v.Fallback {
		return holdable(v.Offered())
	}
	return holdable(append(v.Offered(), c.automatic()...))
}

// holdable are, in a list of their own unless all are, those of names that PgBouncer's console takes in a command. A client of the database * may ask for a
// longer one, and a name of 59 bytes with other characters than letters, digits and _ is one with _ro.
func holdable(names []string) []string {
	isNot := func(name string) bool { return !pgbouncer.IsCommandable(name) }
	if !slices.ContainsFunc(names, isNot) {
		return names
	}
	return slices.DeleteFunc(slices.Clone(names), isNot)
}

// automatic are the databases that PgBouncer has, and its file has not: it makes one by its
// database * for each name that a client asks for. Those that this bouncer has paused are among them also while
// PgBouncer does not show them.
func (c *reconciler) automatic() (names []string) {
	if c.installed == nil {
		return nil
	}
	for name := range c.standing {
		if _, named := c.installed.Database(name); !named {
			names = append(names, name)
		}
	}
	for name := range c.ours {
		_, named := c.installed.Database(name)
		if _, shown := c.standing[name]; !named && !shown {
			names = append(names, name)
		}
	}
	return names
}

// latest is the later one of two times.
func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// heldDatabases are those of shards whose hold goes on, or that an operator has paused.
func (c *reconciler) heldDatabases(views []*shard) map[string]bool {
	held := map[string]bool{}
	for _, name := range c.pausedElsewhere(views) {
		held[name] = true
	}
	for _, v := range views {
		if h := c.holds[v.ID]; h != nil && !h.expired || v.operator != nil {
			for _, name := range c.offered(v) {
				held[name] = true
			}
		}
	}
	return held
}

// deadlines are those of the holds, by database that this bouncer has paused.
func (c *reconciler) deadlines(views []*shard) map[string]time.Time {
	until := map[string]time.Time{}
	for _, v := range views {
		if h := c.holds[v.ID]; h != nil && !h.expired && v.operator == nil {
			for _, name := range c.offered(v) {
				if _, ours := c.ours[name]; ours {
					until[name] = h.deadline
				}
			}
		}
	}
	return until
}

// strays are the databases that are paused though no hold wants it: their clients wait
// for nothing.
func (c *reconciler) strays(views []*shard) (names []string) {
	if !c.handovers.Unknown().IsZero() || !c.link.Now().Up {
		return nil
	}
	held := c.heldDatabases(views)
	for name, d := range c.standing {
		if d.Paused && !held[name] {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// stands reports whether every database of a shard that writers use leads to its
// primary.
func stands(v *render.Shard, standing map[string]pgbouncer.Database) bool {
	return len(standing) > 0 && !slices.ContainsFunc(v.Databases, func(d config.Database) bool {
		at, found := standing[d.Name]
		return !found || at.Host != v.Route.Leader.Host || at.Port != v.Route.Leader.Port
	})
}

// hold says that the clients of a shard wait because it has no primary.
type hold struct {
	since, deadline time.Time
	// leader is the one that is awaited. Another one gets a deadline of its own, once (extended) until
	// clients were served: two that take turns would hold them for ever.
	leader   string
	extended bool
	// expired: the dead man's timer has released the clients.
	expired bool
	// paused is when PAUSE was last asked for without notice, when logins had
	// failed maybe.
	paused time.Time
}

// goOn makes a hold one that an earlier bouncer began.
func (h *hold) goOn(before savedHold, now time.Time) {
	if before.Until.Before(h.deadline) {
		h.deadline = before.Until
	}
	h.leader, h.extended = before.Leader, before.Extended
	h.expired = before.Over || !now.Before(h.deadline)
}

// noteHolds has the holds written down, and those of an earlier bouncer that may yet go on.
func (c *reconciler) noteHolds() {
	if len(c.holds) == 0 && len(c.noted) == len(c.heldOf) {
		return
	}
	now := make(map[config.ShardID]savedHold, len(c.holds))
	maps.Copy(now, c.heldOf)
	for id, h := range c.holds {
		now[id] = savedHold{Until: h.deadline.Round(0).UTC(), Leader: h.leader, Extended: h.extended, Over: h.expired}
	}
	if !maps.Equal(now, c.noted) {
		c.noted = now
		c.keepHolds(now)
	}
}

// served reports whether the shard has a primary that clients can be sent to.
func (v *shard) served() bool {
	return v.Route.State == cluster.RouteOpen && !v.unhealthy && v.handover == nil
}

// planned reports whether the primary gives up by itself, and still serves.
func (v *shard) planned() bool {
	return v.Route.State == cluster.RouteHandover || v.handover != nil && v.Route.State == cluster.RouteOpen
}
