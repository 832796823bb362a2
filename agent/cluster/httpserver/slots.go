package httpserver

import (
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// source is who a connection comes from, as far as that costs somebody something: an
// address, of IPv6 its /64, which is what one host is given.
type source = netip.Addr

func sourceOf(conn net.Conn) source {
	addr, ok := conn.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return source{}
	}
	return sourceOfIP(addr.IP)
}

// Source is the address that a request comes from, as far as it costs somebody something to have
// another one.
func Source(r *http.Request) netip.Addr {
	host, _, _ := net.SplitHostPort(r.RemoteAddr)
	return sourceOfIP(net.ParseIP(host))
}

func sourceOfIP(ip net.IP) source {
	addr, _ := netip.AddrFromSlice(ip)
	addr = addr.Unmap()
	if addr.Is6() {
		if prefix, err := addr.Prefix(64); err == nil {
			return prefix.Addr()
		}
	}
	return addr
}

const (
	// slotsKept is how many connections of one address are left alone, if it is a
	// friend's or a balancer's. All friends together have half of all connections, and
	// each of them one at the least.
	slotsKept = 8
	// balancersKept is how many addresses may be balancers': the first come, and stay
	// for as long as they go on asking at least once in balancerMemory.
	balancersKept  = 16
	balancerMemory = time.Minute
)

// slots knows for whom connections are kept.
type slots struct {
	// forFriends is how many connections are kept for all friends together.
	forFriends int

	mu        sync.Mutex
	friends   map[source]bool
	balancers map[source]time.Time
}

func newSlots(conns int) *slots {
	return &slots{forFriends: conns / 2, balancers: map[source]time.Time{}}
}

// checked notes that a balancer has asked.
func (s *slots) checked(from source, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.balancers[from]; known {
		s.balancers[from] = now
		return
	}
	if len(s.balancers) >= balancersKept {
		for b, last := range s.balancers {
			if now.Sub(last) > balancerMemory {
				delete(s.balancers, b)
			}
		}
	}
	if len(s.balancers) < balancersKept {
		s.balancers[from] = now
	}
}

func (s *slots) befriend(all []net.IP) {
	friends := map[source]bool{}
	for _, ip := range all {
		friends[sourceOfIP(ip)] = true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.friends = friends
}

// of returns how many connections of a source are left alone.
func (s *slots) of(from source) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, balancer := s.balancers[from]; balancer {
		return slotsKept
	}
	if s.friends[from] {
		return max(1, min(slotsKept, s.forFriends/len(s.friends)))
	}
	return 0
}
