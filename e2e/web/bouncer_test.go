package web

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/testkit"
)

// mostOfBouncer is how many questions to Consul a bouncer has open for itself: routes, handovers,
// shards of Patroni's, and what it says of itself.
const mostOfBouncer = 4

// longerThanRequests is longer than the bouncer lets a request of its API take.
const longerThanRequests = 7 * time.Second

// A bouncer with `web: true` serves the page of the command, from its own listener: live, read only,
// with no more questions to Consul for many browsers than for one.
func TestBouncerServesThePage(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s := newFleet(ctx, t, 20)
	dir := t.TempDir()
	s.startPage(ctx, "bouncer", "bouncer starts", fmt.Sprintf("listen: 127.0.0.1:%%d\nconsul: {host: %%q}\nweb: true\n"+
		"pgbouncer: {config: %s, admin: %s}\nstate_file: %s\n", filepath.Join(dir, "pgbouncer.ini"), dir+":6432", filepath.Join(dir, "state")))
	opened := time.Now()
	var all []*browser
	for range lookers {
		all = append(all, s.browse(ctx))
	}
	for _, b := range all {
		b.await(func(rows map[string]string) bool { return len(rows) == 20 })
	}
	s.change("service/s007/members/s007-db3", func(m map[string]any) { m["state"] = "stopped by the test" })
	for _, b := range all {
		b.await(func(rows map[string]string) bool { return strings.Contains(rows["s007"], "stopped by the test") })
	}
	if shard := get(ctx, t, s.url+"shards/s007"); !strings.Contains(shard, "s007-db1") {
		t.Errorf("a shard: %.300s", shard)
	}
	for time.Since(opened) < longerThanRequests { // the limits of the API's requests end no stream
		all[0].hear()
	}
	page, open := s.proxy.mostOpen()
	t.Logf("%d questions of the page were open at the most, %d in all", page, open)
	if page == 0 || page > mostOpen || open > mostOpen+mostOfBouncer {
		t.Errorf("%d questions of the page to Consul were open, want %d; %d in all, want %d", page, mostOpen, open, mostOpen+mostOfBouncer)
	}
	ask := func(method, path string) (int, http.Header, string) {
		t.Helper()
		request, err := http.NewRequestWithContext(ctx, method, s.url+path, nil)
		testkit.Must(t, err)
		answer, err := http.DefaultClient.Do(request)
		testkit.Must(t, err)
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		testkit.Must(t, err)
		return answer.StatusCode, answer.Header, string(text)
	}
	if code, header, text := ask(http.MethodGet, ""); code != http.StatusOK || !strings.Contains(text, "Lictor fleet") || !strings.Contains(header.Get("Content-Security-Policy"), "default-src 'none'") {
		t.Errorf("the page: %d %v %.200s", code, header, text)
	}
	if code, _, text := ask(http.MethodGet, "status"); code != http.StatusOK || !strings.Contains(text, `"service/s001"`) {
		t.Errorf("the bouncer's own status: %d %.200s", code, text)
	}
	for _, path := range []string{"", "shards/s001", "live"} {
		if code, _, _ := ask(http.MethodPost, path); code != http.StatusMethodNotAllowed {
			t.Errorf("POST /%s: %d", path, code)
		}
	}
}

// With a login the bouncer shows strangers nothing of the page, whatever it is that they ask for, and the
// page's own login does not drain.
func TestBouncersPageAsksForALogin(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s := newFleet(ctx, t, 2)
	dir := t.TempDir()
	s.startPage(ctx, "bouncer", "bouncer starts", fmt.Sprintf("listen: 127.0.0.1:%%d\nconsul: {host: %%q}\nweb: true\nweb_authentication: {username: reader, password: open}\n"+
		"authentication: {username: admin, password: secret}\npgbouncer: {config: %s, admin: %s}\nstate_file: %s\n", filepath.Join(dir, "pgbouncer.ini"), dir+":6432", filepath.Join(dir, "state")))
	ask := func(method, path, user, password string) (int, string) {
		t.Helper()
		ctx, cancel := context.WithCancel(ctx)
		defer cancel() // a stream is not read to its end
		request, err := http.NewRequestWithContext(ctx, method, s.url+path, nil)
		testkit.Must(t, err)
		if user != "" {
			request.SetBasicAuth(user, password)
		}
		answer, err := http.DefaultClient.Do(request)
		testkit.Must(t, err)
		defer answer.Body.Close()
		text := make([]byte, 1<<10)
		n, _ := answer.Body.Read(text) // what comes first is enough
		return answer.StatusCode, string(text[:n])
	}
	testkit.Await(ctx, t, "the page", func() error {
		if code, text := ask(http.MethodGet, "shards/s001", "reader", "open"); code != http.StatusOK {
			return fmt.Errorf("%d %s", code, text)
		}
		return nil
	})
	for _, path := range []string{"", "app.js", "live", "shards/s001", "shards/nowhere", "runbooks/no-leader", "version", "nowhere"} {
		for _, login := range [][2]string{{"", ""}, {"reader", "closed"}, {"admin", "secret"}} {
			if code, text := ask(http.MethodGet, path, login[0], login[1]); code != http.StatusUnauthorized || strings.Contains(text, "s001") {
				t.Errorf("GET /%s by %q: %d %s", path, login[0], code, text)
			}
		}
	}
	for _, path := range []string{"", "live"} {
		if code, text := ask(http.MethodGet, path, "reader", "open"); code != http.StatusOK {
			t.Errorf("GET /%s by who may read: %d %s", path, code, text)
		}
	}
	if code, text := ask(http.MethodPost, "drain", "reader", "open"); code != http.StatusUnauthorized {
		t.Errorf("the page's login drains: %d %s", code, text)
	}
}
