package cluster

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// OtherSite is where the other one of two sites is that take turns as primary and standby (design 5.27).
type OtherSite struct {
	// Host is where its members are: a host, or several with commas between them. They are asked
	// whether one is a primary: a site that was succeeded fences itself, and none is promoted beside a
	// primary that answers. Default: nobody is asked, but by a standby leader that is to be promoted.
	Host string `mapstructure:"host"`
	// Port is the port number of PostgreSQL there, of all these hosts. Default: 5432.
	Port int `mapstructure:"port"`
	// Ignore asks nobody: this shard is to live on beside the other one, as a copy of it does that
	// was made for tests.
	Ignore bool `mapstructure:"ignore"`
}

// Known reports whether there is another site to be asked.
func (s OtherSite) Known() bool { return s.Host != "" && !s.Ignore }

// otherSite reads the section other_site.
func (r *reader) otherSite() OtherSite {
	below := reader{raw: r.object("other_site"), prefix: "other_site."}
	s := OtherSite{Host: below.hosts(), Port: int(below.number("port", defaultPort, 1, maxPort)), Ignore: below.boolean("ignore", false)}
	if len(below.raw) > 0 && s.Host == "" && !s.Ignore && len(below.errs) == 0 {
		r.fail("other_site", nil, "needs host, where the other site's members are, or ignore: true")
	}
	if s.Host == "" {
		s.Port = 0
	}
	r.unknown("other_site.", below.raw, "host", "port", "ignore")
	r.errs = append(r.errs, below.errs...)
	return s
}

// MemberAt is the name of the member whose PostgreSQL is at an address, by what the members say of
// themselves; empty: none is, or it is called by another name here.
func (s Snapshot) MemberAt(host string, port int) string {
	if host == "" {
		return "" // most shards have no other site, and this is asked at each step
	}
	for _, m := range s.Members {
		if !m.OK() {
			continue
		}
		if its, at, err := m.Value.Address(); err == nil && at == port && sameHost(its, host) {
			return m.Value.Name
		}
	}
	return ""
}

// CheckSite returns an OwnMemberError if one of another site's hosts is a member of this shard: one that
// followed itself would have no primary.
func (s Snapshot) CheckSite(hosts string, port int) error {
	for host := range strings.SplitSeq(hosts, ",") {
		if name := s.MemberAt(host, port); name != "" {
			return OwnMemberError{Address: SiteAddress(host, port), Member: name}
		}
	}
	return nil
}

// Strangers are those of another site's hosts that are no members of this shard.
func (s Snapshot) Strangers(hosts string, port int) string {
	all := strings.Split(hosts, ",")
	return strings.Join(slices.DeleteFunc(all, func(host string) bool { return s.MemberAt(host, port) != "" }), ",")
}

// OwnMemberError is of an address of another site at which a member of this shard is.
type OwnMemberError struct{ Address, Member string }

func (e OwnMemberError) Error() string {
	return fmt.Sprintf("%s is %s, a member of this shard", e.Address, e.Member)
}

// sameHost reports whether two texts name one host, as far as they tell.
func sameHost(a, b string) bool {
	ip, err := netip.ParseAddr(a)
	other, errs := netip.ParseAddr(b)
	if err == nil && errs == nil {
		return ip.Unmap() == other.Unmap()
	}
	return strings.EqualFold(a, b)
}

const (
	defaultPort = 5432
	maxPort     = 65535
)

// hosts reads one host, or several with commas between them.
func (r *reader) hosts() string {
	text := r.text("host")
	hosts := strings.Split(text, ",")
	for i, host := range hosts {
		hosts[i] = strings.TrimSpace(host)
		if err := CheckHost(hosts[i]); err != nil && text != "" {
			r.fail("host", host, err.Error())
		}
	}
	return strings.Join(hosts, ",")
}

// RemoteAddress is where a remote primary is, by the name of the upstream; the host is empty where its
// archive alone is known, or it is none.
func RemoteAddress(upstream string) (host string, port int) {
	address, remote := strings.CutPrefix(upstream, remotePrimary)
	at := strings.LastIndexByte(address, ':')
	if !remote || at < 0 {
		return "", 0
	}
	port, err := strconv.Atoi(address[at+1:])
	if err != nil {
		return "", 0
	}
	return address[:at], port
}

// Site is what another site's PostgreSQL has answered: its primary or, where none has, the standby that
// has received most.
type Site struct {
	// Address is where that one is.
	Address string
	Primary bool
	// Timeline and LSN are how far it is.
	Timeline int
	LSN      int64
	// Of a primary: Common is the last timeline that its history and ours have in common; Left: it has left that
	// one.
	Common int
	Left   bool
	// Unproved: nothing proves that it is the other site's PostgreSQL which has answered, and this site has no means
	// to have it proved. Nothing is stopped for what it says.
	Unproved bool
}

// SiteAddress is the address of one host of a site.
func SiteAddress(host string, port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }

// Succeeds reports whether the other site has taken over from one that has led since a timeline: its
// primary has left one on which that site has led.
func (s Site) Succeeds(since int) bool { return s.MaySucceed(since) && !s.Unproved }

// MaySucceed reports whether it has if its answer is true, proved or not.
func (s Site) MaySucceed(since int) bool { return s.Primary && s.Left && s.Common >= since }

// CanTakeOver says why the standby of a site cannot take over from a primary at lsn of a timeline, which is stopped
// for it: it must get the rest soon.
func (s Site) CanTakeOver(timeline int, lsn, maximumLag int64) error {
	switch {
	case s.Unproved:
		return fmt.Errorf("nothing proves that it is %s which has answered: see its pg_hba.conf, and require_auth in docs/security.md", s.Address)
	case s.Primary:
		return nil
	case s.Timeline != timeline:
		return fmt.Errorf("the standby %s is on timeline %d, not on %d: it does not follow this site", s.Address, s.Timeline, timeline)
	case lsn-s.LSN > maximumLag:
		return fmt.Errorf("the standby %s lags %d bytes behind, more than maximum_lag_on_failover", s.Address, lsn-s.LSN)
	}
	return nil
}

// InCommon is the last timeline that two lines have in common, each with its history and the timeline that it is
// on, and whether the second one has left it.
func InCommon(own History, on int, theirs History, theirsOn int) (timeline int, left bool) {
	for i := 0; ; i++ {
		ends, theirsEnd := i >= len(own), i >= len(theirs)
		now, then := on, theirsOn
		if !ends {
			now = own[i].Timeline
		}
		if !theirsEnd {
			then = theirs[i].Timeline
		}
		if now != then {
			return timeline, timeline > 0
		}
		if timeline = now; ends || theirsEnd || own[i].LSN != theirs[i].LSN {
			return timeline, !theirsEnd
		}
	}
}
