package lab

import (
	"context"
	"os/exec"
	"strconv"
)

// Command is a program that is to run where the lab's clients are; on Netns that is
// a host of its own. The caller sets what else it needs, starts it and waits for it.
func (l *Lab) Command(ctx context.Context, path string, args ...string) *exec.Cmd {
	if l.clients == nil {
		return exec.CommandContext(ctx, path, args...)
	}
	return exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", l.clients.name, path}, args...)...)
}

// Command is a program that is to run on the host, as root.
func (h *Host) Command(ctx context.Context, path string, args ...string) *exec.Cmd {
	if h.ns == nil {
		return exec.CommandContext(ctx, path, args...)
	}
	return exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", h.ns.name, path}, args...)...)
}

// CommandAsPostgres is a program that is to run on the host as the user of PostgreSQL.
func (h *Host) CommandAsPostgres(ctx context.Context, path string, args ...string) *exec.Cmd {
	if !h.lab.owner.asRoot {
		return h.Command(ctx, path, args...)
	}
	return h.Command(ctx, "setpriv", append([]string{
		"--reuid", strconv.Itoa(h.lab.owner.uid), "--regid", strconv.Itoa(h.lab.owner.gid), "--clear-groups", "--", path,
	}, args...)...)
}
