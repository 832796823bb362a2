package api

import (
	"context"
	"errors"
	"net/http"
	"regexp"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// backupLabel is how pgBackRest names a backup.
var backupLabel = regexp.MustCompile(`^[0-9]{8}-[0-9]{6}F(_[0-9]{8}-[0-9]{6}[DI])?$`)

// restore puts the shard back to an earlier moment (design 5.25). It answers when that is done
// or was undone, which may take hours; whoever does not wait finds the outcome in the events.
func (s *Server) restore(ctx context.Context, request map[string]any) answer {
	target, _ := request["target"].(string)
	at, zoned, ok := parseTime(target)
	if !ok || !zoned {
		return text(http.StatusBadRequest, "target: must be a time with its zone, 2026-11-29T10:00:00+00:00")
	}
	if at.After(time.Now()) {
		return text(http.StatusBadRequest, "target: is in the future")
	}
	label, _ := request["label"].(string)
	if !backupLabel.MatchString(label) {
		return text(http.StatusBadRequest, "label: must be that of a backup, 20261129-000000F")
	}
	timeline, ok := request["timeline"].(int)
	if request["timeline"] != nil && (!ok || timeline < 1) {
		return text(http.StatusBadRequest, "timeline: must be the number of a timeline")
	}
	if state := s.node.State(); state.Cluster.LeaderName() != state.Name {
		return text(http.StatusPreconditionFailed, state.Name+" does not lead: "+orNobody(state.Cluster)+" does")
	}
	err := s.node.Restore(ctx, RestoreRequest{Target: at, Label: label, Timeline: timeline})
	switch {
	case err == nil:
		return text(http.StatusOK, "restored")
	case errors.Is(err, ErrRefused):
		return text(http.StatusPreconditionFailed, refusal(err))
	}
	s.log.Error().Err(err).Msg("REST API: restore")
	if errors.Is(err, ErrRestored) {
		return because(text(http.StatusInternalServerError, "the restore has come to its end, but with an error"), err.Error())
	}
	if errors.Is(err, ErrNotUndone) {
		return because(text(http.StatusInternalServerError, "restore failed, and is not undone yet"), err.Error())
	}
	return because(text(http.StatusServiceUnavailable, "restore failed: the data are put back as they were"), err.Error())
}

func orNobody(c cluster.Snapshot) string {
	if name := c.LeaderName(); name != "" {
		return name
	}
	return "nobody"
}

// cancelRestore has a restore that is under way undone.
func (s *Server) cancelRestore(ctx context.Context, _ map[string]any) answer {
	switch err := s.node.CancelRestore(ctx); {
	case errors.Is(err, ErrNone):
		return text(http.StatusNotFound, "no restore is under way")
	case errors.Is(err, ErrRestored):
		return text(http.StatusConflict, "the restore has come to its end, and is not undone: the restored data are the shard's")
	case errors.Is(err, ErrNotUndone):
		return because(text(http.StatusInternalServerError, "the restore is broken off, and is not undone yet"), err.Error())
	case err != nil:
		s.log.Error().Err(err).Msg("REST API: restore")
		return because(text(http.StatusServiceUnavailable, "the restore goes on"), err.Error())
	}
	return text(http.StatusOK, "the restore is undone")
}
