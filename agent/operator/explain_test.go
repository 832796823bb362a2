package operator

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
)

// What fails before a request is sent has changed nothing, and may be tried another
// way.
func TestNeverSent(t *testing.T) {
	server := httptest.NewTLSServer(http.NotFoundHandler())
	defer server.Close()
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	gone := httptest.NewServer(nil)
	gone.Close()
	demanding := httptest.NewUnstartedServer(http.NotFoundHandler())
	demanding.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	demanding.StartTLS()
	defer demanding.Close()
	closing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { panic(http.ErrAbortHandler) }))
	defer closing.Close()
	for _, c := range []struct {
		what, url string
		insecure  bool
		never     bool
	}{
		{"nobody listens", gone.URL, false, true},
		{"an unknown authority", server.URL, false, true},
		{"plain HTTP", strings.Replace(plain.URL, "http:", "https:", 1), true, true},
		{"a client certificate is demanded", demanding.URL, true, true},
		{"no answer", closing.URL, false, false},
	} {
		client, err := api.NewClient(config.Ctl{Insecure: c.insecure}, config.RestAPI{})
		if err != nil {
			t.Fatal(err)
		}
		_, err = client.Post(t.Context(), api.Peer{APIURL: c.url + "/patroni"}, "/restart", nil)
		client.Close()
		if err == nil || neverSent(err) != c.never {
			t.Errorf("%s: never sent: %v; %v", c.what, neverSent(err), err)
		}
	}
}

// What was waited for in vain is told in words.
func TestNotInTime(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	err := await(ctx, func(context.Context) error { return errors.New("it is not archived yet") })
	if !errors.Is(err, context.DeadlineExceeded) || err.Error() != "not in time: it is not archived yet" {
		t.Errorf("%v", err)
	}
	if said := Explain(fmt.Errorf("asking: %w", context.DeadlineExceeded)); said != "asking: not in time" {
		t.Errorf("%q", said)
	}
}

func TestExplain(t *testing.T) {
	failed := func(address string, err error) error {
		return fmt.Errorf("asking: %w", &url.Error{Op: "Get", URL: address, Err: err})
	}
	refused := &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	for _, c := range []struct {
		err  error
		want string
	}{
		{errors.New("x"), "x"},
		{
			failed("http://10.0.0.1:8500/v1/kv/service/?recurse=", refused),
			"Consul cannot be asked at 10.0.0.1:8500: connection refused; see that its agent runs there, or name another one with --consul or consul.host",
		},
		{
			errors.Join(failed("http://a:8500/v1/txn", refused), failed("http://a:8500/v1/txn", refused), failed("http://b:8500/v1/txn", context.DeadlineExceeded)),
			"Consul cannot be asked at a:8500: connection refused, b:8500: no answer in time; see that its agent runs there, or name another one with --consul or consul.host",
		},
		{
			unknownf("restart of db1: %w", failed("http://db1:8008/restart", refused)),
			`restart of db1: asking: Get "http://db1:8008/restart": dial tcp: connection refused; see that the agent runs there, and that its restapi.connect_address can be reached from here`,
		},
		{
			fmt.Errorf("reading: %w", consulapi.StatusError{Code: 403, Body: "Permission denied"}),
			"Permission denied); Consul does not know the token, or it may not do that: see consul.token_file or consul.token, and --consul-token-file",
		},
		{consulapi.StatusError{Code: 500, Body: "No cluster leader"}, "Consul has no leader now"},
	} {
		if got := Explain(c.err); !strings.Contains(got, c.want) {
			t.Errorf("%v:\n got %s\nwant %s", c.err, got, c.want)
		}
	}
}

// What a wait was for is told when its time is over, not that its last look was broken off.
func TestAwaitTellsWhatItWaitedFor(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	looks := 0
	err := await(ctx, func(ctx context.Context) error {
		if looks++; looks == 1 {
			return errors.New("b lags")
		}
		cancel()
		return fmt.Errorf("asking Consul: %w", ctx.Err())
	})
	if err == nil || !strings.Contains(err.Error(), "b lags") || strings.Contains(err.Error(), "Consul") {
		t.Errorf("%v", err)
	}
}

// An answer that nobody is known to have given leaves open what was done, whoever else could
// not be reached; without one nothing was.
func TestUnanswered(t *testing.T) {
	s := &Shard{Keys: cluster.NewKeys("", "orders", "")}
	dial := &net.OpError{Op: "dial", Err: errors.New("refused")}
	thief := &api.Unproved{Peer: api.Peer{Name: "db1", APIURL: "http://db1:8008"}, Answer: api.Answer{Status: 200, Text: "Success"}}
	for _, c := range []struct {
		err  error
		code int
		say  string
	}{
		{dial, ExitFailed, "refused"},
		{thief, ExitUnknown, "does not prove to be db1"},
		{errors.Join(dial, thief), ExitUnknown, "may read the key lictor/secrets/service/orders"},
		{errors.New("reset"), ExitUnknown, "no answer: reset"},
	} {
		err := s.unanswered("restart of db1", c.err)
		if ExitCode(err) != c.code || !strings.Contains(Explain(err), c.say) || neverSent(err) != (c.code == ExitFailed) {
			t.Errorf("%v: exit code %d, want %d and %q", err, ExitCode(err), c.code, c.say)
		}
	}
}
