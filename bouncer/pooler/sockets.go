package pooler

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

// What Linux's uapi headers (inet_diag.h, sock_diag.h, tcp_states.h) say and
// x/sys/unix does not.
const (
	sockDiagByFamily = 20
	sockDestroy      = 21

	tcpEstablished = 1
	tcpSynSent     = 2
	tcpSynRecv     = 3
	tcpFinWait1    = 4
	tcpFinWait2    = 5
	tcpCloseWait   = 8
	tcpLastAck     = 9
	tcpClosing     = 11

	sockIDSize   = 48 // inet_diag_sockid
	diagReqSize  = 8 + sockIDSize
	diagInodeAt  = 4 + sockIDSize + 16 // of inet_diag_msg, its last field
	diagMsgLeast = diagInodeAt + 4
)

// tcpSocket is a TCP connection of this network namespace.
type tcpSocket struct {
	family, state byte
	// unanswered counts how often the kernel has sent something again that the
	// other side's kernel has not acknowledged, since it last did.
	unanswered    int
	local, remote netip.AddrPort
	// inode is the number by which /proc/PID/fd of the process that has the socket names it.
	inode uint32
	// id is the kernel's own name of the socket (inet_diag_sockid).
	id [sockIDSize]byte
}

// connecting reports whether the other side has not answered yet.
func (s tcpSocket) connecting() bool { return s.state == tcpSynSent }

// errNotPermitted says that closing other processes' sockets needs a
// capability.
var errNotPermitted = errors.New("closing connections needs the capability CAP_NET_ADMIN")

// closeSockets closes the TCP connections that choose picks, as `ss -K` does
// (design 7.4): the process that has the socket gets an error at
// once, whatever it waits for. It returns how many were closed.
func closeSockets(ctx context.Context, choose func(tcpSocket) bool) (closed int, err error) {
	fd, err := diagSocket()
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written that could be lost
	var errs []error
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		sockets, err := listSockets(ctx, fd, family)
		if err != nil {
			return closed, err
		}
		for _, s := range sockets {
			if !choose(s) {
				continue
			}
			switch err := destroySocket(fd, s); {
			case err == nil:
				closed++
			case errors.Is(err, unix.ENOENT): // closed meanwhile
			case errors.Is(err, unix.EPERM):
				return closed, errNotPermitted
			default:
				errs = append(errs, fmt.Errorf("closing %s -> %s: %w", s.local, s.remote, err))
			}
		}
	}
	return closed, errors.Join(errs...)
}

// canCloseSockets reports whether closeSockets works here, which takes a privilege and a
// kernel: it tries on a connection of its own.
func canCloseSockets(ctx context.Context) bool {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return false
	}
	defer listener.Close()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", listener.Addr().String())
	if err != nil {
		return false
	}
	defer conn.Close()
	own := conn.LocalAddr().String()
	n, err := closeSockets(ctx, func(s tcpSocket) bool { return s.local.String() == own })
	return err == nil && n == 1
}

// anySocket reports whether choose picks any TCP connection.
func anySocket(ctx context.Context, choose func(tcpSocket) bool) (bool, error) {
	fd, err := diagSocket()
	if err != nil {
		return false, err
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written that could be lost
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		sockets, err := listSockets(ctx, fd, family)
		if err != nil {
			return false, err
		}
		if slices.ContainsFunc(sockets, choose) {
			return true, nil
		}
	}
	return false, nil
}

// diagSocket asks the kernel for sockets.
func diagSocket() (fd int, err error) {
	fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_INET_DIAG)
	if err != nil {
		return -1, fmt.Errorf("netlink socket: %w", err)
	}
	// The kernel answers in the course of the call; the timeout is a backstop.
	timeout := unix.Timeval{Sec: 2}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("netlink socket: %w", err)
	}
	return fd, nil
}

// listSockets reads all TCP connections of one family.
func listSockets(ctx context.Context, fd int, family byte) ([]tcpSocket, error) {
	states := uint32(1<<tcpEstablished | 1<<tcpSynSent | 1<<tcpSynRecv | 1<<tcpFinWait1 | 1<<tcpFinWait2 |
		1<<tcpCloseWait | 1<<tcpLastAck | 1<<tcpClosing)
	request := diagRequest(sockDiagByFamily, unix.NLM_F_REQUEST|unix.NLM_F_DUMP, family, states, [sockIDSize]byte{})
	if err := unix.Sendto(fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("listing TCP connections: %w", err)
	}
	var sockets []tcpSocket
	buffer := make([]byte, 1<<16)
	for ctx.Err() == nil {
		n, _, err := unix.Recvfrom(fd, buffer, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("listing TCP connections: %w", err)
		}
		for message := range netlinkMessages(buffer[:n]) {
			switch message.kind {
			case unix.NLMSG_DONE:
				return sockets, nil
			case unix.NLMSG_ERROR:
				return nil, fmt.Errorf("listing TCP connections: %w", netlinkError(message.body))
			}
			if s, ok := parseSocket(message.body); ok {
				sockets = append(sockets, s)
			}
		}
	}
	return nil, ctx.Err()
}

// destroySocket closes one socket and waits for the kernel's word.
func destroySocket(fd int, s tcpSocket) error {
	request := diagRequest(sockDestroy, unix.NLM_F_REQUEST|unix.NLM_F_ACK, s.family, 1<<s.state, s.id)
	if err := unix.Sendto(fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	buffer := make([]byte, 4096)
	for {
		n, _, err := unix.Recvfrom(fd, buffer, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		for message := range netlinkMessages(buffer[:n]) {
			if message.kind == unix.NLMSG_ERROR {
				return netlinkError(message.body)
			}
		}
	}
}

// diagRequest is a netlink header and an inet_diag_req_v2.
func diagRequest(kind, flags uint16, family byte, states uint32, id [sockIDSize]byte) []byte {
	b := make([]byte, unix.NLMSG_HDRLEN, unix.NLMSG_HDRLEN+diagReqSize)
	binary.NativeEndian.PutUint32(b[0:], unix.NLMSG_HDRLEN+diagReqSize)
	binary.NativeEndian.PutUint16(b[4:], kind)
	binary.NativeEndian.PutUint16(b[6:], flags)
	b = append(b, family, unix.IPPROTO_TCP, 0, 0)
	b = binary.NativeEndian.AppendUint32(b, states)
	return append(b, id[:]...)
}

type netlinkMessage struct {
	kind uint16
	body []byte
}

// netlinkMessages takes a datagram apart.
func netlinkMessages(b []byte) func(func(netlinkMessage) bool) {
	return func(yield func(netlinkMessage) bool) {
		for len(b) >= unix.NLMSG_HDRLEN {
			length := int(binary.NativeEndian.Uint32(b))
			if length < unix.NLMSG_HDRLEN || length > len(b) {
				return
			}
			if !yield(netlinkMessage{binary.NativeEndian.Uint16(b[4:]), b[unix.NLMSG_HDRLEN:length]}) {
				return
			}
			b = b[min(len(b), (length+3)&^3):]
		}
	}
}

// netlinkError reads an nlmsgerr; nil is an acknowledgement.
func netlinkError(body []byte) error {
	if len(body) < 4 {
		return errors.New("short answer")
	}
	if code := int32(binary.NativeEndian.Uint32(body)); code != 0 {
		return unix.Errno(-code)
	}
	return nil
}

// parseSocket reads an inet_diag_msg. Addresses and ports are
// in network order.
func parseSocket(body []byte) (tcpSocket, bool) {
	if len(body) < diagMsgLeast {
		return tcpSocket{}, false
	}
	s := tcpSocket{family: body[0], state: body[1], unanswered: int(body[3])}
	s.inode = binary.NativeEndian.Uint32(body[diagInodeAt:])
	copy(s.id[:], body[4:])
	address := func(at int) netip.Addr {
		if s.family == unix.AF_INET {
			return netip.AddrFrom4([4]byte(s.id[at : at+4]))
		}
		return netip.AddrFrom16([16]byte(s.id[at : at+16])).Unmap()
	}
	s.local = netip.AddrPortFrom(address(4), binary.BigEndian.Uint16(s.id[0:]))
	s.remote = netip.AddrPortFrom(address(20), binary.BigEndian.Uint16(s.id[2:]))
	return s, true
}

// addressesOf resolves a host as PgBouncer did.
func addressesOf(ctx context.Context, host string) ([]netip.Addr, error) {
	if ip, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{ip.Unmap()}, nil
	}
	all, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, fmt.Errorf("address of %s: %w", host, err)
	}
	for i := range all {
		all[i] = all[i].Unmap()
	}
	return slices.Compact(all), nil
}

// Probed is the configuration with what this process may do.
func Probed(ctx context.Context, c config.Config) config.Config {
	if _, known := c.Closing(); known {
		return c
	}
	return c.WithClosing(c.IsBeside() && canCloseSockets(ctx) && !hasOtherNetwork(ctx, c))
}

// networkBound bounds the look at PgBouncer's network.
const networkBound = 500 * time.Millisecond

// hasOtherNetwork reports whether a PgBouncer that runs is in another network namespace than this process, as
// two containers that share its unix socket are: its connections are none of those that can be closed here.
func hasOtherNetwork(ctx context.Context, c config.Config) bool {
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return false
	}
	return slices.ContainsFunc(c.Each(), func(one config.Config) bool {
		options, err := one.Admin()
		if err != nil || !options.Address.IsUnix() {
			return false
		}
		ctx, cancel := context.WithTimeout(ctx, networkBound)
		defer cancel()
		conn, err := new(net.Dialer).DialContext(ctx, "unix", socketPath(options.Address))
		if err != nil {
			return false // it is not there; what cannot be closed later is told then
		}
		defer conn.Close()
		pid, known := pgbouncer.PeerPID(conn)
		if !known {
			return false // it is not to be seen, as in a pod, whose containers share one network
		}
		other, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
		return err == nil && other != own
	})
}
