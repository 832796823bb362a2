package operator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"golang.org/x/sync/errgroup"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/proof"
)

// FleetOptions say which shards are shown, and how.
type FleetOptions struct {
	Scopes []string // none: all
	// Alarms shows only shards with alarms; Check makes them an error.
	Alarms, Check bool
	// Quiet asks no leader for what is left of its lease: Consul alone is read.
	Quiet bool
}

// Fleet shows all shards in one table, from a few reads of Consul however many
// shards there are. What is left of a lease only its leader knows: all leaders are
// asked at once, and those that do not answer at once show a question mark.
func Fleet(ctx context.Context, c *Console, site *Site, o FleetOptions) error {
	f, err := site.readFleet(ctx)
	if err != nil {
		return err
	}
	if missing := f.only(o.Scopes); len(missing) > 0 {
		return noShard(missing[0], site.Namespace+"/"+missing[0]+"/")
	}
	if len(o.Scopes) == 0 {
		f.warnFiltered(c)
	}
	if !o.Quiet {
		client, err := site.memberClient()
		if err != nil {
			return err
		}
		f.learnSecrets(ctx, site)
		f.askLeaders(ctx, client, leaseLimit)
		client.Close()
	}
	alarmed := 0
	t := fleetTable()
	for _, s := range f.shards {
		alarms := s.alarms()
		if len(alarms) > 0 {
			alarmed++
		} else if o.Alarms {
			continue
		}
		t.Rows = append(t.Rows, s.row(alarms))
	}
	t.Notes = []string{"", fmt.Sprintf("%s, %d with alarms, %s", count(len(f.shards), "shard"), alarmed, count(len(f.bouncers), "bouncer")) + f.draining()}
	if scopes, why := f.unproved(); len(scopes) > 0 && !o.Quiet {
		t.Notes = append(t.Notes, fmt.Sprintf("What leaders of %s say is not proved: %v", abridged(scopes, 5), why))
	}
	if err := c.Show(t); err != nil {
		return err
	}
	if o.Check && alarmed > 0 {
		return &failure{ExitFindings, fmt.Errorf("%d of %d shards have alarms", alarmed, len(f.shards))}
	}
	return nil
}

// fleet is all that Consul knows of all shards.
type fleet struct {
	shards   []fleetShard // sorted by name
	bouncers []cluster.Bouncer
	filtered bool // Consul has left out what the token may not read
}

// fleetShard is one shard of a fleet.
type fleetShard struct {
	scope    string
	snapshot cluster.Snapshot
	dynamic  cluster.Dynamic
	unread   error             // why its keys were not read; the rest is empty then
	problem  error             // of the dynamic configuration
	warnings []cluster.Warning // of it, too
	leaderWords
	// secret is what members prove themselves by; noSecret why there is none.
	secret   *proof.Keeper
	noSecret error
	id       string            // NAMESPACE/SCOPE: what bouncers call it
	bouncers []cluster.Bouncer // those that serve it
}

// leaderWords are what only a leader knows of its shard, as it was asked.
type leaderWords struct {
	lease    lease
	archiver *api.PeerArchiver // nil: not known, or nothing is archived
	backups  string            // what is wrong with backups; empty: nothing
	// unverified is what is wrong with the time of the last verification of one.
	unverified string
	repository *api.PeerBackups // nil: not known, or there is none
	// impostor is who answers in the leader's place, and what helps; nil: nobody is known to.
	impostor *api.Unproved
}

// only leaves the shards of these names, all where none is named, and returns the names
// of which there is no shard.
func (f *fleet) only(scopes []string) (missing []string) {
	if len(scopes) == 0 {
		return nil
	}
	f.shards = slices.DeleteFunc(f.shards, func(s fleetShard) bool { return !slices.Contains(scopes, s.scope) })
	for _, scope := range scopes {
		if !slices.ContainsFunc(f.shards, func(s fleetShard) bool { return s.scope == scope }) {
			missing = append(missing, scope)
		}
	}
	return missing
}

// warnFiltered tells that there may be more shards than are shown.
func (f fleet) warnFiltered(c *Console) {
	if f.filtered {
		c.Warn("warning: Consul leaves out what the token may not read: there may be more shards (--consul-token-file names another token)")
	}
}

// warnUnread tells of shards whose keys were not read: nothing is known of them.
func (f fleet) warnUnread(c *Console) {
	f.warnFiltered(c)
	for _, s := range f.shards {
		if s.unread != nil {
			c.Warn("warning: shard %s: %v", s.scope, s.unread)
		}
	}
}

// lease is what a leader says is left of its lease.
type lease struct {
	asked, known bool
	left         time.Duration
}

// readFleet reads four prefixes at once: the shards', the routes', the bouncers' and theirs
// for what they have applied.
func (s *Site) readFleet(ctx context.Context) (fleet, error) {
	common := s.keys("x")
	var shards answer
	var routes, bouncers, applied consulapi.KVPairs
	reading, until := errgroup.WithContext(ctx)
	reading.Go(func() (err error) {
		shards, err = s.shardsAfter(until, consistent, 0, answer{})
		return err
	})
	for prefix, into := range map[string]*consulapi.KVPairs{
		common.Routes() + s.Namespace + "/": &routes, common.Bouncers(): &bouncers,
		common.BouncersApplied(): &applied,
	} {
		reading.Go(func() (err error) {
			*into, err = s.list(until, prefix)
			return err
		})
	}
	if err := reading.Wait(); err != nil {
		return fleet{}, err
	}
	f := s.parseFleet(shards, routes, bouncers, applied)
	if len(f.shards) == 0 {
		return fleet{}, s.whyNone(ctx)
	}
	return f, nil
}

// whyNone is the error where there are no shards. Consul leaves out of a list what a
// token may not read, and says nothing; asked for one key, it says so.
func (s *Site) whyNone(ctx context.Context) error {
	err := s.query(ctx, func(ctx context.Context, c *consulapi.Client) error {
		_, _, err := c.KV().Get(s.Namespace+"/", (&consulapi.QueryOptions{}).WithContext(ctx))
		return err
	})
	if err != nil {
		return fmt.Errorf("reading %s/: %w", s.Namespace, err)
	}
	return fmt.Errorf("%w below %s/ in Consul", errNoShards, s.Namespace)
}

var errNoShards = errors.New("there are no shards")

func (s *Site) parseFleet(shards answer, routes, bouncers, applied consulapi.KVPairs) fleet {
	f := fleet{bouncers: s.parseBouncers(bouncers, applied), filtered: shards.filtered}
	for scope, kvs := range s.byShard(shards.pairs, routes) {
		f.shards = append(f.shards, s.parseShard(scope, kvs, f.bouncers))
	}
	for scope, one := range shards.leftOut {
		if one.isShard {
			f.shards = append(f.shards, fleetShard{scope: scope, unread: one.why})
		}
	}
	slices.SortFunc(f.shards, func(a, b fleetShard) int { return strings.Compare(a.scope, b.scope) })
	return f
}

// byShard puts together what is of one shard, by their names.
func (s *Site) byShard(shards, routes consulapi.KVPairs) map[string][]cluster.KV {
	byScope, real := map[string][]cluster.KV{}, map[string]bool{}
	take := func(pairs consulapi.KVPairs, prefix string) {
		for _, p := range pairs {
			scope, rest, _ := strings.Cut(strings.TrimPrefix(p.Key, prefix), "/")
			real[scope] = real[scope] || shardKey(rest)
			if rest == "history" {
				continue // long, and of no interest here
			}
			byScope[scope] = append(byScope[scope], cluster.KV{Key: p.Key, Value: p.Value, Session: p.Session, ModifyIndex: p.ModifyIndex})
		}
	}
	take(shards, s.Namespace+"/")
	take(routes, s.keys("x").Routes()+s.Namespace+"/")
	maps.DeleteFunc(byScope, func(scope string, _ []cluster.KV) bool { return !real[scope] })
	return byScope
}

// parseBouncers reads the keys of bouncers, and what they have applied.
func (s *Site) parseBouncers(bouncers, applied consulapi.KVPairs) (all []cluster.Bouncer) {
	said := map[string][]byte{}
	for _, p := range applied {
		if p.Session != "" {
			said[strings.TrimPrefix(p.Key, s.keys("x").BouncersApplied())] = p.Value
		}
	}
	for _, p := range bouncers {
		if b, err := cluster.ParseBouncer(strings.TrimPrefix(p.Key, s.keys("x").Bouncers()), p.Value); err == nil && p.Session != "" {
			all = append(all, b.WithApplied(said[b.Name]))
		}
	}
	return all
}

func (s *Site) parseShard(scope string, kvs []cluster.KV, bouncers []cluster.Bouncer) fleetShard {
	one := fleetShard{scope: scope, snapshot: cluster.ParseSnapshot(s.keys(scope), kvs, 0)}
	one.servedBy(s.Namespace, bouncers)
	if one.snapshot.Config.Exists() {
		one.dynamic, one.warnings, one.problem = s.rules().ParseJSON(one.snapshot.Config.Value)
	}
	return one
}

// servedBy notes which bouncers serve the shard.
func (s *fleetShard) servedBy(namespace string, all []cluster.Bouncer) {
	s.id = namespace + "/" + s.scope
	for _, b := range all {
		if b.Serves(namespace, s.scope) {
			s.bouncers = append(s.bouncers, b)
		}
	}
}

const (
	// leaseLimit is how long is waited for what leaders say of their leases.
	leaseLimit = 250 * time.Millisecond
	// leadersAtOnce is how many leaders are asked at the same time.
	leadersAtOnce = 64
)

// learnSecrets reads what the members of all shards prove themselves by.
func (f *fleet) learnSecrets(ctx context.Context, site *Site) {
	prefix := strings.TrimSuffix(site.keys("x").Secret(), "x")
	pairs, err := site.list(ctx, prefix)
	values := map[string][]byte{}
	for _, p := range pairs {
		values[strings.TrimPrefix(p.Key, prefix)] = p.Value
	}
	for i := range f.shards {
		s := &f.shards[i]
		s.secret = &proof.Keeper{}
		value, found := values[s.scope]
		switch {
		case err != nil:
			s.noSecret = err
		case !found: // Consul says nothing of what may not be read
			s.noSecret = fmt.Errorf("there is no key %s, or it may not be read", prefix+s.scope)
		default:
			var secret proof.Secret
			if secret, s.noSecret = proof.Parse(value); s.noSecret == nil {
				s.secret.Keep(secret)
			}
		}
	}
}

// unproved are the shards of whose members no answer can be proved, and why that is so of the
// first one.
func (f fleet) unproved() (scopes []string, why error) {
	for _, s := range f.shards {
		lictor := func(m cluster.Entry[cluster.Member]) bool { return m.OK() && m.Value.Lictor != nil }
		if s.noSecret == nil || !slices.ContainsFunc(s.snapshot.Members, lictor) { // Patroni's prove nothing
			continue
		}
		scopes, why = append(scopes, s.scope), cmp.Or(why, s.noSecret)
	}
	return scopes, why
}

// askLeaders asks all leaders what is left of their leases, and what they know of archive and backups.
func (f *fleet) askLeaders(ctx context.Context, client *api.Client, limit time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var asking sync.WaitGroup
	turns := make(chan struct{}, leadersAtOnce)
	for i := range f.shards {
		s := &f.shards[i]
		m, found := s.snapshot.Member(s.snapshot.LeaderName())
		if !found || m.Value.APIURL == "" || s.snapshot.Status.Value.Lictor == nil {
			continue
		}
		s.lease.asked = true
		asking.Go(func() {
			select {
			case turns <- struct{}{}:
			case <-ctx.Done():
				return
			}
			defer func() { <-turns }()
			status, err := client.For(s.secret).Status(ctx, api.PeerOf(m.Value))
			errors.As(err, &s.impostor)
			if err == nil && status.Lictor != nil && status.Lictor.Leads {
				s.lease.known, s.lease.left = true, status.Lictor.LeaseLeft
				s.archiver, s.backups, s.unverified = status.Lictor.Archiver, status.Lictor.BackupTrouble, status.Lictor.Unverified
				s.repository = status.Lictor.Backups
			}
		})
	}
	asking.Wait()
}

func fleetTable() Table {
	return Table{Columns: []Column{
		{Name: "Shard", Key: "shard"},
		{Name: "Primary", Key: "primary"},
		{Name: "Replicas", Key: "replicas", Right: true},
		{Name: "Sync", Key: "sync"},
		{Name: "Lag", Key: "lag_bytes", Right: true},
		{Name: "TL", Key: "timeline", Right: true},
		{Name: "Lease left", Key: "lease_left_ms", Right: true},
		{Name: "Route", Key: "route"},
		{Name: "Bouncers", Key: "bouncers", Right: true},
		{Name: "Alarms", Key: "alarms", Prose: true},
	}}
}

func (s fleetShard) row(alarms []alarm) []Cell {
	leader, found := s.snapshot.Member(s.snapshot.LeaderName())
	row := make([]Cell, 0, len(fleetTable().Columns))
	primary := styled(s.snapshot.LeaderName(), Strong)
	if primary.Text == "" {
		primary = styled("none", Bad)
		primary.Value = ""
	} else if s.isStandby() {
		primary = styled(s.snapshot.LeaderName()+" (standby leader)", Strong)
		primary.Value = s.snapshot.LeaderName()
	}
	running, replicas := 0, 0
	var lag int64 = -1
	for _, m := range s.snapshot.Members {
		if m.Value.Name == s.snapshot.LeaderName() {
			continue
		}
		replicas++
		if m.Value.State != cluster.StateRunning || unheard(s.snapshot, m) {
			continue
		}
		running++
		if behind, known := s.snapshot.Lag(m.Value, m.Value.XLogLocation); known {
			lag = max(lag, behind)
		}
	}
	row = append(row, text(s.scope), primary, Cell{Text: fmt.Sprintf("%d/%d", running, replicas)}, s.sync(), Cell{}, Cell{})
	if running < replicas {
		row[2].Style = Bad
	}
	if lag >= 0 {
		row[4] = Cell{Text: size(lag), Value: lag}
		if lag >= remarkableLag {
			row[4].Style = Warning
		}
	}
	if found && leader.Value.Timeline > 0 {
		row[5] = number(leader.Value.Timeline)
	}
	return append(row, s.lease.cell(), s.route(), s.routed(), alarmCell(alarms))
}

func (s fleetShard) sync() Cell {
	switch {
	case !s.dynamic.SynchronousMode.On():
		return styled("off", Faint)
	case len(s.snapshot.Sync.Value.Standbys()) == 0:
		return styled("none", Bad)
	}
	return text(strings.Join(s.snapshot.Sync.Value.Standbys(), ","))
}

func (l lease) cell() Cell {
	switch {
	case l.known:
		return Cell{Text: Duration(l.left), Value: l.left.Milliseconds()}
	case l.asked:
		return styled("?", Warning)
	}
	return Cell{}
}

func (s fleetShard) route() Cell {
	r := s.snapshot.Route
	switch {
	case !r.Exists():
		return styled("none", Faint)
	case r.Err != nil:
		return styled("invalid", Bad)
	case r.Value.State != cluster.RouteOpen && !s.isStandby():
		return styled(string(r.Value.State), Warning)
	}
	return styled(string(r.Value.State), Good)
}

// routed counts the bouncers that lead to the route's leader.
func (s fleetShard) routed() Cell {
	there, all := 0, len(s.bouncers)
	if all == 0 {
		return Cell{}
	}
	for _, b := range s.bouncers {
		if s.behind(b) == "" {
			there++
		}
	}
	c := Cell{Text: fmt.Sprintf("%d/%d", there, all)}
	if there < all {
		c.Style = Bad
	}
	return c
}

// behind says how a bouncer differs from the route, empty when it does not.
func (s fleetShard) behind(b cluster.Bouncer) string {
	route := s.snapshot.Route.Value
	applied, has := b.Applied[s.id]
	switch {
	case b.Applied == nil:
		return "bouncer " + b.Name + " does not tell what it leads to, or lictor/bouncers-applied/ may not be read"
	case !has:
		return "bouncer " + b.Name + " does not have it"
	case applied.Leader != route.Leader.Name || applied.Timeline != route.Timeline:
		return fmt.Sprintf("bouncer %s leads to %s on timeline %d", b.Name, orNobody(applied.Leader), applied.Timeline)
	case route.State == cluster.RouteOpen && applied.Held:
		return "bouncer " + b.Name + " holds the clients"
	case route.State == cluster.RouteOpen && applied.VerifiedAt == nil:
		return "bouncer " + b.Name + " has not verified it"
	}
	return ""
}

func alarmCell(alarms []alarm) Cell {
	if len(alarms) == 0 {
		return Cell{}
	}
	words := make([]string, len(alarms))
	for i, a := range alarms {
		words[i] = a.what
	}
	c := styled(strings.Join(words, "; "), Bad)
	if worst(alarms) == Worth {
		c.Style = Warning
	}
	c.Value = words
	return c
}

// count writes how many there are of something.
func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// size writes a number of bytes as people read it.
func size(n int64) string {
	switch {
	case n < 1<<10:
		return fmt.Sprintf("%d B", n)
	case n < 1<<20:
		return fmt.Sprintf("%d kB", n>>10)
	case n < 10<<30:
		return fmt.Sprintf("%d MB", n>>20)
	}
	return fmt.Sprintf("%d GB", n>>30)
}
