package api

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// Health checks. What a path asks is found by substring, first match wins:
//
//	standby-leader, standby_leader  leads a standby cluster
//	leader                          holds the lock and its lease
//	master, primary, read-write, /  leads, and PostgreSQL is a primary
//	replica                         a running replica, not lagging, to be used, whose
//	                                replay does not stand still
//	read-only                       primary, standby leader or replica
//	health                          PostgreSQL runs
//	/sync, /async, /quorum, ...     a replica that is (not) a synchronous one
//	anything else                   never
//
// A state is only as good as it is fresh: when the loop has not come round for
// a ttl, or the lease that it saw has run out since, nothing is said to be well.

// verdict is what can be said of a node at one moment.
type verdict struct {
	leader, primary, standbyLeader bool
	replica                        bool
	running                        bool
	sync, quorum                   bool
	known                          bool // Consul has been read
}

// judge says what a node is at the moment now; maxLag is the lag, in bytes, that
// a replica may have, negative for any.
func judge(s State, now time.Time, maxLag int64) verdict {
	if !fresh(s, now, s.Dynamic.TTL) {
		return verdict{}
	}
	pg := s.Postgres
	standbyCluster := isStandbyCluster(s.Dynamic.Raw)
	v := verdict{
		running: pg.Accepting && pg.State == cluster.StateRunning,
		known:   !s.ConsulSeen.IsZero(),
		sync:    syncRole(s) == roleSyncStandby,
		quorum:  syncRole(s) == roleQuorumStandby,
	}
	v.leader = s.Leader && leaseHolds(s, now) || pausedLeader(s)
	v.primary = v.leader && v.running && !pg.InRecovery && !s.Opening
	v.standbyLeader = v.leader && v.running && pg.InRecovery && standbyCluster
	v.replica = v.running && pg.InRecovery && !s.Leader &&
		pg.Standstill == "" && !boolTag(s, "noloadbalance") && (maxLag < 0 || pg.within(maxLag, pg.ReplayedLSN))
	return v
}

// pausedLeader reports whether a primary goes on in pause though its lease could not be
// renewed: nothing demotes it, so no health check takes it out of service either, as
// long as nobody else is known to lead.
func pausedLeader(s State) bool {
	return s.Dynamic.Pause && s.Cluster.LeaderName() == s.Name && s.Postgres.Accepting && !s.Postgres.InRecovery
}

// fresh reports whether the loop came round within limit before now.
func fresh(s State, now time.Time, limit time.Duration) bool {
	return !s.LoopAt.IsZero() && age(s.LoopAt, now) <= limit
}

// leaseHolds reports whether the lease that the loop saw is still running at now.
// No time left while the node leads means that its lease has no end of its own.
func leaseHolds(s State, now time.Time) bool {
	return s.LeaseLeft == 0 || age(s.At, now) < s.LeaseLeft
}

// age is the time from then to now, by the monotonic clock or the wall clock,
// whichever says more: the first stands still while the host is suspended, the
// second may be set back. Being too old for one loop does no harm.
func age(then, now time.Time) time.Duration {
	return max(now.Sub(then), now.Round(0).Sub(then.Round(0)))
}

// health answers a health check.
func (s *Server) health(state State, u *url.URL) int {
	query := u.Query()
	maxLag := int64(-1)
	if text := query.Get("lag"); text != "" {
		if n, err := parseBytes(text); err == nil {
			maxLag = n
		}
	}
	v := judge(state, s.now(), maxLag)
	if wanted := query.Get("replication_state"); wanted != "" && state.Postgres.ReplicationState != wanted {
		v.replica = false
	}
	path := u.Path
	if path == "/" || path == "" {
		path = "/primary"
	}
	well, tagged := v.answers(path)
	if well && (!tagged || matchesTags(effectiveTags(state), query)) {
		return http.StatusOK
	}
	return http.StatusServiceUnavailable
}

// answers says whether all is well for what a path asks, and whether the
// question may be narrowed by tags.
func (v verdict) answers(path string) (well, tagged bool) {
	has := func(words ...string) bool {
		return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(path, w) })
	}
	writable := v.primary || v.standbyLeader
	switch {
	case has("standby_leader", "standby-leader"):
		return v.standbyLeader, false
	case has("leader"):
		return v.leader, false
	case has("master", "primary", "read-write"):
		return v.primary, false
	case has("replica"):
		return v.replica, true
	case has("read-only") && !has("sync", "quorum"):
		return writable || v.replica, true
	case has("health"):
		return v.running, true
	case !v.known:
		return false, true
	}
	switch path {
	case "/sync", "/synchronous":
		return v.replica && v.sync, true
	case "/quorum":
		return v.replica && v.quorum, true
	case "/async", "/asynchronous":
		return v.replica && !v.sync && !v.quorum, true
	case "/read-only-sync", "/read-only-synchronous":
		return writable || v.replica && v.sync, true
	case "/read-only-quorum":
		return writable || v.replica && v.quorum, true
	}
	return false, true
}

// matchesTags reports whether a node has every tag that a query asks for as
// tag_NAME=VALUE.
func matchesTags(tags map[string]any, query url.Values) bool {
	for key, values := range query {
		name, isTag := strings.CutPrefix(key, "tag_")
		if !isTag || values[0] == "" {
			continue
		}
		have, found := tags[name]
		if !found || have == nil {
			return false
		}
		text, isText := have.(string)
		if !isText {
			text = strings.ToLower(fmt.Sprint(have))
		}
		if text != values[0] {
			return false
		}
	}
	return true
}

// liveness answers whether a supervisor should leave the agent alone. A replica
// gets twice the time, and so does an agent that has only begun; in pause mode
// nothing depends on the loop.
func (s *Server) liveness(state State) int {
	if state.Dynamic.Pause {
		return http.StatusOK
	}
	last, limit := state.LoopAt, state.Dynamic.TTL
	if last.IsZero() {
		last = s.started
	}
	if limit == 0 {
		limit = startLimit
	}
	if !state.Leader && (state.Postgres.InRecovery || !state.Postgres.Accepting) {
		limit *= 2
	}
	if age(last, s.now()) <= limit {
		return http.StatusOK
	}
	return http.StatusServiceUnavailable
}

// startLimit is how long an agent that does not know its shard's ttl yet may
// take to come round.
const startLimit = 30 * time.Second

// readiness answers whether the member serves: it leads, or its PostgreSQL runs
// and, as from Patroni 4.1 on, streams and is not too far behind in replaying (mode
// apply, the default) or receiving (mode write). Patroni 3 only asks that Consul is
// known.
func (s *Server) readiness(state State, query url.Values) int {
	v := judge(state, s.now(), -1)
	switch {
	case v.leader:
		return http.StatusOK
	case !v.running || !v.known:
		return http.StatusServiceUnavailable
	case s.Compat == compat3:
		return http.StatusOK
	}
	limit := state.Dynamic.MaximumLagOnFailover
	if n, err := parseBytes(query.Get("lag")); err == nil {
		limit = n
	}
	at := state.Postgres.ReplayedLSN
	if query.Get("mode") == "write" {
		at = max(at, state.Postgres.ReceivedLSN)
	}
	if state.Postgres.ReplicationState == "streaming" && state.Postgres.within(limit, at) {
		return http.StatusOK
	}
	return http.StatusServiceUnavailable
}

// parseBytes reads a size as PostgreSQL writes it: a number, bytes when there is
// no unit.
func parseBytes(text string) (int64, error) {
	text = strings.TrimSpace(text)
	digits := strings.TrimRight(text, "kKmMgGtTbB \t")
	shift, known := map[string]uint{"": 0, "b": 0, "kb": 10, "mb": 20, "gb": 30, "tb": 40}[strings.ToLower(strings.TrimSpace(text[len(digits):]))]
	n, err := strconv.ParseFloat(digits, 64)
	if err != nil || !known || !(n >= 0) || n*float64(int64(1)<<shift) > 1<<62 {
		return 0, fmt.Errorf("%q is not a size such as 10MB", text)
	}
	return int64(n * float64(int64(1)<<shift)), nil
}
