package cluster

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/lictor-ha/lictor/agent/printable"
)

// RouteVersion is the version of the route format that this code writes.
const RouteVersion = 1

// MaxReplicas is how many replicas a route may have. A key of Consul has room for 15,000: for each a pooler's
// host would look an address up, and its HAProxy check two servers a second, which is all shards' trouble.
const MaxReplicas = 256

// MaxSucceeds is how many identifiers a route may come after: one for each major upgrade of the shard.
const MaxSucceeds = 32

// RouteState says what a pooler should do with the clients of a shard.
type RouteState string

const (
	// RouteOpen: the leader accepts writes; send clients there.
	RouteOpen RouteState = "open"
	// RoutePromoting: a new leader has the lock but is not yet a primary; hold
	// clients.
	RoutePromoting RouteState = "promoting"
	// RouteHandover: a planned switchover has begun; hold clients.
	RouteHandover RouteState = "handover"
	// RouteDown: the leader's PostgreSQL is not serving; hold clients.
	RouteDown RouteState = "down"
)

// Route is what a pooler needs to know of one shard (design 4.3).
// It is written by the leader alone, in a transaction that checks the lock, and
// changes only when the topology does, never on a beat.
type Route struct {
	Version int `json:"version"`
	// SystemIdentifier is PostgreSQL's, in decimal. A route with another one
	// belongs to another cluster and is never overwritten or followed, unless it
	// Succeeds the one that is known.
	SystemIdentifier string `json:"system_identifier"`
	// Succeeds are the identifiers that the shard had before major upgrades, the newest first
	// (design 5.31).
	Succeeds []string      `json:"succeeds,omitempty"`
	State    RouteState    `json:"state"`
	Timeline int           `json:"timeline"`
	Leader   RouteMember   `json:"leader"`
	Replicas []RouteMember `json:"replicas"`
	// Since is the wall-clock time at which this leader took the lock.
	Since time.Time `json:"since"`
}

// RouteMember is one PostgreSQL instance that a pooler may connect to.
type RouteMember struct {
	Name string         `json:"name"`
	Host string         `json:"host"`
	Port int            `json:"port"`
	Tags map[string]any `json:"tags,omitempty"`
}

// ParseRoute reads a route and checks it: a route that passes can be rendered.
// Fields it does not know are ignored, so that newer agents may add some.
func ParseRoute(value []byte) (Route, error) {
	var r Route
	if err := json.Unmarshal(value, &r); err != nil {
		return Route{}, fmt.Errorf("route is not JSON of the expected shape: %w", printable.Error(err))
	}
	return r, r.Validate()
}

// Validate checks every field that a pooler relies on.
func (r Route) Validate() error {
	var errs []error
	if r.Version < 1 {
		errs = append(errs, fmt.Errorf("version: %d, must be 1 or more", r.Version))
	}
	switch r.State {
	case RouteOpen, RoutePromoting, RouteHandover, RouteDown:
	default:
		errs = append(errs, fmt.Errorf("state: %s, must be one of open, promoting, handover, down", printable.Quote(string(r.State))))
	}
	if !isSystemIdentifier(r.SystemIdentifier) {
		errs = append(errs, fmt.Errorf("system_identifier: %s, must be a decimal number", printable.Quote(r.SystemIdentifier)))
	}
	errs = append(errs, r.validateSucceeds())
	if r.Timeline < 1 {
		errs = append(errs, fmt.Errorf("timeline: %d, must be 1 or more", r.Timeline))
	}
	if err := r.Leader.validate(); err != nil {
		errs = append(errs, fmt.Errorf("leader.%w", err))
	}
	if len(r.Replicas) > MaxReplicas {
		errs = append(errs, fmt.Errorf("replicas: %d, must not be more than %d", len(r.Replicas), MaxReplicas))
		r.Replicas = nil // nobody reads as many lines
	}
	names := map[string]bool{r.Leader.Name: true}
	for i, m := range r.Replicas {
		if err := m.validate(); err != nil {
			errs = append(errs, fmt.Errorf("replicas[%d].%w", i, err))
		}
		if names[m.Name] && m.Name != "" {
			errs = append(errs, fmt.Errorf("replicas[%d].name: %s, is there twice", i, printable.Quote(m.Name)))
		}
		names[m.Name] = true
	}
	return errors.Join(errs...)
}

func (r Route) validateSucceeds() error {
	if len(r.Succeeds) > MaxSucceeds {
		return fmt.Errorf("succeeds: %d, must not be more than %d", len(r.Succeeds), MaxSucceeds)
	}
	for i, id := range r.Succeeds {
		switch {
		case !isSystemIdentifier(id):
			return fmt.Errorf("succeeds[%d]: %s, must be a decimal number", i, printable.Quote(id))
		case id == r.SystemIdentifier:
			return fmt.Errorf("succeeds[%d]: %s is the route's own system_identifier", i, id)
		case slices.Contains(r.Succeeds[:i], id):
			return fmt.Errorf("succeeds[%d]: %s is there twice", i, id)
		}
	}
	return nil
}

// Announces reports whether the route says that its cluster came after the one with that
// system identifier, by a major upgrade.
func (r Route) Announces(after string) bool { return slices.Contains(r.Succeeds, after) }

// validate names the field that is wrong first.
func (m RouteMember) validate() error {
	if err := CheckName(m.Name); err != nil {
		return fmt.Errorf("name: %s, %w", printable.Quote(m.Name), err)
	}
	if err := CheckHost(m.Host); err != nil {
		return fmt.Errorf("host: %s, %w", printable.Quote(m.Host), err)
	}
	if err := CheckPort(m.Port); err != nil {
		return fmt.Errorf("port: %d, %w", m.Port, err)
	}
	return nil
}

// SameTopology reports whether two routes would be rendered alike, whatever their
// times say.
func (r Route) SameTopology(o Route) bool {
	return r.Version == o.Version && r.SystemIdentifier == o.SystemIdentifier && slices.Equal(r.Succeeds, o.Succeeds) && r.State == o.State && r.Timeline == o.Timeline &&
		r.Leader.same(o.Leader) && slices.EqualFunc(r.Replicas, o.Replicas, RouteMember.same)
}

func (m RouteMember) same(o RouteMember) bool {
	if m.Name != o.Name || m.Host != o.Host || m.Port != o.Port || len(m.Tags) != len(o.Tags) {
		return false
	}
	if len(m.Tags) == 0 {
		return true
	}
	a, errA := json.Marshal(m.Tags) // a number that was read is another type than one that was set
	b, errB := json.Marshal(o.Tags)
	return errA == nil && errB == nil && bytes.Equal(a, b)
}

func isSystemIdentifier(s string) bool {
	_, err := strconv.ParseUint(s, 10, 64)
	return err == nil && s[0] != '+'
}
