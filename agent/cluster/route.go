package cluster

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// RouteVersion is the version of the route format that this code writes.
const RouteVersion = 1

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

// Route is what a pooler needs to know of one shard (docs/design.md, section 4).
// It is written by the leader alone, in a transaction that checks the lock, and
// changes only when the topology does, never on a beat.
type Route struct {
	Version int `json:"version"`
	// SystemIdentifier is PostgreSQL's, in decimal. A route with another one
	// belongs to another cluster and is never overwritten or followed.
	SystemIdentifier string        `json:"system_identifier"`
	State            RouteState    `json:"state"`
	Timeline         int           `json:"timeline"`
	Leader           RouteMember   `json:"leader"`
	Replicas         []RouteMember `json:"replicas"`
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
		return Route{}, fmt.Errorf("route is not JSON of the expected shape: %w", err)
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
		errs = append(errs, fmt.Errorf("state: %q, must be one of open, promoting, handover, down", r.State))
	}
	if !isSystemIdentifier(r.SystemIdentifier) {
		errs = append(errs, fmt.Errorf("system_identifier: %q, must be a decimal number", r.SystemIdentifier))
	}
	if r.Timeline < 1 {
		errs = append(errs, fmt.Errorf("timeline: %d, must be 1 or more", r.Timeline))
	}
	errs = append(errs, r.Leader.validate("leader"))
	for i, m := range r.Replicas {
		errs = append(errs, m.validate(fmt.Sprintf("replicas[%d]", i)))
	}
	return errors.Join(errs...)
}

func (m RouteMember) validate(field string) error {
	switch {
	case m.Name == "":
		return fmt.Errorf("%s.name: must not be empty", field)
	case m.Host == "" || bytes.ContainsAny([]byte(m.Host), " \t\r\n'\"=,;"):
		return fmt.Errorf("%s.host: %q, must be a host name or an address", field, m.Host)
	case m.Port < 1 || m.Port > 65535:
		return fmt.Errorf("%s.port: %d, must be from 1 to 65535", field, m.Port)
	}
	return nil
}

// SameTopology tells whether two routes would be rendered alike, whatever their
// times say.
func (r Route) SameTopology(o Route) bool {
	r.Since, o.Since = time.Time{}, time.Time{}
	a, errA := json.Marshal(r)
	b, errB := json.Marshal(o)
	return errA == nil && errB == nil && bytes.Equal(a, b)
}

func isSystemIdentifier(s string) bool {
	if s == "" {
		return false
	}
	for _, c := range s {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}
