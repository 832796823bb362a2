package httpserver

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A shard's route names hosts that no name server answers for: the other shards' members are
// found all the same.
func TestSlowNamesHoldUpNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var hosts []string
		for i := range 5 * lookupsAtOnce / 2 {
			hosts = append(hosts, fmt.Sprintf("slow%d", i))
		}
		hosts = append(hosts, "none", "10.0.0.1", "good", "fd00::1")
		r := resolver{func(ctx context.Context, _, host string) ([]netip.Addr, error) {
			switch {
			case strings.HasPrefix(host, "slow"):
				<-ctx.Done()
				return nil, ctx.Err()
			case host == "good":
				return []netip.Addr{netip.MustParseAddr("::ffff:10.0.0.2"), netip.MustParseAddr("fd00::2")}, nil
			}
			return nil, context.DeadlineExceeded
		}}
		ctx, cancel := context.WithTimeout(t.Context(), friendsLimit)
		defer cancel()
		var got []string
		r.each(ctx, hosts, func(a netip.Addr) bool { got = append(got, a.String()); return true })
		slices.Sort(got)
		if want := []string{"10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2"}; !slices.Equal(got, want) {
			t.Errorf("found %v, want %v", got, want)
		}
		// Whoever looks for one waits for no other.
		began, calls := time.Now(), 0
		r.each(ctx, slices.Concat([]string{"slow0"}, hosts[5*lookupsAtOnce/2:]), func(a netip.Addr) bool { calls++; return a.String() != "10.0.0.2" })
		if took := time.Since(began); took > 0 || calls != 3 {
			t.Errorf("%d calls, %s", calls, took)
		}
	})
}
