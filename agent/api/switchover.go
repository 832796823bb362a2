package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// switchoverLimit bounds the wait for the outcome of a switchover. The node
// gives up sooner: it knows the shard's timing.
const switchoverLimit = 2 * time.Minute

// tookHeader carries how long a switchover took, in milliseconds.
const tookHeader = "Lictor-Took-Ms"

// action is a switchover or a failover: the same thing with different words and
// with different things that must be said.
type action struct {
	name  string // as in the path
	title string
	done  string // Successfully ... over to
	// planned says that the present leader must be named: nothing is asked of
	// a shard that changed meanwhile.
	planned bool
}

func (s *Server) switchover(ctx context.Context, request map[string]any) answer {
	return s.handOver(ctx, action{name: "switchover", title: "Switchover", done: "switched", planned: true}, request)
}

func (s *Server) failover(ctx context.Context, request map[string]any) answer {
	return s.handOver(ctx, action{name: "failover", title: "Failover", done: "failed"}, request)
}

// handOver checks a request for a switchover or failover and has it done.
func (s *Server) handOver(ctx context.Context, act action, request map[string]any) answer {
	state := s.node.State()
	wanted, problem := s.wanted(act, request, state)
	if problem != nil {
		return *problem
	}
	ctx, cancel := context.WithTimeout(ctx, switchoverLimit)
	defer cancel()
	outcome, err := s.node.Switchover(ctx, wanted)
	if err != nil {
		return s.handOverFailed(act, err)
	}
	switch {
	case wanted.ScheduledAt != nil:
		return text(http.StatusAccepted, act.title+" scheduled")
	case !outcome.Known:
		return because(text(http.StatusServiceUnavailable, act.title+" status unknown"), outcome.Reason)
	case !outcome.Done:
		return because(text(http.StatusServiceUnavailable, act.title+" failed"), outcome.Reason)
	}
	a := text(http.StatusOK, fmt.Sprintf(`Successfully %s over to "%s"`, act.done, outcome.Leader))
	if wanted.Candidate != "" && wanted.Candidate != outcome.Leader {
		past := strings.ToUpper(act.done[:1]) + act.done[1:]
		a.text = fmt.Sprintf(`%s over to "%s" instead of "%s"`, past, outcome.Leader, wanted.Candidate)
	}
	a.headers = map[string]string{tookHeader: strconv.FormatInt(outcome.Took.Milliseconds(), 10)}
	return a
}

func (s *Server) handOverFailed(act action, err error) answer {
	switch {
	case errors.Is(err, ErrRefused):
		return text(http.StatusPreconditionFailed, refusal(err))
	case errors.Is(err, ErrConflict):
		return text(http.StatusServiceUnavailable, "failed to write "+act.name+" key into DCS")
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return text(http.StatusServiceUnavailable, act.title+" status unknown")
	}
	s.log.Error().Err(err).Msg("REST API: " + act.name)
	return because(text(http.StatusServiceUnavailable, act.title+" failed"), err.Error())
}

// wanted reads a request and checks it against the shard as last seen. The node
// checks again when it acts.
func (s *Server) wanted(act action, request map[string]any, state State) (cluster.Failover, *answer) {
	refuse := func(status int, reason string) (cluster.Failover, *answer) {
		a := text(status, reason)
		return cluster.Failover{}, &a
	}
	var words [3]string
	for i, key := range []string{"leader", "candidate", "member"} {
		value, ok := request[key].(string)
		if !ok && request[key] != nil {
			return refuse(http.StatusBadRequest, key+" should be a string")
		}
		if value != "" {
			if err := cluster.CheckName(value); err != nil {
				return refuse(http.StatusBadRequest, key+" "+err.Error())
			}
		}
		words[i] = value
	}
	wanted := cluster.Failover{Leader: words[0], Candidate: words[1]}
	if wanted.Candidate == "" {
		wanted.Candidate = words[2]
	}
	if onBusy := request["on_busy"]; onBusy != nil {
		word, _ := onBusy.(string)
		if !slices.Contains([]string{cluster.OnBusyCancel, cluster.OnBusyWait, cluster.OnBusyRefuse}, word) {
			return refuse(http.StatusBadRequest, "on_busy should be cancel, wait or refuse")
		}
		wanted.OnBusy = word
	}
	scheduled := request["scheduled_at"] != nil && request["scheduled_at"] != ""
	switch {
	case !act.planned && wanted.Candidate == "":
		return refuse(http.StatusBadRequest, "Failover could be performed only to a specific candidate")
	case act.planned && wanted.Leader == "":
		return refuse(http.StatusBadRequest, "Switchover could be performed only from a specific leader")
	case scheduled && wanted.Leader == "":
		return refuse(http.StatusBadRequest, "Scheduled "+act.name+" is possible only from a specific leader")
	case scheduled && state.Dynamic.Pause:
		return refuse(http.StatusBadRequest, "Can't schedule "+act.name+" in the paused state")
	}
	if scheduled {
		at, problem := parseSchedule(request["scheduled_at"], act.name, s.now())
		if problem != nil {
			return cluster.Failover{}, problem
		}
		wanted.ScheduledAt = &at
		// Patroni takes it, and drops it when its time has come.
		if wanted.Leader != state.Cluster.LeaderName() {
			return refuse(http.StatusPreconditionFailed, wrongLeader)
		}
	}
	if act.planned {
		at := s.now()
		if wanted.ScheduledAt != nil {
			at = *wanted.ScheduledAt
		}
		if why := refusedAt(request, state, cluster.MaintenanceHandover, at); why != nil {
			return cluster.Failover{}, why
		}
	}
	if state.Dynamic.Pause && wanted.Candidate == "" {
		return refuse(http.StatusBadRequest, act.title+" is possible only to a specific candidate in a paused state")
	}
	if wanted.ScheduledAt == nil {
		if reason := impossible(act, wanted, state); reason != "" {
			return refuse(http.StatusPreconditionFailed, reason)
		}
	}
	return wanted, nil
}

// wrongLeader is Patroni's word for a request from another leader than the present one.
const wrongLeader = "leader name does not match"

// outsideWindow is the word of a request by which an operator says that he knows of the maintenance
// windows.
const outsideWindow = "outside_window"

// refusedAt is the answer to who asks for maintenance at a time that the shard's windows leave
// out; nil: they do not, or the request says that it is meant.
func refusedAt(request map[string]any, state State, kind cluster.Maintenance, at time.Time) *answer {
	why := state.Dynamic.MaintenanceWindows.Refusal(kind, at)
	if why == "" || isTrue(request[outsideWindow]) {
		return nil
	}
	a := text(http.StatusPreconditionFailed, why)
	return &a
}

// impossible says why a switchover cannot be, as far as the shard's keys tell;
// empty: nothing speaks against it.
func impossible(act action, wanted cluster.Failover, state State) string {
	c := state.Cluster
	leader := c.LeaderName()
	synchronous := state.Dynamic.Synchronous()
	standbys := c.Sync.Value.Standbys()
	isStandby := func(name string) bool {
		return slices.ContainsFunc(standbys, func(n string) bool { return strings.EqualFold(n, name) })
	}
	if wanted.Leader != "" && wanted.Leader != leader {
		return wrongLeader
	}
	if wanted.Candidate != "" && act.planned && synchronous && !isStandby(wanted.Candidate) {
		return "candidate name does not match with sync_standby"
	}
	var candidates []cluster.Member
	for _, m := range c.Members {
		var eligible bool
		switch {
		case wanted.Candidate != "":
			eligible = m.Value.Name == wanted.Candidate
		case synchronous:
			eligible = isStandby(m.Value.Name)
		default:
			eligible = m.Value.Name != leader && m.Value.APIURL != ""
		}
		if eligible {
			candidates = append(candidates, m.Value)
		}
	}
	switch {
	case len(candidates) > 0:
	case wanted.Candidate != "":
		return "candidate does not exists"
	case synchronous:
		return act.name + " is not possible: can not find sync_standby"
	default:
		return act.name + " is not possible: cluster does not have members except leader"
	}
	if !slices.ContainsFunc(candidates, func(m cluster.Member) bool {
		return m.Name != leader && !cluster.NoFailover(m.Tags)
	}) {
		return act.name + " is not possible: no good candidates have been found"
	}
	return ""
}

// cancelSwitchover removes a scheduled request.
func (s *Server) cancelSwitchover(ctx context.Context, _ map[string]any) answer {
	ctx, cancel := context.WithTimeout(ctx, quickLimit)
	defer cancel()
	err := s.node.CancelSwitchover(ctx)
	switch {
	case err == nil:
		return text(http.StatusOK, "scheduled switchover deleted")
	case errors.Is(err, ErrNone):
		return text(http.StatusNotFound, "no switchover is scheduled")
	case errors.Is(err, ErrConflict):
		return failed(http.StatusConflict)
	}
	s.log.Error().Err(err).Msg("REST API: cancel the scheduled switchover")
	return because(failed(http.StatusServiceUnavailable), err.Error())
}

// parseSchedule reads the time of something scheduled: in ISO 8601, with its
// zone, in the future.
func parseSchedule(v any, what string, now time.Time) (time.Time, *answer) {
	refuse := func(status int, reason string) (time.Time, *answer) {
		a := text(status, reason)
		return time.Time{}, &a
	}
	written, isText := v.(string)
	at, zoned, ok := parseTime(written)
	switch {
	case !isText || !ok:
		return refuse(http.StatusUnprocessableEntity,
			"Unable to parse scheduled timestamp. It should be in an unambiguous format, e.g. ISO 8601")
	case !zoned:
		return refuse(http.StatusBadRequest, "Timezone information is mandatory for the scheduled "+what)
	case at.Before(now):
		return refuse(http.StatusUnprocessableEntity, "Cannot schedule "+what+" in the past")
	}
	return at, nil
}

// parseTime reads ISO 8601 in its usual spellings and says whether a zone was
// given.
func parseTime(written string) (at time.Time, zoned, ok bool) {
	written = strings.TrimSpace(written)
	if bare, isUTC := strings.CutSuffix(written, "UTC"); isUTC {
		written = strings.TrimSpace(bare) + "Z"
	}
	if len(written) > 10 && written[10] == ' ' {
		written = written[:10] + "T" + written[11:]
	}
	written = strings.ReplaceAll(written, " ", "")
	for _, clock := range []string{"2006-01-02T15:04:05", "2006-01-02T15:04", "20060102T150405"} {
		for _, zone := range []string{"Z07:00", "Z0700", "Z07"} {
			if at, err := time.Parse(clock+zone, written); err == nil {
				return at, true, true
			}
		}
		if at, err := time.Parse(clock, written); err == nil {
			return at, false, true
		}
	}
	at, err := time.Parse("2006-01-02", written)
	return at, false, err == nil
}
