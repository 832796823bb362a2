package httpserver

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// errNoPeer: no process of this host has the other end of a connection, or has it
// no more.
var errNoPeer = errors.New("no process of this host has the connection's other end")

// fromHost returns nil when a request was made by a process on this host whose user
// is one of these. Who proxies others from here says so by a header.
func fromHost(r *http.Request, users []uint32) error {
	client, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return fmt.Errorf("the client's address: %w", err)
	}
	server, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	if !ok {
		return errors.New("the connection is not TCP")
	}
	for _, header := range []string{"Forwarded", "Via", "X-Forwarded-For"} {
		if r.Header.Get(header) != "" {
			return errors.New("a proxy sent it")
		}
	}
	if !ownAddress(client.Addr()) {
		return errNoPeer
	}
	user, err := peerUser(plain(client), plain(server.AddrPort()))
	if err != nil {
		return err
	}
	if err := stillOpen(r.Context().Value(connKey{})); err != nil {
		return err
	}
	if !slices.Contains(users, user) {
		return fmt.Errorf("the user with the number %d sent it", user)
	}
	return nil
}

// UserOf finds the user of this host whose process has the other end of a connection. One that
// nobody has accepted yet is nobody's: ask when an answer has come.
func UserOf(conn net.Conn) (uint32, error) {
	own, isTCP := conn.LocalAddr().(*net.TCPAddr)
	other, also := conn.RemoteAddr().(*net.TCPAddr)
	if !isTCP || !also {
		return 0, errors.New("the connection is not TCP")
	}
	if !ownAddress(other.AddrPort().Addr()) {
		return 0, errNoPeer
	}
	user, err := peerUser(plain(other.AddrPort()), plain(own.AddrPort()))
	if err != nil {
		return 0, err
	}
	return user, stillOpen(conn)
}

// stillOpen returns nil while both ends of a connection are open. Asked after the user
// was looked up by its addresses, it says that the user is this connection's: as long as
// it stands, no other one has the same addresses. One that its client has broken off may
// be followed by another process's from the same port.
func stillOpen(conn any) error {
	if c, ok := conn.(*limitedConn); ok {
		conn = c.Conn
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return errors.New("the connection is not TCP")
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return fmt.Errorf("look at the connection: %w", err)
	}
	var info *unix.TCPInfo
	var unknown error
	if err := raw.Control(func(fd uintptr) { info, unknown = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }); err != nil {
		return fmt.Errorf("look at the connection: %w", err)
	}
	switch {
	case unknown != nil:
		return fmt.Errorf("look at the connection: %w", unknown)
	case info.State != tcpEstablished:
		return errNoPeer
	}
	return nil
}

func plain(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}

// ownAddress reports whether an address is one of this host's.
func ownAddress(addr netip.Addr) bool {
	addr = addr.Unmap().WithZone("")
	if addr.IsLoopback() {
		return true
	}
	all, err := net.InterfaceAddrs()
	return err == nil && slices.ContainsFunc(all, func(a net.Addr) bool {
		prefix, err := netip.ParsePrefix(a.String())
		return err == nil && prefix.Addr().Unmap().WithZone("") == addr
	})
}

// peerUser finds the user whose process has the other end of a TCP connection, in
// this network namespace: by the kernel's sock_diag(7), or where that is not to be
// had, in /proc/net.
func peerUser(client, server netip.AddrPort) (uint32, error) {
	user, err := diagUser(client, server)
	if err == nil || errors.Is(err, errNoPeer) {
		return user, err
	}
	user, inProc := procUser(client, server)
	if inProc == nil || errors.Is(inProc, errNoPeer) {
		return user, inProc
	}
	return 0, fmt.Errorf("whose connection it is: %w", errors.Join(err, inProc))
}

// Of Linux's uapi headers inet_diag.h and tcp_states.h.
const (
	sockDiagByFamily = 20
	tcpEstablished   = 1
	diagSockID       = 48 // bytes of inet_diag_sockid
	diagMessage      = 4 + diagSockID + 5*4
)

// diagUser asks the kernel for the one socket whose own address is the client's.
// A socket that its process has closed belongs to nobody, which the kernel shows as
// user 0: only one with an inode counts.
func diagUser(client, server netip.AddrPort) (uint32, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_INET_DIAG)
	if err != nil {
		return 0, fmt.Errorf("netlink: %w", err)
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written that could be lost
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1}); err != nil {
		return 0, fmt.Errorf("netlink: %w", err)
	}
	id := diagID(client, server)
	request := make([]byte, unix.SizeofNlMsghdr, 128)
	request = append(request, family(client), unix.IPPROTO_TCP, 0, 0)
	request = binary.NativeEndian.AppendUint32(request, 1<<tcpEstablished)
	request = append(request, id...)
	binary.NativeEndian.PutUint32(request, uint32(len(request)))
	binary.NativeEndian.PutUint16(request[4:], sockDiagByFamily)
	binary.NativeEndian.PutUint16(request[6:], unix.NLM_F_REQUEST)
	if err := unix.Sendto(fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, fmt.Errorf("netlink: %w", err)
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil {
		return 0, fmt.Errorf("netlink: %w", err)
	}
	if n < unix.SizeofNlMsghdr {
		return 0, errors.New("netlink: a short answer")
	}
	kind, body := binary.NativeEndian.Uint16(answer[4:]), answer[unix.SizeofNlMsghdr:n]
	switch {
	case kind == unix.NLMSG_ERROR && len(body) >= 4:
		number := unix.Errno(-int32(binary.NativeEndian.Uint32(body)))
		if number == unix.ENOENT {
			return 0, errNoPeer
		}
		return 0, fmt.Errorf("netlink: %w", number)
	case kind != sockDiagByFamily || len(body) < diagMessage:
		return 0, errors.New("netlink: an answer of another form")
	}
	// A listener may be shown where no connection is.
	if body[1] != tcpEstablished || !slices.Equal(body[4:8], id[:4]) {
		return 0, errNoPeer
	}
	user, inode := binary.NativeEndian.Uint32(body[diagMessage-8:]), binary.NativeEndian.Uint32(body[diagMessage-4:])
	if inode == 0 {
		return 0, errNoPeer
	}
	return user, nil
}

func family(a netip.AddrPort) byte {
	if a.Addr().Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// diagID is inet_diag_sockid: the addresses in network order, any interface, and no
// cookie.
func diagID(own, other netip.AddrPort) []byte {
	id := make([]byte, diagSockID)
	binary.BigEndian.PutUint16(id, own.Port())
	binary.BigEndian.PutUint16(id[2:], other.Port())
	copy(id[4:20], own.Addr().AsSlice())
	copy(id[20:36], other.Addr().AsSlice())
	binary.NativeEndian.PutUint64(id[40:], ^uint64(0))
	return id
}

// procUser looks the connection up in /proc/net/tcp and tcp6.
func procUser(client, server netip.AddrPort) (uint32, error) {
	var errs []error
	for _, path := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		f, err := os.Open(path)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		user, err := findUser(bufio.NewScanner(f), client, server)
		f.Close()
		if !errors.Is(err, errNoPeer) {
			return user, err
		}
	}
	if len(errs) > 0 {
		return 0, errors.Join(errs...)
	}
	return 0, errNoPeer
}

func findUser(lines *bufio.Scanner, client, server netip.AddrPort) (uint32, error) {
	for lines.Scan() {
		// sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode
		fields := strings.Fields(lines.Text())
		if len(fields) < 10 || procAddress(fields[1]) != client || procAddress(fields[2]) != server || fields[3] != "01" || fields[9] == "0" {
			continue
		}
		user, err := strconv.ParseUint(fields[7], 10, 32)
		if err != nil {
			return 0, fmt.Errorf("/proc/net: %q is no user", fields[7])
		}
		return uint32(user), nil
	}
	if err := lines.Err(); err != nil {
		return 0, fmt.Errorf("/proc/net: %w", err)
	}
	return 0, errNoPeer
}

// procAddress reads 0100007F:1F40, words of the host's byte order.
func procAddress(text string) netip.AddrPort {
	host, port, _ := strings.Cut(text, ":")
	raw, err := hex.DecodeString(host)
	n, wrong := strconv.ParseUint(port, 16, 16)
	if err != nil || wrong != nil || len(raw)%4 != 0 {
		return netip.AddrPort{}
	}
	for i := 0; i < len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	addr, _ := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(addr.Unmap(), uint16(n))
}
