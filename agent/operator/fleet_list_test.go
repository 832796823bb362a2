package operator

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
)

func TestListAfter(t *testing.T) {
	const first = `[{"Key":"service/x/leader","Value":"YQ==","Session":"s","ModifyIndex":5},{"Key":"service/x/history","Value":"YQ==","ModifyIndex":5}]`
	var asked string
	var answers http.HandlerFunc
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r.URL.String()
		answers(w, r)
	}))
	defer server.Close()
	config := &consulapi.Config{Scheme: "http", Address: strings.TrimPrefix(server.URL, "http://"), Datacenter: "dc 2", HttpClient: server.Client()}
	say := func(index string, status int, body string, more ...string) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Consul-Index", index)
			for i := 0; i < len(more); i += 2 {
				w.Header().Set(more[i], more[i+1])
			}
			w.WriteHeader(status)
			fmt.Fprint(w, body)
		}
	}
	ask := func(before answer) (answer, error) {
		return listAfter(t.Context(), config, "service/", 2*time.Second, before)
	}

	answers = say("7", 200, first, "X-Consul-KnownLeader", "true", "X-Consul-LastContact", "5000")
	one, err := ask(answer{})
	if err != nil || one.index != 7 || len(one.pairs) != 1 || string(one.pairs[0].Value) != "a" || one.pairs[0].Session != "s" {
		t.Fatalf("%+v, %v", one, err)
	}
	if age := time.Since(one.at); age < 5*time.Second {
		t.Errorf("5 s behind the leader is %v old", age)
	}
	if want := "/v1/kv/service/?dc=dc+2&index=0&recurse=&stale=&wait=2s"; asked != want {
		t.Errorf("asked %s, want %s", asked, want)
	}
	answers = say("9", 200, strings.Replace(first, "]", `,{"Key":"service/x/sync","Value":null,"ModifyIndex":9}]`, 1))
	two, err := ask(one)
	if err != nil || len(two.pairs) != 2 || two.pairs[0] != one.pairs[0] || two.pairs[1].Key != "service/x/sync" {
		t.Errorf("what is as it was is not the same: %+v, %v", two, err)
	}
	answers = say("9", 200, "not read at all")
	if three, err := ask(two); err != nil || len(three.pairs) != 2 || !three.at.After(two.at) {
		t.Errorf("nothing newer: %+v, %v", three, err)
	}
	answers = say("3", 404, "")
	if gone, err := ask(two); err != nil || len(gone.pairs) != 0 || gone.index != 0 {
		t.Errorf("no key, and an index that goes back: %+v, %v", gone, err)
	}
	answers = say("3", 404, "", "X-Consul-Results-Filtered-By-ACLs", "true")
	if hidden, err := ask(answer{}); err != nil || !hidden.filtered {
		t.Errorf("what the token may not read: %+v, %v", hidden, err)
	}
	// Consul's data are made anew: its numbers begin anew, too, and say nothing of what was before.
	answers = say("3", 200, strings.Replace(first, `"YQ=="`, `"Yg=="`, 1))
	if anew, err := ask(one); err != nil || anew.index != 0 || len(anew.pairs) != 1 || string(anew.pairs[0].Value) != "b" {
		t.Errorf("the same number, and another value: %+v, %v", anew, err)
	}
	for name, c := range map[string]struct {
		answer func(http.ResponseWriter, *http.Request)
		is     func(error) bool
	}{
		"no leader": {say("9", 200, first, "X-Consul-KnownLeader", "false"), func(err error) bool { return errors.Is(err, errNoConsulLeader) }},
		"refused": {say("9", 403, "Permission denied"), func(err error) bool {
			var status consulapi.StatusError
			return errors.As(err, &status) && status.Code == 403 && strings.Contains(Explain(err), "consul.token")
		}},
		"cut off":  {say("10", 200, first[:len(first)-3]), func(err error) bool { return err != nil }},
		"no index": {say("", 200, first), func(err error) bool { return err != nil }},
	} {
		answers = c.answer
		if got, err := ask(two); err == nil || !c.is(err) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}
