package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/lictor-ha/lictor/agent/printable"
)

// HandoverState is how far a planned switchover is, as far as poolers care.
type HandoverState string

const (
	// HandoverAnnounced: poolers hold the shard's clients and answer.
	HandoverAnnounced HandoverState = "announced"
	// HandoverCancelled: everything is as before; release the clients.
	HandoverCancelled HandoverState = "cancelled"
	// HandoverDone: the successor serves; the route says where.
	HandoverDone HandoverState = "done"
)

// MaxHandoverDeadline is the longest time for which a handover may hold clients.
const MaxHandoverDeadline = 10 * time.Minute

// Handover is the value of the key lictor/handovers/NAMESPACE/SCOPE: a planned
// switchover in progress. The leader locks the key with its own session, in a
// transaction that checks its leader lock; an announcement whose key no session
// holds any more is void, so that none outlives its leader. A deleted key means
// the same as cancelled.
type Handover struct {
	// ID tells one handover from the next.
	ID        string `json:"id"`
	Leader    string `json:"leader"`
	Successor string `json:"successor"`
	// Timeline is the leader's. An open route of another leader or of a higher
	// timeline, written after the announcement, ends the handover.
	Timeline int `json:"timeline,omitempty"`
	// DeadlineMS is how long after the writing everybody gives up, in
	// milliseconds. Each reader counts from when it first saw ID.
	DeadlineMS int64         `json:"deadline_ms"`
	State      HandoverState `json:"state"`
}

// Deadline is DeadlineMS as a duration.
func (h Handover) Deadline() time.Duration { return time.Duration(h.DeadlineMS) * time.Millisecond }

// ParseHandover reads a handover and checks it. Fields it does not know are
// ignored, so that newer agents may add some.
func ParseHandover(value []byte) (Handover, error) {
	var h Handover
	if err := json.Unmarshal(value, &h); err != nil {
		return Handover{}, fmt.Errorf("handover is not JSON of the expected shape: %w", printable.Error(err))
	}
	return h, h.Validate()
}

// Validate checks every field that a pooler relies on.
func (h Handover) Validate() error {
	var errs []error
	for _, field := range []struct {
		name, value string
		required    bool
	}{{"id", h.ID, true}, {"leader", h.Leader, true}, {"successor", h.Successor, false}} {
		if err := CheckName(field.value); err != nil && (field.required || field.value != "") {
			errs = append(errs, fmt.Errorf("%s: %s, %w", field.name, printable.Quote(field.value), err))
		}
	}
	if h.DeadlineMS < 1 || h.DeadlineMS > MaxHandoverDeadline.Milliseconds() {
		errs = append(errs, fmt.Errorf("deadline_ms: %d, must be from 1 to %d", h.DeadlineMS, MaxHandoverDeadline.Milliseconds()))
	}
	switch h.State {
	case HandoverAnnounced, HandoverCancelled, HandoverDone:
	default:
		errs = append(errs, fmt.Errorf("state: %s, must be one of announced, cancelled, done", printable.Quote(string(h.State))))
	}
	return errors.Join(errs...)
}

// HandoverAnswer is what one bouncer says of a handover: in its key, which its
// session holds, and in reply to a HandoverRequest.
type HandoverAnswer struct {
	// ID is the handover's; Bouncer the name of who answers.
	ID      string `json:"id"`
	Bouncer string `json:"bouncer"`
	// Paused: no new query or transaction of the shard reaches the primary
	// through this bouncer's PgBouncer.
	Paused bool `json:"paused"`
	// Busy is the number of server connections on which a transaction (in
	// session pooling: a session) still runs. The shard is quiet here when
	// Paused is true and Busy is 0.
	Busy int `json:"busy"`
	// ClientsWaiting is the number of clients that wait now.
	ClientsWaiting int `json:"clients_waiting"`
	// Problem says why the clients are not held; empty while all is well.
	Problem string `json:"problem,omitempty"`
	// TookMS is the time from when this bouncer heard of the handover to this
	// answer, in milliseconds.
	TookMS int64 `json:"took_ms"`
}

// Quiet reports whether nothing of the shard runs through this bouncer, and
// nothing will until it is released.
func (a HandoverAnswer) Quiet() bool { return a.Paused && a.Busy == 0 }

// HandoverWaitLeast is how long a bouncer waits at the least, whatever it was asked for, until
// PgBouncer has accepted PAUSE, before it answers that it has not.
const HandoverWaitLeast = time.Second

// HandoverRequest is the body of POST /handover, by which a leader tells a
// bouncer of what it has written to the key. The bouncer believes the key alone:
// it reads it at once. The reply is a HandoverAnswer.
type HandoverRequest struct {
	Namespace string `json:"namespace"`
	Scope     string `json:"scope"`
	Handover
	// WaitMS is how long the reply may wait for the shard to become quiet, in
	// milliseconds; 0: no longer than for the clients to be held.
	WaitMS int64 `json:"wait_ms,omitempty"`
}

// Poke is the body of POST /poke: a route was written. All fields may be absent;
// without Index the bouncer reads in any case.
type Poke struct {
	Namespace string `json:"namespace"`
	Scope     string `json:"scope"`
	// Index is the ModifyIndex that Consul gave the route: a bouncer that knows
	// it, or a later one, has nothing to do.
	Index uint64 `json:"index,omitempty"`
	// Route is for the bouncer's log; it is never followed unread.
	Route *Route `json:"route,omitempty"`
}

// Missing is the body of POST /misses: a candidate asks whether a bouncer misses the leader of a shard, too. The reply
// comes when the bouncer has tried that leader for SilentMS, or at once with a status other than 200: it answers, or it is not known.
type Missing struct {
	Namespace string `json:"namespace"`
	Scope     string `json:"scope"`
	Leader    string `json:"leader"`
	SilentMS  int64  `json:"silent_ms"`
}

// Bouncer is the value of a key under lictor/bouncers/: what an agent needs to
// reach a bouncer, and what the bouncer has applied. The key belongs to the
// bouncer's session.
type Bouncer struct {
	Name string `json:"name"`
	// URL is where it takes POST /poke and POST /handover: http://host:port.
	URL string `json:"url"`
	// Version is Lictor's.
	Version string `json:"version,omitempty"`
	// Frees is how it frees the clients of a lost primary, one of the constants below;
	// empty: a version of Lictor that does not tell.
	Frees string `json:"frees,omitempty"`
	// Succession: it takes a route of another system identifier that announces itself (Route.Succeeds).
	// Versions of Lictor that do not tell refuse every such route.
	Succession bool `json:"succession,omitempty"`
	// PgBouncer is its PgBouncer's version, like 1.25.2; empty: it is not known.
	PgBouncer string `json:"pgbouncer,omitempty"`
	// All: it serves every shard, else those in Shards as NAMESPACE/SCOPE.
	All    bool     `json:"all,omitempty"`
	Shards []string `json:"shards,omitempty"`
	// Draining: an operator has its load balancer send it no more clients.
	Draining bool `json:"draining,omitempty"`
	// Applied is what PgBouncer leads to, by NAMESPACE/SCOPE. It stands in a key of its own
	// (BouncerApplied), which agents do not read; nil: it is not known.
	Applied map[string]BouncerShard `json:"applied,omitempty"`
}

// Values of Bouncer.Frees.
const (
	FreesBySockets = "sockets"
	FreesByKill    = "kill_client"
	// FreesByTimeout: nothing but TCP's timeouts ends connections to a lost primary,
	// which then also end those of clients that do not read for 30 s.
	FreesByTimeout = "tcp_user_timeout"
)

// BouncerShard is one shard in a Bouncer.
type BouncerShard struct {
	Leader   string     `json:"leader"`
	Timeline int        `json:"timeline"`
	State    RouteState `json:"state"`
	// VerifiedAt is when PgBouncer was first seen to lead to this leader on this
	// timeline; absent: it does not, as far as is known.
	VerifiedAt *time.Time `json:"verified_at,omitempty"`
	// Held: clients wait.
	Held bool `json:"held,omitempty"`
	// Paused: they wait because an operator wants it, until the operator ends it.
	Paused *BouncerPause `json:"operator_pause,omitempty"`
}

// BouncerPause is who has a shard's clients wait at a bouncer, and since when.
type BouncerPause struct {
	By    string    `json:"by"`
	Since time.Time `json:"since"`
}

// BouncerApplied is the value of a key under lictor/bouncers-applied/.
type BouncerApplied struct {
	Applied map[string]BouncerShard `json:"applied"`
}

// WithApplied is the bouncer with what the value of its key under lictor/bouncers-applied/
// says; without one, or with one that makes no sense, as it is. What stands in the bouncer's
// own key is newer: it is there only since the bouncer may not write the other one.
func (b Bouncer) WithApplied(value []byte) Bouncer {
	var a BouncerApplied
	if b.Applied == nil && len(value) > 0 && json.Unmarshal(value, &a) == nil && a.Applied != nil {
		b.Applied = a.Applied
	}
	return b
}

// ParseBouncer reads the value of a bouncer's key; name is the key's last part, below Keys.Bouncers.
// A bouncer may write its own key alone, so that this is its name, whatever the value says.
func ParseBouncer(name string, value []byte) (Bouncer, error) {
	var b Bouncer
	if err := json.Unmarshal(value, &b); err != nil {
		return Bouncer{}, fmt.Errorf("bouncer is not JSON of the expected shape: %w", printable.Error(err))
	}
	if err := CheckName(b.Name); err != nil {
		return Bouncer{}, fmt.Errorf("bouncer: name: %s, %w", printable.Quote(b.Name), err)
	}
	if b.Name != name {
		return Bouncer{}, fmt.Errorf("bouncer: name: %s, must be the key's, %s", printable.Quote(b.Name), printable.Quote(name))
	}
	if err := CheckAPIURL(b.URL); err != nil {
		return Bouncer{}, fmt.Errorf("bouncer %s: url: %s, %w", b.Name, printable.Quote(b.URL), err)
	}
	return b, nil
}

// Serves reports whether the bouncer serves a shard.
func (b Bouncer) Serves(namespace, scope string) bool {
	if b.All {
		return true
	}
	for _, s := range b.Shards {
		if s == namespace+"/"+scope {
			return true
		}
	}
	return false
}
