package agent

import (
	"net"

	"github.com/rs/zerolog"
)

// turnSocket is held by the agent of this host that makes a copy by policy (design 5.29). It is
// an abstract one: it ends with its process, and leaves no file (unix(7)).
const turnSocket = "@lictor-rebuild"

// hostPort is member.Host. Its methods run on the loop: to bind a socket waits for nothing.
type hostPort struct {
	log  zerolog.Logger
	held *net.UnixListener
}

func (h *hostPort) TakeTurn() bool {
	if h.held != nil {
		return true
	}
	held, err := net.ListenUnix("unix", &net.UnixAddr{Name: turnSocket, Net: "unix"})
	if err != nil {
		h.log.Debug().Err(err).Msg("another agent of this host makes a copy")
		return false
	}
	h.held = held
	return true
}

func (h *hostPort) GiveTurn() {
	if h.held == nil {
		return
	}
	if err := h.held.Close(); err != nil {
		h.log.Warn().Err(err).Str("socket", turnSocket).Msg("cannot close the socket")
	}
	h.held = nil
}
