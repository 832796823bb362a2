package httpserver

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"
)

// lookupLimit bounds the resolving of one name, lookupsAtOnce is how many are resolved at once.
const (
	lookupLimit   = 2 * time.Second
	lookupsAtOnce = 64
)

// Lookup returns the addresses of these hosts. One that cannot be resolved has none.
func Lookup(ctx context.Context, hosts []string) (all []net.IP) {
	resolver{net.DefaultResolver.LookupNetIP}.each(ctx, hosts, func(addr netip.Addr) bool {
		all = append(all, net.IP(addr.AsSlice()))
		return true
	})
	return all
}

// resolver looks names up, as net.Resolver.LookupNetIP does.
type resolver struct {
	lookup func(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// each calls found with the addresses of hosts, one at a time, until it returns false. Names are
// looked up at once: one that no name server answers for, which may be in the route of one shard
// among many, holds up no other. One that cannot be resolved has no address and is not told of.
func (r resolver) each(ctx context.Context, hosts []string, found func(netip.Addr) bool) {
	ctx, enough := context.WithCancel(ctx)
	defer enough()
	var names []string
	for _, host := range hosts {
		addr, err := netip.ParseAddr(host)
		if err != nil {
			names = append(names, host)
		} else if !found(addr.Unmap().WithZone("")) {
			return
		}
	}
	var one sync.Mutex
	next := make(chan string)
	var all sync.WaitGroup
	for range min(len(names), lookupsAtOnce) {
		all.Go(func() {
			for name := range next {
				limit, cancel := context.WithTimeout(ctx, lookupLimit)
				addrs, _ := r.lookup(limit, "ip", name)
				cancel()
				one.Lock()
				for _, addr := range addrs {
					if ctx.Err() == nil && !found(addr.Unmap().WithZone("")) {
						enough()
					}
				}
				one.Unlock()
			}
		})
	}
	for _, name := range names {
		select {
		case next <- name:
		case <-ctx.Done():
		}
	}
	close(next)
	all.Wait()
}
