package operator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	consulapi "github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/consul"
	"github.com/lictor-ha/lictor/agent/printable"
	"github.com/lictor-ha/lictor/agent/proof"
)

const (
	// readLimit bounds reading Consul.
	readLimit = 10 * time.Second
	// askLimit bounds a question to a member.
	askLimit = 10 * time.Second
	// changeLimit bounds what a member does at once.
	changeLimit = 30 * time.Second
	// pollEvery is how often is looked whether something has come true.
	pollEvery = 200 * time.Millisecond
)

// Site is a Consul datacentre with its shards.
type Site struct {
	Settings
	configs []*consulapi.Config // one for each address
	clients []*consulapi.Client // of the same
}

// Connect prepares to talk to Consul; nothing is sent yet.
func Connect(s Settings) (*Site, error) {
	configs, err := s.Consul.ClientConfigs()
	if err != nil {
		return nil, Usage(err)
	}
	site := &Site{Settings: s, configs: configs}
	for _, c := range configs {
		client, err := consulapi.NewClient(c)
		if err != nil {
			return nil, Usage(fmt.Errorf("consul: address %s: %w", c.Address, err))
		}
		site.clients = append(site.clients, client)
	}
	return site, nil
}

// attemptShare bounds one attempt while there are other addresses to try.
const attemptShare = 3

// query asks the addresses of Consul in order until one answers.
func (s *Site) query(ctx context.Context, f func(ctx context.Context, c *consulapi.Client) error) error {
	return s.attempt(ctx, func(ctx context.Context, i int) error { return f(ctx, s.clients[i]) })
}

// attempt does so by the addresses' numbers.
func (s *Site) attempt(ctx context.Context, f func(ctx context.Context, i int) error) error {
	ctx, cancel := context.WithTimeout(ctx, readLimit)
	defer cancel()
	var errs []error
	for i := range s.clients {
		attempt, done := ctx, context.CancelFunc(func() {})
		if i < len(s.clients)-1 {
			attempt, done = context.WithTimeout(ctx, readLimit/attemptShare)
		}
		err := f(attempt, i)
		done()
		var status consulapi.StatusError
		var own *failure
		if err == nil || errors.As(err, &own) || errors.Is(err, errTooMuch) || errors.As(err, &status) && status.Code < 500 {
			return err
		}
		errs = append(errs, err)
	}
	return fmt.Errorf("asking Consul: %w", errors.Join(errs...))
}

// list reads all keys below a prefix, with a quorum round trip.
func (s *Site) list(ctx context.Context, prefix string) (consulapi.KVPairs, error) {
	all, err := s.listAfter(ctx, prefix, consistent, 0, answer{}, &budget{left: bytesOfAll})
	return all.pairs, err
}

// Scopes names the shards below the namespace.
func (s *Site) Scopes(ctx context.Context) ([]string, error) {
	var keys []string
	err := s.query(ctx, func(ctx context.Context, c *consulapi.Client) error {
		var err error
		keys, _, err = c.KV().Keys(s.Namespace+"/", "", (&consulapi.QueryOptions{}).WithContext(ctx))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listing the shards below %s/: %w", s.Namespace, err)
	}
	var scopes []string
	for _, key := range keys {
		scope, rest, _ := strings.Cut(strings.TrimPrefix(key, s.Namespace+"/"), "/")
		if shardKey(rest) && !slices.Contains(scopes, scope) {
			scopes = append(scopes, scope)
		}
	}
	slices.Sort(scopes)
	return scopes, nil
}

// shardKey reports whether a key below a scope is one that makes it a shard's.
func shardKey(rest string) bool {
	return rest == "initialize" || rest == "config" || rest == "leader" || strings.HasPrefix(rest, "members/")
}

// Shard is one shard as the commands see it.
type Shard struct {
	Scope string
	Keys  cluster.Keys

	site   *Site
	store  *consul.Store
	client *api.Client
	// secret is what the shard's members believe; noSecret why there is none.
	secret   *proof.Keeper
	noSecret error
}

// Open finds the shard that is meant: the one named, else the configured one,
// else the only one there is.
func (s *Site) Open(ctx context.Context, scope string) (*Shard, error) {
	if scope == "" {
		scope = s.Scope
	}
	if scope == "" {
		scopes, err := s.Scopes(ctx)
		switch {
		case err != nil:
			return nil, err
		case len(scopes) == 0:
			return nil, s.whyNone(ctx)
		case len(scopes) > 1:
			return nil, usagef("which shard? Name one of %s", abridged(scopes, 10))
		}
		scope = scopes[0]
	}
	return s.open(scope)
}

func (s *Site) open(scope string) (*Shard, error) {
	if err := cluster.CheckName(scope); err != nil {
		return nil, usagef("the name of a shard, %s, %w", printable.Quote(scope), err)
	}
	configs, err := s.Consul.ClientConfigs()
	if err != nil {
		return nil, Usage(err)
	}
	keys := s.keys(scope)
	store, err := consul.New(configs, keys)
	if err != nil {
		return nil, Usage(err)
	}
	client, err := s.memberClient()
	if err != nil {
		return nil, err
	}
	shard := &Shard{Scope: scope, Keys: keys, site: s, store: store, client: client, secret: &proof.Keeper{}}
	if s.PasswordToPatroni {
		client.ProveWith(shard.secret)
	} else {
		client.ProveOnly(shard.secret)
	}
	return shard, nil
}

// memberClient makes a client for the members' REST API.
func (s *Site) memberClient() (*api.Client, error) {
	client, err := api.NewClient(s.Ctl, s.RestAPI)
	if err != nil {
		return nil, Usage(err)
	}
	return client, nil
}

// Close ends what connections there are.
func (s *Shard) Close() { s.client.Close() }

// Read reads the shard. A shard that does not exist is an error.
func (s *Shard) Read(ctx context.Context) (cluster.Snapshot, error) {
	ctx, cancel := context.WithTimeout(ctx, readLimit)
	defer cancel()
	snapshot, err := s.store.Read(ctx)
	if err != nil {
		return snapshot, err
	}
	if !snapshot.Initialize.Exists() && !snapshot.Config.Exists() && len(snapshot.Members) == 0 && !snapshot.Leader.Exists() {
		return snapshot, noShard(s.Scope, s.Keys.Prefix())
	}
	s.learnSecret(ctx)
	return snapshot, nil
}

// noShard is the same answer to all commands, whatever they ask of a shard.
func noShard(scope, prefix string) error {
	return fmt.Errorf("there is no shard %s in Consul (no keys below %s); lictor fleet shows those that there are", scope, prefix)
}

// learnSecret has requests to members prove that they come from somebody who may read
// the shard's secret. Without it they need what restapi.authentication says, or a process
// on the member's host.
func (s *Shard) learnSecret(ctx context.Context) {
	if _, held := s.secret.Secret(); held || s.noSecret != nil {
		return
	}
	value, index, err := s.store.Get(ctx, s.Keys.Secret())
	if err == nil && index == 0 {
		err = fmt.Errorf("there is no key %s: no agent of this version has run", s.Keys.Secret())
	}
	var secret proof.Secret
	if err == nil {
		secret, err = proof.Parse(value)
	}
	if err != nil {
		s.noSecret = err
		return
	}
	s.secret.Keep(secret)
}

// leader is the leader of a snapshot, or an error for commands that need one.
func (s *Shard) leader(snapshot cluster.Snapshot) (cluster.Member, error) {
	name := snapshot.LeaderName()
	if name == "" {
		return cluster.Member{}, refusedf("shard %s has no leader", s.Scope)
	}
	m, found := snapshot.Member(name)
	if !found || !m.OK() {
		return cluster.Member{}, fmt.Errorf("shard %s is led by %s, which has no readable member key", s.Scope, name)
	}
	return m.Value, nil
}

// members picks the members of these names, or all, that have this role; role
// may be empty.
func (s *Shard) members(snapshot cluster.Snapshot, names []string, role string) ([]cluster.Member, error) {
	var picked []cluster.Member
	for _, m := range snapshot.Members {
		if (len(names) == 0 || slices.Contains(names, m.Value.Name)) && hasRole(snapshot, m.Value.Name, role) {
			picked = append(picked, m.Value)
		}
	}
	for _, name := range names {
		if _, found := snapshot.Member(name); !found {
			return nil, usagef("%s is not a member of %s; its members are %s", name, s.Scope, strings.Join(memberNames(snapshot), ", "))
		}
	}
	if len(picked) == 0 {
		return nil, refusedf("no member of %s has the role %s", s.Scope, role)
	}
	return picked, nil
}

// Roles are those that commands take, in Patroni's words.
func Roles() []string {
	return []string{"leader", "primary", "standby-leader", "replica", "standby", "any"}
}

func checkRole(role string) error {
	if role != "" && role != "master" && role != "standby_leader" && !slices.Contains(Roles(), role) {
		return usagef("--role: %q, must be one of %s", role, strings.Join(Roles(), ", "))
	}
	return nil
}

func hasRole(snapshot cluster.Snapshot, name, role string) bool {
	switch role {
	case "", "any":
		return true
	case "replica", "standby":
		return name != snapshot.LeaderName()
	}
	return name == snapshot.LeaderName()
}

func memberNames(snapshot cluster.Snapshot) []string {
	names := make([]string, 0, len(snapshot.Members))
	for _, m := range snapshot.Members {
		names = append(names, m.Value.Name)
	}
	return names
}

// abridged joins words; what is too much is counted.
func abridged(words []string, most int) string {
	if len(words) <= most {
		return strings.Join(words, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(words[:most], ", "), len(words)-most)
}

// await polls until condition gives no error, which says what is waited for, or
// ctx ends: what it broke off says nothing then.
func await(ctx context.Context, condition func(ctx context.Context) error) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	var waited error
	for {
		err := condition(ctx)
		if err == nil {
			return nil
		}
		if waited == nil || ctx.Err() == nil {
			waited = err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return waitedError{ctx.Err(), waited}
		}
	}
}

// waitedError says what was waited for in vain.
type waitedError struct{ cause, last error }

func (e waitedError) Error() string {
	if errors.Is(e.cause, context.DeadlineExceeded) {
		return "not in time: " + e.last.Error()
	}
	return e.cause.Error() + ": " + e.last.Error()
}

func (e waitedError) Unwrap() []error { return []error{e.cause, e.last} }

// deleteAt deletes a key if it still has this index.
func (s *Site) deleteAt(ctx context.Context, key string, index uint64) error {
	return s.query(ctx, func(ctx context.Context, c *consulapi.Client) error {
		deleted, _, err := c.KV().DeleteCAS(&consulapi.KVPair{Key: key, ModifyIndex: index}, (&consulapi.WriteOptions{}).WithContext(ctx))
		if err == nil && !deleted {
			return refusedf("the key %s has changed meanwhile; nothing was done, try again", key)
		}
		return err
	})
}

// Names are the shards or, below a shard, its members: what a shell completes. What is no
// name is left out: a shell would write it on the command line.
func (s *Site) Names(ctx context.Context, path []string) ([]string, error) {
	names, err := s.names(ctx, path)
	return slices.DeleteFunc(names, func(name string) bool { return cluster.CheckName(name) != nil }), err
}

func (s *Site) names(ctx context.Context, path []string) ([]string, error) {
	if len(path) == 0 {
		return s.Scopes(ctx)
	}
	shard, err := s.open(path[0])
	if err != nil {
		return nil, err
	}
	defer shard.Close()
	snapshot, err := shard.Read(ctx)
	return memberNames(snapshot), err
}
