package consul

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"
)

// awaitNames waits until Consul DNS answers a name with these addresses and ports.
func awaitNames(ctx context.Context, t *testing.T, dns, name string, want ...string) {
	t.Helper()
	resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", dns)
	}}
	for {
		_, found, err := resolver.LookupSRV(ctx, "", "", name)
		var have []string
		for _, r := range found {
			addresses, lookup := resolver.LookupHost(ctx, r.Target)
			if err == nil {
				err = lookup
			}
			for _, a := range addresses {
				have = append(have, fmt.Sprintf("%s:%d", a, r.Port))
			}
		}
		slices.Sort(have)
		if slices.Equal(have, want) {
			return
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("%s: %v (%v), want %v", name, have, err, want)
		}
	}
}

// Consul DNS answers with the members whose check says that they have the role.
func testService(t *testing.T, s shard, dns string) {
	well := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/primary" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer well.Close()
	a := Service{
		ID: "catalogued/a", Name: "catalogued", Address: "10.1.2.3", Port: 5433, Tags: []string{"blue", "primary"},
		CheckURL: well.URL + "/primary", CheckInterval: 100 * time.Millisecond, Forget: time.Minute,
	}
	b := a
	b.ID, b.Address, b.Tags, b.CheckURL = "catalogued/b", "10.1.2.4", []string{"blue", "primary"}, well.URL+"/replica"
	known := func(id string, want bool) {
		t.Helper()
		if has, err := s.HasService(s.ctx, id); err != nil || has != want {
			t.Errorf("%s is known: %v (%v), want %v", id, has, err, want)
		}
	}
	known(a.ID, false)
	must(t, s.RegisterService(s.ctx, a))
	must(t, s.RegisterService(s.ctx, b))
	known(a.ID, true)
	awaitNames(s.ctx, t, dns, "primary.catalogued.service.consul.", "10.1.2.3:5433")
	b.Tags, b.CheckURL = []string{"blue", "replica"}, well.URL+"/primary"
	must(t, s.RegisterService(s.ctx, b))
	awaitNames(s.ctx, t, dns, "replica.catalogued.service.consul.", "10.1.2.4:5433")
	awaitNames(s.ctx, t, dns, "blue.catalogued.service.consul.", "10.1.2.3:5433", "10.1.2.4:5433")
	must(t, s.DeregisterService(s.ctx, a.ID))
	must(t, s.DeregisterService(s.ctx, a.ID))
	known(a.ID, false)
	awaitNames(s.ctx, t, dns, "blue.catalogued.service.consul.", "10.1.2.4:5433")
}
