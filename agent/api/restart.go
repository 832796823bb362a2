package api

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http"
	"slices"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// restartLimit bounds a restart now: a shutdown checkpoint and a crash recovery.
const restartLimit = 10 * time.Minute

// RestartRequest is a wish for a restart of PostgreSQL and the conditions under
// which it holds; what is not set asks for nothing.
type RestartRequest struct {
	// At is when to restart; zero: now.
	At time.Time
	// Role is the role that the member must have: primary (or master), replica
	// or standby_leader.
	Role string
	// Version is the PostgreSQL version, 15.3, that the server must be older than.
	Version string
	// Pending asks for a restart only if a parameter waits for one.
	Pending bool
	// Timeout is how long PostgreSQL may take until it accepts connections; zero:
	// as long as a request may take.
	Timeout time.Duration
}

// Names of a restart's fields, in requests and under a member's key.
const (
	restartSchedule  = "schedule"
	restartRole      = "role"
	restartVersion   = "postgres_version"
	restartTimeout   = "timeout"
	restartPending   = "restart_pending"
	postmasterStart  = "postmaster_start_time"
	pausedNoSchedule = "Can't schedule restart in the paused state"
)

// Value is the form that a scheduled restart has under the member's key; the moment
// at which PostgreSQL was started says which one it is about: one that was
// restarted since need not be restarted again.
func (r RestartRequest) Value(started time.Time) map[string]any {
	v := map[string]any{restartSchedule: isoTime(r.At)}
	if r.Role != "" {
		v[restartRole] = r.Role
	}
	if r.Version != "" {
		v[restartVersion] = r.Version
	}
	if r.Pending {
		v[restartPending] = true
	}
	if seconds := r.Timeout.Seconds(); seconds == math.Trunc(seconds) && seconds > 0 {
		v[restartTimeout] = int(seconds)
	} else if seconds > 0 {
		v[restartTimeout] = seconds
	}
	if !started.IsZero() {
		v[postmasterStart] = pythonTime(started)
	}
	return v
}

// ParseRestartValue reads what Value wrote, and says about which start of
// PostgreSQL it was.
func ParseRestartValue(v map[string]any) (r RestartRequest, started string, err error) {
	rest := maps.Clone(v)
	started, _ = rest[postmasterStart].(string)
	delete(rest, postmasterStart)
	schedule, _ := rest[restartSchedule].(string)
	at, zoned, ok := parseTime(schedule)
	if !ok || !zoned {
		return r, started, fmt.Errorf("scheduled_restart: %s: %q is not a time with its zone", restartSchedule, schedule)
	}
	r, refusal := readRestart(rest, cluster.RolePrimary)
	if refusal != "" {
		return r, started, fmt.Errorf("scheduled_restart: %s", refusal)
	}
	r.At = at
	return r, started, nil
}

// SameStart reports whether PostgreSQL was started at the moment that a scheduled
// restart names. A moment that is not known is no other one.
func SameStart(named string, started time.Time) bool {
	return named == "" || started.IsZero() || named == pythonTime(started)
}

// Unmet says which condition does not hold, empty when all do.
func (r RestartRequest) Unmet(state State) string {
	role := roleOf(state)
	switch below, _ := ParseVersion(r.Version); {
	case r.Role != "" && r.Role != role && (!cluster.IsPrimary(r.Role) || !cluster.IsPrimary(role)):
		return "its role is " + role
	case r.Version != "" && state.Postgres.ServerVersion >= below:
		return "its PostgreSQL is not older than " + r.Version
	case r.Pending && len(state.Postgres.PendingRestart) == 0 && !state.Member.PendingRestart:
		return "no parameter waits for a restart"
	}
	return ""
}

// readRestart reads the conditions of a restart, or says in Patroni's words what is
// wrong with them. primary is the word for a primary in them.
func readRestart(request map[string]any, primary string) (r RestartRequest, problem string) {
	for _, key := range slices.Sorted(maps.Keys(request)) {
		value := request[key]
		switch key {
		case restartSchedule, outsideWindow:
		case restartRole:
			role, _ := value.(string)
			allowed, words := []string{cluster.RoleMaster, cluster.RolePrimary, cluster.RoleReplica}, "primary or replica"
			if primary != cluster.RoleMaster {
				allowed, words = append(allowed, cluster.RoleStandbyLeader), "primary, standby_leader, or replica"
			}
			if !slices.Contains(allowed, role) {
				return r, "PostgreSQL role should be either " + words
			}
			r.Role = role
		case restartVersion:
			r.Version = fmt.Sprint(value)
			if _, problem := ParseVersion(r.Version); problem != "" {
				return r, problem
			}
		case restartTimeout:
			d, err := parseSeconds(value)
			if err != nil {
				return r, "Timeout should be a positive number of seconds"
			}
			r.Timeout = d
		case restartPending:
			r.Pending = isTrue(value)
		default:
			return r, "Unknown filter for the scheduled restart: " + key
		}
	}
	return r, ""
}

// restart restarts PostgreSQL if the conditions of the request hold: now, or at
// the time that it names.
func (s *Server) restart(ctx context.Context, request map[string]any) answer {
	state := s.node.State()
	schedule, scheduled := request[restartSchedule]
	if scheduled && state.Dynamic.Pause {
		return text(http.StatusInternalServerError, pausedNoSchedule)
	}
	wanted, problem := readRestart(request, s.primaryRole())
	if problem != "" {
		return text(http.StatusBadRequest, problem)
	}
	if scheduled {
		at, problem := parseSchedule(schedule, "restart", s.now())
		if problem != nil {
			return *problem
		}
		wanted.At = at
		if why := refusedAt(request, state, cluster.MaintenanceRestart, at); why != nil {
			return *why
		}
		return s.scheduleRestart(ctx, wanted)
	}
	if why := refusedAt(request, state, cluster.MaintenanceRestart, s.now()); why != nil {
		return *why
	}
	if why := wanted.Unmet(state); why != "" {
		return because(text(http.StatusServiceUnavailable, "restart conditions are not satisfied"), why)
	}
	limit := restartLimit
	if wanted.Timeout > 0 {
		limit = min(limit, wanted.Timeout)
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := s.node.Restart(ctx)
	switch {
	case err == nil:
		return text(http.StatusOK, "restarted successfully")
	case errors.Is(err, ErrRefused):
		return text(http.StatusServiceUnavailable, refusal(err))
	case errors.Is(err, context.DeadlineExceeded):
		return text(http.StatusServiceUnavailable, "postgres is still starting")
	}
	s.log.Error().Err(err).Msg("REST API: restart")
	return because(text(http.StatusServiceUnavailable, "restart failed"), err.Error())
}

func (s *Server) scheduleRestart(ctx context.Context, wanted RestartRequest) answer {
	ctx, cancel := context.WithTimeout(ctx, quickLimit)
	defer cancel()
	err := s.node.ScheduleRestart(ctx, wanted)
	switch {
	case err == nil:
		return text(http.StatusAccepted, "Restart scheduled")
	case errors.Is(err, ErrConflict):
		return text(http.StatusConflict, "Another restart is already scheduled")
	case errors.Is(err, ErrRefused):
		return text(http.StatusInternalServerError, refusal(err))
	}
	s.log.Error().Err(err).Msg("REST API: scheduling a restart")
	return because(failed(http.StatusServiceUnavailable), err.Error())
}

// deleteRestart takes a scheduled restart back.
func (s *Server) deleteRestart(ctx context.Context, _ map[string]any) answer {
	ctx, cancel := context.WithTimeout(ctx, quickLimit)
	defer cancel()
	err := s.node.CancelRestart(ctx)
	switch {
	case err == nil:
		return text(http.StatusOK, "scheduled restart deleted")
	case errors.Is(err, ErrNone):
		return text(http.StatusNotFound, "no restarts are scheduled")
	}
	s.log.Error().Err(err).Msg("REST API: taking a scheduled restart back")
	return because(failed(http.StatusServiceUnavailable), err.Error())
}
