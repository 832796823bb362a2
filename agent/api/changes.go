package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/printable"
)

// quickLimit bounds one or two writes to Consul; by then something is wrong that a
// client can look up in the log.
const quickLimit = 20 * time.Second

// patchConfig merges a patch into the dynamic configuration.
func (s *Server) patchConfig(ctx context.Context, patch map[string]any) answer {
	ctx, cancel := context.WithTimeout(ctx, quickLimit)
	defer cancel()
	config, warnings, err := s.node.ChangeConfig(ctx, func(present map[string]any) (map[string]any, error) {
		return cluster.MergePatch(present, patch), nil
	})
	return s.configAnswer(config, warnings, err, http.StatusServiceUnavailable)
}

// putConfig replaces the dynamic configuration.
func (s *Server) putConfig(ctx context.Context, config map[string]any) answer {
	ctx, cancel := context.WithTimeout(ctx, quickLimit)
	defer cancel()
	config, warnings, err := s.node.ChangeConfig(ctx, func(map[string]any) (map[string]any, error) {
		return config, nil
	})
	return s.configAnswer(config, warnings, err, http.StatusBadGateway)
}

// warningHeader tells what of a new configuration is lowered, ignored or altered. The body
// is the configuration and nothing else, as clients of Patroni's expect.
const warningHeader = "Lictor-Warning"

func (s *Server) configAnswer(config map[string]any, warnings []cluster.Warning, err error, otherwise int) answer {
	switch {
	case err == nil:
		a := jsonAnswer(http.StatusOK, config)
		if len(warnings) > 0 {
			var lines []string
			for _, w := range warnings {
				lines = append(lines, w.String())
			}
			a = withHeader(a, warningHeader, strings.Join(lines, "; "))
		}
		return a
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
	err := s.node.Reinitialize(ctx, ReinitRequest{Force: isTrue(request["force"]), FromLeader: isTrue(request["from_leader"])})
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

func because(a answer, reason string) answer { return withHeader(a, reasonHeader, reason) }

// headerLimit bounds a text in a header, in bytes: PostgreSQL's log may have a lot to say, a
// configuration many keys, and clients drop an answer with a line that is too long (Python's
// http.client at 64 KB).
const headerLimit = 2 << 10

// withHeader adds a header with a text that is not empty.
func withHeader(a answer, name, value string) answer {
	value = printable.Short(strings.Join(strings.Fields(value), " "), headerLimit-32)
	if value == "" {
		return a
	}
	if a.headers == nil {
		a.headers = map[string]string{}
	}
	a.headers[name] = value
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

// ParseVersion turns a PostgreSQL version, 15.3 or 9.6.2, into
// server_version_num, or says in Patroni's words why it cannot.
func ParseVersion(v any) (n int, problem string) {
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
