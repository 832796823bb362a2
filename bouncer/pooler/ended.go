package pooler

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
)

// What Linux's uapi header sock_diag.h says and x/sys/unix does not: groups of
// sockets whose end the kernel tells of.
const (
	groupTCPDestroy  = 1
	groupTCP6Destroy = 3
)

// endedAgain is the pause before the kernel is asked anew, when that has failed.
const endedAgain = 10 * time.Second

// endings listens to the kernel, which tells whoever asks of every TCP connection of
// this network namespace that ends (sock_diag(7), as `ss -E` does). When a primary
// dies, all of PgBouncer's connections to it end: this is heard at once, while
// PgBouncer itself would have to be asked again and again.
type endings struct {
	log zerolog.Logger
	// ended is told the other side of a connection; it must not wait.
	ended func(remote netip.AddrPort)
}

// run listens until ctx is done.
func (e *endings) run(ctx context.Context) {
	for said := false; ctx.Err() == nil; said = true {
		if err := e.listen(ctx); ctx.Err() == nil && !said {
			e.log.Warn().Err(err).Msg("cannot subscribe to TCP close events; polling PgBouncer pools instead")
		}
		select {
		case <-time.After(endedAgain):
		case <-ctx.Done():
		}
	}
}

// openEndings opens a socket on which the kernel tells. It takes CAP_NET_ADMIN, and a
// kernel with inet_diag.
func openEndings() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_INET_DIAG)
	if err != nil {
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	file := os.NewFile(uintptr(fd), "inet_diag")
	groups := uint32(1<<(groupTCPDestroy-1) | 1<<(groupTCP6Destroy-1))
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		return nil, errors.Join(fmt.Errorf("listening for the ends of connections: %w", err), file.Close())
	}
	return file, nil
}

func (e *endings) listen(ctx context.Context) error {
	file, err := openEndings()
	if err != nil {
		return err
	}
	defer file.Close()
	defer context.AfterFunc(ctx, func() { _ = file.SetReadDeadline(time.Unix(1, 0)) })()
	buffer := make([]byte, 1<<16)
	for {
		n, err := file.Read(buffer)
		switch {
		case errors.Is(err, unix.ENOBUFS): // more than fits; some of it was lost
			e.ended(netip.AddrPort{})
			continue
		case err != nil:
			return fmt.Errorf("listening for the ends of connections: %w", err)
		}
		for message := range netlinkMessages(buffer[:n]) {
			if s, ok := parseSocket(message.body); ok {
				e.ended(s.remote)
			}
		}
	}
}
