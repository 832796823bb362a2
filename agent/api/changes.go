package api

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Limits of operations. They bound how long a client waits; by then something
// is wrong that it can look up in the log.
const (
	quickLimit   = 20 * time.Second // one or two writes to Consul
	restartLimit = 10 * time.Minute // a shutdown checkpoint and a crash recovery
)

// patchConfig merges a patch into the dynamic configuration.
func (s *Server) patchConfig(ctx context.Context, patch map[string]any) answer {
	ctx, cancel := context.WithTimeout(ctx, quickLimit)
	defer cancel()
	config, err := s.node.ChangeConfig(ctx, func(present map[string]any) (map[string]any, error) {
		return mergePatch(present, patch), nil
	})
	return s.configAnswer(config, err, http.StatusServiceUnavailable)
}

// putConfig replaces the dynamic configuration.
func (s *Server) putConfig(ctx context.Context, config map[string]any) answer {
	ctx, cancel := context.WithTimeout(ctx, quickLimit)
	defer cancel()
	config, err := s.node.ChangeConfig(ctx, func(map[string]any) (map[string]any, error) {
		return config, nil
	})
	return s.configAnswer(config, err, http.StatusBadGateway)
}

func (s *Server) configAnswer(config map[string]any, err error, otherwise int) answer {
	switch {
	case err == nil:
		return jsonAnswer(http.StatusOK, config)
	case errors.Is(err, ErrConflict):
		return failed(http.StatusConflict)
	case errors.Is(err, ErrNone):
		return failed(otherwise)
	case errors.Is(err, ErrRefused):
		return text(http.StatusBadRequest, refusal(err))
	}
	s.log.Error().Err(err).Msg("REST API: the dynamic configuration was not changed")
	return failed(otherwise)
}

// mergePatch returns present with patch merged in: objects are merged key by
// key, null removes a key, anything else replaces it. Neither argument changes.
func mergePatch(present, patch map[string]any) map[string]any {
	out := maps.Clone(present)
	if out == nil {
		out = map[string]any{}
	}
	for key, value := range patch {
		object, isObject := value.(map[string]any)
		switch {
		case value == nil:
			delete(out, key)
		case isObject:
			below, _ := out[key].(map[string]any)
			out[key] = mergePatch(below, object)
		default:
			out[key] = value
		}
	}
	return out
}

// reload re-reads the configuration file.
func (s *Server) reload(ctx context.Context, _ map[string]any) answer {
	ctx, cancel := context.WithTimeout(ctx, quickLimit)
	defer cancel()
	if err := s.node.Reload(ctx); err != nil {
		s.log.Error().Err(err).Msg("REST API: reload")
		return text(http.StatusInternalServerError, "reload failed: "+err.Error())
	}
	return text(http.StatusAccepted, "reload scheduled")
}

// restart restarts PostgreSQL now, if the conditions of the request hold.
func (s *Server) restart(ctx context.Context, request map[string]any) answer {
	state := s.node.State()
	schedule, scheduled := request["schedule"]
	if scheduled && state.Dynamic.Pause {
		return text(http.StatusInternalServerError, "Can't schedule restart in the paused state")
	}
	conditions, problem := s.restartConditions(request)
	if problem != nil {
		return *problem
	}
	if scheduled {
		if _, problem := parseSchedule(schedule, "restart", s.now()); problem != nil {
			return *problem
		}
		return text(http.StatusServiceUnavailable, "scheduled restarts are not supported yet")
	}
	if !conditions.hold(s, state) {
		return text(http.StatusServiceUnavailable, "restart conditions are not satisfied")
	}
	ctx, cancel := context.WithTimeout(ctx, conditions.timeout)
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

// restartConditions say whether a restart is wanted; what is not set asks for
// nothing.
type restartConditions struct {
	role    string
	below   int // server_version_num that the server must be older than
	pending bool
	timeout time.Duration
}

func (s *Server) restartConditions(request map[string]any) (restartConditions, *answer) {
	c := restartConditions{timeout: restartLimit}
	refuse := func(format string, args ...any) (restartConditions, *answer) {
		a := text(http.StatusBadRequest, fmt.Sprintf(format, args...))
		return c, &a
	}
	for _, key := range slices.Sorted(maps.Keys(request)) {
		value := request[key]
		switch key {
		case "schedule":
		case "role":
			role, _ := value.(string)
			allowed, words := []string{"master", "primary", "replica"}, "primary or replica"
			if s.Compat != compat3 {
				allowed, words = append(allowed, roleStandbyLeader), "primary, standby_leader, or replica"
			}
			if !slices.Contains(allowed, role) {
				return refuse("PostgreSQL role should be either %s", words)
			}
			c.role = role
		case "postgres_version":
			n, problem := parseVersion(value)
			if problem != "" {
				return refuse("%s", problem)
			}
			c.below = n
		case "timeout":
			d, err := parseSeconds(value)
			if err != nil {
				return refuse("Timeout should be a positive number of seconds")
			}
			c.timeout = min(d, restartLimit)
		case "restart_pending":
			c.pending = isTrue(value)
		default:
			return refuse("Unknown filter for the scheduled restart: %s", key)
		}
	}
	return c, nil
}

func (c restartConditions) hold(s *Server, state State) bool {
	role := s.role(state)
	sameRole := c.role == "" || c.role == role || isPrimaryRole(c.role) && isPrimaryRole(role)
	old := c.below == 0 || state.Postgres.ServerVersion < c.below
	return sameRole && old && (!c.pending || len(state.Postgres.PendingRestart) > 0 || state.Member.PendingRestart)
}

// deleteRestart removes a scheduled restart; there never is one.
func (s *Server) deleteRestart(context.Context, map[string]any) answer {
	return text(http.StatusNotFound, "no restarts are scheduled")
}

// reinitialize replaces this replica by a new clone. It answers once that has
// begun.
func (s *Server) reinitialize(ctx context.Context, request map[string]any) answer {
	state := s.node.State()
	switch state.Cluster.LeaderName() {
	case "":
		return text(http.StatusServiceUnavailable, "Cluster has no leader, can not reinitialize")
	case state.Name:
		return text(http.StatusServiceUnavailable, "I am the leader, can not reinitialize")
	}
	ctx, cancel := context.WithTimeout(ctx, quickLimit)
	defer cancel()
	err := s.node.Reinitialize(ctx, isTrue(request["force"]))
	switch {
	case err == nil:
		return text(http.StatusOK, "reinitialize started")
	case errors.Is(err, ErrRefused):
		return text(http.StatusServiceUnavailable, refusal(err))
	}
	s.log.Error().Err(err).Msg("REST API: reinitialize")
	return because(text(http.StatusServiceUnavailable, "reinitialize failed"), err.Error())
}

// reasonHeader carries why something failed where Patroni's texts, which
// scripts compare, have no room for it.
const reasonHeader = "Lictor-Reason"

func because(a answer, reason string) answer {
	reason = strings.Join(strings.Fields(reason), " ")
	if reason == "" {
		return a
	}
	if a.headers == nil {
		a.headers = map[string]string{}
	}
	a.headers[reasonHeader] = reason
	return a
}

// refusal is what an error that wraps ErrRefused says, without the word itself.
func refusal(err error) string {
	word := ErrRefused.Error()
	said := strings.TrimPrefix(strings.TrimSuffix(err.Error(), ": "+word), word+": ")
	return strings.TrimSpace(said)
}

// isTrue reads a boolean as loosely as Patroni does.
func isTrue(v any) bool {
	switch v := v.(type) {
	case bool:
		return v
	case string:
		return slices.Contains([]string{"true", "yes", "on", "1"}, strings.ToLower(v))
	case nil:
		return false
	}
	return !reflect.ValueOf(v).IsZero()
}

// parseVersion turns a PostgreSQL version, 15.3 or 9.6.2, into
// server_version_num, or says in Patroni's words why it cannot.
func parseVersion(v any) (n int, problem string) {
	version := fmt.Sprint(v)
	var parts []int
	for _, p := range strings.Split(version, ".") {
		n, err := strconv.Atoi(p)
		if err != nil || n < 0 {
			return 0, "Invalid PostgreSQL version: " + version
		}
		parts = append(parts, n)
	}
	switch {
	case len(parts) == 2 && parts[0] >= 10:
		return parts[0]*10000 + parts[1], ""
	case len(parts) == 3 && parts[0] < 10:
		return parts[0]*10000 + parts[1]*100 + parts[2], ""
	}
	return 0, "Invalid PostgreSQL version format: X.Y or X.Y.Z is accepted: " + version
}

// parseSeconds reads a positive duration: a number of seconds, or a text with
// one of PostgreSQL's units.
func parseSeconds(v any) (time.Duration, error) {
	written := strings.TrimSpace(fmt.Sprint(v))
	number := strings.TrimRight(written, "abcdefghijklmnopqrstuvwxyz ")
	unit, known := map[string]time.Duration{
		"": time.Second, "ms": time.Millisecond, "s": time.Second,
		"min": time.Minute, "h": time.Hour, "d": 24 * time.Hour,
	}[strings.TrimSpace(written[len(number):])]
	n, err := strconv.ParseFloat(number, 64)
	if err != nil || !known || !(n > 0) || n > 1e6 {
		return 0, fmt.Errorf("%q is not a time such as 10s", written)
	}
	return time.Duration(n * float64(unit)), nil
}
