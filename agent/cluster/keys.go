package cluster

import (
	"fmt"
	"strings"
)

// Defaults for the two configurable parts of the key layout.
const (
	DefaultNamespace    = "service"
	DefaultRoutesPrefix = "lictor"
)

// Keys names every Consul key of one shard. The zero value is not usable; make
// one with NewKeys.
type Keys struct {
	namespace string
	scope     string
	lictor    string
}

// NewKeys returns the keys of the shard scope under namespace, with Lictor's
// own keys under routesPrefix. Leading and trailing slashes are dropped, as
// Patroni does; empty values mean the defaults.
func NewKeys(namespace, scope, routesPrefix string) Keys {
	clean := func(s, fallback string) string {
		if s = strings.Trim(s, "/"); s == "" {
			return fallback
		}
		return s
	}
	return Keys{
		namespace: clean(namespace, DefaultNamespace),
		scope:     strings.Trim(scope, "/"),
		lictor:    clean(routesPrefix, DefaultRoutesPrefix),
	}
}

// Scope is the shard's name.
func (k Keys) Scope() string { return k.scope }

// Namespace is the first part of every key of the shard.
func (k Keys) Namespace() string { return k.namespace }

// Prefix is the common prefix of the shard's keys, with its trailing slash.
func (k Keys) Prefix() string { return k.namespace + "/" + k.scope + "/" }

// Initialize holds the system identifier; it is empty while a member bootstraps.
func (k Keys) Initialize() string { return k.Prefix() + "initialize" }

// Config holds the dynamic configuration.
func (k Keys) Config() string { return k.Prefix() + "config" }

// Leader is the lock; its value is the leader's name.
func (k Keys) Leader() string { return k.Prefix() + "leader" }

// Rebuild is held by the member whose data are made anew by policy (design 5.29).
func (k Keys) Rebuild() string { return k.Prefix() + "rebuild" }

// HostRebuild is held by the member of a host whose data are made anew by policy.
func (k Keys) HostRebuild(host string) string {
	return k.lictor + "/rebuilds/" + k.namespace + "/" + host
}

// Members is the prefix of the members' own keys.
func (k Keys) Members() string { return k.Prefix() + "members/" }

// Member is the key of one member, held by its session.
func (k Keys) Member(name string) string { return k.Members() + name }

// Status carries the leader's position and its beats.
func (k Keys) Status() string { return k.Prefix() + "status" }

// History lists the ended timelines.
func (k Keys) History() string { return k.Prefix() + "history" }

// Failover is an operator's request for a switchover or failover.
func (k Keys) Failover() string { return k.Prefix() + "failover" }

// Sync names the members that hold every acknowledged commit.
func (k Keys) Sync() string { return k.Prefix() + "sync" }

// Failsafe lists the members that must agree before a leader goes on without
// Consul.
func (k Keys) Failsafe() string { return k.Prefix() + "failsafe" }

// Routes is the prefix under which all shards' routes lie: a bouncer watches it
// with one blocking query however many shards there are.
func (k Keys) Routes() string { return k.lictor + routesBelow }

// routesBelow is what follows the prefix of Lictor's keys in those of routes.
const routesBelow = "/routes/"

// Route is what a pooler needs to know of this shard.
func (k Keys) Route() string { return k.Routes() + k.namespace + "/" + k.scope }

// Bouncers is the prefix of the bouncers' presence keys.
func (k Keys) Bouncers() string { return k.lictor + "/bouncers/" }

// BouncersApplied is the prefix of what bouncers have applied.
func (k Keys) BouncersApplied() string { return k.lictor + "/bouncers-applied/" }

// Handover describes a planned switchover in progress.
func (k Keys) Handover() string {
	return k.lictor + "/handovers/" + k.namespace + "/" + k.scope
}

// Secret is what the shard's members and operators prove themselves with. It lies where
// neither whoever may read the shard's state nor a bouncer reads.
func (k Keys) Secret() string { return k.lictor + "/secrets/" + k.namespace + "/" + k.scope }

// Evacuations is the prefix of what `lictor evacuate` has done with hosts of the
// namespace.
func (k Keys) Evacuations() string { return k.lictor + "/evacuations/" + k.namespace + "/" }

// Evacuation says which leaders were handed over from a host, so that they can be put back.
func (k Keys) Evacuation(host string) string { return k.Evacuations() + host }

// Rebalance says which leaders `lictor rebalance` has handed over last.
func (k Keys) Rebalance() string { return k.lictor + "/rebalances/" + k.namespace }

// SplitRoute takes the key of a route apart. It fails on a key that is not
// ROUTES/NAMESPACE/SCOPE; the namespace itself may contain slashes.
func (k Keys) SplitRoute(key string) (namespace, scope string, err error) {
	rest, found := strings.CutPrefix(key, k.lictor)
	if found {
		rest, found = strings.CutPrefix(rest, routesBelow)
	}
	if i := strings.LastIndexByte(rest, '/'); found && i > 0 && i < len(rest)-1 {
		return rest[:i], rest[i+1:], nil
	}
	return "", "", fmt.Errorf("route key %q is not %sNAMESPACE/SCOPE", key, k.Routes())
}
