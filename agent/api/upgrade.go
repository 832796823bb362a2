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
	to, ok := request["to"].(int)
	if !ok || to < 1 {
		return text(http.StatusBadRequest, "to: must be a major version of PostgreSQL, 17 for instance")
	}
	for key := range request {
		if key != "to" {
			return text(http.StatusBadRequest, key+": is not known")
		}
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
