package api

import (
	"context"
	"errors"
	"net/http"
)

// checkUpgrade tries whether this member's data could become those of a later major version
// (design 5.31). It answers when that is known, which takes seconds, or minutes with many databases.
// The request names a version and never a path: the host says where its programs are.
func (s *Server) checkUpgrade(ctx context.Context, request map[string]any) answer {
	to, refused := majorVersion(request)
	if refused != nil {
		return *refused
	}
	found, err := s.node.CheckUpgrade(ctx, to)
	switch {
	case err == nil:
		return jsonAnswer(http.StatusOK, found)
	case errors.Is(err, ErrConflict):
		return text(http.StatusConflict, "another check goes on")
	case errors.Is(err, ErrRefused):
		return text(http.StatusPreconditionFailed, refusal(err))
	}
	s.log.Error().Err(err).Msg("REST API: upgrade check")
	return because(text(http.StatusServiceUnavailable, "the check could not be done"), err.Error())
}

// majorVersion is the one that a request names, and nothing else.
func majorVersion(request map[string]any) (to int, refused *answer) {
	no := func(why string) *answer {
		a := text(http.StatusBadRequest, why)
		return &a
	}
	to, ok := request["to"].(int)
	if !ok || to < 1 {
		return 0, no("to: must be a major version of PostgreSQL, 17 for instance")
	}
	for key := range request {
		if key != "to" {
			return 0, no(key + ": is not known")
		}
	}
	return to, nil
}

// upgrade makes the shard's data those of a later major version (design 5.31). It answers when the new cluster is announced;
// the agent begins anew then, so the answer may be lost.
func (s *Server) upgrade(ctx context.Context, request map[string]any) answer {
	to, refused := majorVersion(request)
	if refused != nil {
		return *refused
	}
	if state := s.node.State(); state.Cluster.LeaderName() != state.Name {
		return text(http.StatusPreconditionFailed, state.Name+" does not lead: "+orNobody(state.Cluster)+" does")
	}
	err := s.node.Upgrade(ctx, to)
	switch {
	case err == nil:
		return text(http.StatusOK, "announced")
	case errors.Is(err, ErrRefused):
		return text(http.StatusPreconditionFailed, refusal(err))
	}
	s.log.Error().Err(err).Msg("REST API: upgrade")
	return because(text(http.StatusServiceUnavailable, "the upgrade failed, and is taken back"), err.Error())
}

// analyze makes what statistics are missing, as after an upgrade.
func (s *Server) analyze(ctx context.Context, _ map[string]any) answer {
	if err := s.node.Analyze(ctx); err != nil {
		s.log.Error().Err(err).Msg("REST API: analyze")
		return because(text(http.StatusServiceUnavailable, "the statistics could not be made"), err.Error())
	}
	return text(http.StatusOK, "analyzed")
}
