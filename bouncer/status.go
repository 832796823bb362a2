package bouncer

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
	"github.com/lictor-ha/lictor/bouncer/render"
)

// ShardStatus is what a bouncer says of one shard, over HTTP and in its key.
type ShardStatus struct {
	Leader    string             `json:"leader"`
	Host      string             `json:"host"`
	Port      int                `json:"port"`
	Timeline  int                `json:"timeline"`
	State     cluster.RouteState `json:"state"`
	Since     time.Time          `json:"since"`
	Databases []string           `json:"databases"`
	// VerifiedAt is when PgBouncer was first seen to lead to this primary;
	// absent: it does not, as far as is known.
	VerifiedAt *time.Time `json:"verified_at,omitempty"`
	// Held: clients wait, at most until HoldUntil.
	Held      bool       `json:"held,omitempty"`
	HoldUntil *time.Time `json:"hold_until,omitempty"`
	// Paused: PgBouncer holds the clients of all databases that lead to the
	// primary.
	Paused bool `json:"paused,omitempty"`
	// AnyPaused: PgBouncer, or one of several, holds the clients of any database of the shard.
	AnyPaused bool `json:"any_paused,omitempty"`
	// Operator is who has the clients of all databases of the shard wait by `lictor bouncer
	// pause`, until `lictor bouncer resume`.
	Operator *OperatorPause `json:"operator_pause,omitempty"`
	// ClientsWaiting is the number of clients that wait for a server connection,
	// as of the last look, at most seconds ago.
	ClientsWaiting int `json:"clients_waiting,omitempty"`
	// Readers is where clients of the databases with _ro go: hosts and their port, or
	// primary, none (strict, and no replica takes readers), off.
	Readers string `json:"readers,omitempty"`
	// ReadersElsewhere are replicas that would take readers, but listen on another port than
	// most: PgBouncer has one port for all hosts of a database.
	ReadersElsewhere []string `json:"readers_elsewhere,omitempty"`
	// Handover is the id of the planned switchover that holds the clients.
	Handover string `json:"handover,omitempty"`
	// Ill: PgBouncer has lost its connections to the primary, which does not
	// answer either.
	Unhealthy bool `json:"ill,omitempty"`
	// Error is what is wrong with the shard's route.
	Error string `json:"error,omitempty"`
}

func (s ShardStatus) equal(o ShardStatus) bool {
	return sameOperator(s.Operator, o.Operator) && s.Leader == o.Leader && s.Host == o.Host && s.Port == o.Port && s.Timeline == o.Timeline && s.State == o.State &&
		s.Since.Equal(o.Since) && slices.Equal(s.Databases, o.Databases) && sameTime(s.VerifiedAt, o.VerifiedAt) &&
		s.Held == o.Held && s.Paused == o.Paused && s.AnyPaused == o.AnyPaused && s.Handover == o.Handover && s.Unhealthy == o.Unhealthy && sameTime(s.HoldUntil, o.HoldUntil) && s.Error == o.Error &&
		s.Readers == o.Readers && slices.Equal(s.ReadersElsewhere, o.ReadersElsewhere)
}

func sameOperator(a, b *OperatorPause) bool {
	return a == b || a != nil && b != nil && a.By == b.By && a.Since.Equal(b.Since) && slices.Equal(a.Databases, b.Databases)
}

func sameTime(a, b *time.Time) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Equal(*b)
}

// problems are what keeps shards from being offered, by shard, the configuration from being
// applied, by its file, and strangers from being kept out.
func (c *reconciler) problems() map[string]string {
	open := c.openConsole()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil && c.unkept == nil && open == "" {
		return c.left // made anew by each pass
	}
	known := maps.Clone(c.left)
	if known == nil {
		known = map[string]string{}
	}
	if err := cmp.Or(c.err, c.unkept); err != nil {
		known[c.config.PgBouncer.Config] = err.Error()
	}
	if open != "" {
		known[c.config.Setting("auth_file")] = open
	}
	return known
}

// openConsole says that PgBouncer's console lets everybody in, if it does.
func (c *reconciler) openConsole() string {
	link := c.link.Now()
	if link.Open == "" {
		return ""
	}
	return fmt.Sprintf("PgBouncer's console at %s lets everybody in as %s with an empty password: give that user a password in %s, and RELOAD PgBouncer",
		link.Open, link.OpenTo, c.config.Setting("auth_file"))
}

// warnings are what is wrong with the configuration while clients find what they found before.
func (c *reconciler) warnings() (list []string) {
	if open := c.openConsole(); open != "" {
		list = append(list, open)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if errors.Is(c.err, errStandIn) {
		list = append(list, c.err.Error())
	}
	if c.unkept != nil {
		list = append(list, fmt.Sprintf("what PgBouncer has is right, but not kept for a restart: %v", c.unkept))
	}
	if err := c.config.StandsFor(); err != nil {
		list = append(list, err.Error())
	}
	for _, r := range c.config.Refused() {
		if !c.lost(r) {
			list = append(list, r.Err.Error())
		}
	}
	return list
}

// lost reports whether a shard that is not served as bouncer.yml says may be one that clients find
// elsewhere. Where clients were rightly sent before, they find what they found.
func (c *reconciler) lost(r config.Refused) bool { return r.ID == "" && !c.proven() }

// publish makes the outcome of a pass visible.
func (c *reconciler) publish(views []*shard, left []render.LeftOut) {
	for _, text := range c.renderer.LeftOut() {
		left = append(slices.Clone(left), render.LeftOut{What: text, Err: fmt.Errorf("left out of %s: %s", c.config.PgBouncer.Config, text)})
	}
	left = append(slices.Clone(left), c.keptUsers()...)
	left = append(left, c.strayFallback(views)...)
	now := time.Now().UTC()
	trouble := c.table.Trouble()
	changed := false
	c.mu.Lock()
	if c.status == nil {
		c.status = make(map[config.ShardID]ShardStatus, len(views))
	}
	for _, v := range views {
		old, known := c.status[v.ID]
		leader := v.Route.Leader
		s := ShardStatus{
			Leader: leader.Name, Host: leader.Host, Port: leader.Port, Timeline: v.Route.Timeline, State: v.Route.State,
			Since: v.Route.Since, Databases: v.Offered(), Unhealthy: v.unhealthy,
		}
		if e := cmp.Or(trouble[c.config.Keys().Routes()+string(v.ID)], trouble[string(v.ID)], c.config.RefusedShard(v.ID)); e != nil {
			s.Error = e.Error()
		}
		if h := c.holds[v.ID]; h != nil && !h.expired {
			until := h.deadline.UTC()
			s.Held, s.HoldUntil = true, &until
		}
		s.Readers, s.ReadersElsewhere = v.Readers()
		if v.handover != nil {
			s.Handover = v.handover.ID
		}
		s.Paused, s.Operator = c.paused(v), v.operator
		s.AnyPaused = slices.ContainsFunc(c.offered(v), func(name string) bool { return c.standing[name].Paused }) ||
			c.standing == nil && old.AnyPaused // as far as is known
		if len(c.loaded) > 0 && stands(v.Shard, c.standing) {
			if old.VerifiedAt != nil && old.Host == s.Host && old.Port == s.Port && old.Timeline == s.Timeline {
				s.VerifiedAt = old.VerifiedAt
			} else {
				verified := now
				if c.readBack.After(c.published) {
					verified = c.readBack.UTC()
				}
				s.VerifiedAt = &verified
			}
		}
		if !known || !s.equal(old) {
			c.status[v.ID], changed = s, true
		}
	}
	if len(c.status) > len(views) {
		there := make(map[config.ShardID]bool, len(views))
		for _, v := range views {
			there[v.ID] = true
		}
		maps.DeleteFunc(c.status, func(id config.ShardID, _ ShardStatus) bool { return !there[id] })
		changed = true
	}
	stray := c.strays(views)
	if len(stray) > 0 && !slices.Equal(stray, c.stray) {
		c.log.Error().Strs("databases", stray).Bool("alarm", true).Msg("paused, and this bouncer holds nobody there; RESUME on PgBouncer's console releases clients that wait")
	}
	c.stray, c.listen = stray, c.applier.Listens()
	c.published, c.shown = now, c.generation
	known := map[string]string{}
	for _, p := range left {
		known[p.What] = p.Err.Error()
		if c.left[p.What] != p.Err.Error() {
			c.log.Error().Msg(p.Err.Error())
		}
	}
	c.left = known
	c.mu.Unlock()
	if changed {
		c.applied()
	}
}

// keptUsers are the databases whose user= was taken out of the file: PgBouncer keeps it, for
// new connections, too.
func (c *reconciler) keptUsers() (left []render.LeftOut) {
	if c.last == nil || !c.hasLoaded(c.last.text) {
		return nil
	}
	for _, e := range c.last.file.Databases {
		if kept := c.standing[e.Name].ForceUser; kept != "" && e.User() == "" {
			left = append(left, render.LeftOut{What: "database " + e.Name, Err: fmt.Errorf(
				"PgBouncer keeps user=%s of its database %s until it is restarted, though it is no longer in %s", kept, e.Name, c.config.PgBouncer.Config)})
		}
	}
	return left
}

// strayFallback tells of a template's own database * that does not follow pgbouncer.fallback.
func (c *reconciler) strayFallback(views []*shard) (left []render.LeftOut) {
	if c.installed == nil {
		return nil
	}
	for _, v := range views {
		if !v.Fallback {
			continue
		}
		if err := render.CheckFallback(*c.installed, v.Shard); err != nil {
			left = append(left, render.LeftOut{What: "pgbouncer.fallback", Err: err})
		}
	}
	return left
}

// listening is where PgBouncer listens.
func (c *reconciler) listening() pooler.Listening {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.listen
}

// served is a database that clients may ask for, empty: there is none.
func (c *reconciler) served() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(c.status)) {
		if s := c.status[id]; s.VerifiedAt != nil && len(s.Databases) > 0 {
			return s.Databases[0]
		}
	}
	return ""
}

// paused reports whether PgBouncer holds the clients of a shard.
func (c *reconciler) paused(v *shard) bool {
	return len(c.standing) > 0 && !slices.ContainsFunc(c.written(v), func(name string) bool { return !c.standing[name].Paused })
}

// anyPaused reports whether PgBouncer holds the clients of a database, as of the last pass.
func (c *reconciler) anyPaused(names []string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.ContainsFunc(names, func(name string) bool { return slices.Contains(c.stray, name) })
}

// shards returns the status of every shard.
func (c *reconciler) shards() map[config.ShardID]ShardStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.status)
}

// ready tells why PgBouncer should not get clients; nothing: it should. It goes by what they find
// here, not by whether bouncer.yml could be followed: a file that is wrong is soon on all hosts, and
// nobody would be sent anywhere.
func (c *reconciler) ready() (reasons []string) {
	link := c.link.Now()
	if !link.Up {
		reasons = append(reasons, fmt.Sprintf("PgBouncer cannot be reached: %v", link.Err))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if link.Up && link.Generation != c.shown {
		reasons = append(reasons, "PgBouncer has just come up, and was not looked at yet")
	}
	if c.err != nil && !errors.Is(c.err, errStandIn) {
		reasons = append(reasons, c.err.Error())
	}
	if len(c.status) == 0 {
		reasons = append(reasons, "no route is known yet")
	}
	if len(c.stray) > 0 {
		reasons = append(reasons, fmt.Sprintf("paused, though no shard is held: %s", strings.Join(c.stray, ", ")))
	}
	for _, r := range c.config.Refused() {
		if c.lost(r) {
			reasons = append(reasons, r.Err.Error())
		}
	}
	for _, s := range c.config.Shards {
		if _, offered := c.status[s.ID()]; !offered && c.left[string(s.ID())] == "" {
			reasons = append(reasons, fmt.Sprintf("no route is known of shard %s", s.ID()))
		}
	}
	var behind []config.ShardID
	for id, s := range c.status {
		if s.VerifiedAt == nil {
			behind = append(behind, id)
		}
	}
	slices.Sort(behind)
	for _, id := range behind {
		reasons = append(reasons, fmt.Sprintf("shard %s: PgBouncer does not lead to %s yet", id, c.status[id].Leader))
	}
	return reasons
}

// presenceOf is what the bouncer's key says.
func presenceOf(c config.Config, url string, version pgbouncer.Version) cluster.Bouncer {
	b := cluster.Bouncer{
		Name: c.Name, URL: url, Version: c.Version, All: c.ServesAll(),
		Frees: string(c.Frees(version)), Succession: true,
	}
	if version != (pgbouncer.Version{}) {
		b.PgBouncer = version.String()
	}
	for _, s := range c.Shards {
		b.Shards = append(b.Shards, string(s.ID()))
	}
	return b
}

// appliedOf is what its key for operators says.
func appliedOf(shards map[config.ShardID]ShardStatus) map[string]cluster.BouncerShard {
	applied := make(map[string]cluster.BouncerShard, len(shards))
	for id, s := range shards {
		one := cluster.BouncerShard{
			Leader: s.Leader, Timeline: s.Timeline, State: s.State, VerifiedAt: s.VerifiedAt, Held: s.Held,
		}
		if s.Operator != nil {
			one.Paused = &cluster.BouncerPause{By: s.Operator.By, Since: s.Operator.Since}
		}
		applied[string(id)] = one
	}
	return applied
}
