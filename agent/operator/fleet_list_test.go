package operator

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/agent/cluster/settings"
	"github.com/lictor-ha/lictor/agent/testkit"
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
	site := &Site{configs: []*consulapi.Config{config}, clients: make([]*consulapi.Client, 1)}
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
		return site.listAfter(t.Context(), "service/", stale, 2*time.Second, before, &budget{shards: "service/", ofShard: bytesOfShard, left: bytesOfAll})
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

// fakeConsul answers for the keys of 20 healthy shards, their routes and bouncers, and for one shard more, below which
// somebody has written so many keys of half a megabyte.
type fakeConsul struct {
	others map[string]consulapi.KVPairs
	keys   int
	hides  bool // the token may not read all
	sent   atomic.Int64
}

const hostileScope = "s0007x"

func newFakeConsul(t *testing.T, keys int) (*fakeConsul, Settings) {
	shards, routes, bouncers := manyKeys(t, 20)
	slices.SortFunc(bouncers, func(a, b *consulapi.KVPair) int { return strings.Compare(a.Key, b.Key) })
	f := &fakeConsul{keys: keys, others: map[string]consulapi.KVPairs{"service/": shards, "lictor/routes/": routes, "lictor/bouncers": bouncers}}
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	return f, Settings{Namespace: "service", Consul: settings.Consul{Host: server.URL}}
}

func (f *fakeConsul) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	prefix := strings.TrimPrefix(r.URL.Path, "/v1/kv/")
	w.Header().Set("X-Consul-Index", "7")
	w.Header().Set("X-Consul-Results-Filtered-By-ACLs", strconv.FormatBool(f.hides))
	names := r.URL.Query().Has("keys")
	separator := "["
	write := func(text []byte) bool {
		n, err := fmt.Fprintf(w, "%s%s", separator, text)
		f.sent.Add(int64(n))
		separator = ","
		return err == nil
	}
	element := func(p *consulapi.KVPair) []byte {
		var value any = p
		if names {
			value = p.Key
		}
		text, _ := json.Marshal(value)
		return text
	}
	hostile := func() bool {
		pair := &consulapi.KVPair{Key: "service/" + hostileScope + "/members/", Value: bytes.Repeat([]byte("x"), 512<<10), ModifyIndex: 5}
		before, after, _ := bytes.Cut(element(pair), []byte("members/"))
		for i := range f.keys {
			rest := fmt.Sprint("members/", i)
			if i == 0 {
				rest = "leader"
			}
			if !write(slices.Concat(before, []byte(rest), after)) {
				return false
			}
		}
		return true
	}
	for below, pairs := range f.others {
		for i, p := range pairs {
			if i == 7*8 && below == "service/" && strings.HasPrefix("service/"+hostileScope+"/", prefix) && !hostile() {
				return
			}
			if strings.HasPrefix(p.Key, prefix) && !write(element(p)) {
				return
			}
		}
	}
	if separator == "[" {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	fmt.Fprint(w, "]")
}

// Whoever may write one shard's keys may write as many as there is room for in Consul. That shard is
// shown as one that has too many, and all others as ever: neither a page nor a command takes the room for
// what stands there, nor has Consul send it again and again.
func TestOneShardsKeysCostThatShardAlone(t *testing.T) {
	for name, keys := range map[string]int{"2,000 keys of 512 KB": 2000, "as many keys as a shard may have, of 512 KB": keysOfShard} {
		t.Run(name, func(t *testing.T) {
			consul, settings := newFakeConsul(t, keys)
			site, err := Connect(settings)
			testkit.Must(t, err)
			w, err := WatchFleet(site, DefaultZoneTag)
			testkit.Must(t, err)
			defer w.client.Close()
			before := allocated()
			const rounds = 3
			for range rounds {
				for _, prefix := range w.prefixes() {
					now := w.ask(t.Context(), prefix, w.answers[prefix])
					testkit.Must(t, now.err)
					w.answers[prefix] = now
				}
				w.rebuild()
				state, _ := w.State()
				if len(state.View.Shards) != 21 || state.Problem != "" {
					t.Fatalf("%d shards, %q", len(state.View.Shards), state.Problem)
				}
				for _, row := range state.View.Shards {
					if hostile := row.Name == hostileScope; hostile != (row.Level != "ok") || hostile && !slices.Equal(row.Kinds, []string{"too many keys"}) {
						t.Errorf("%s: %s %v", row.Name, row.Level, row.Kinds)
					}
				}
			}
			view, found := w.Shard(t.Context(), hostileScope)
			if !found || len(view.Steps) != 1 || !strings.Contains(view.Steps[0].What, "its keys in Consul are not read") {
				t.Errorf("%v %+v", found, view)
			}
			f, err := site.readFleet(t.Context())
			testkit.Must(t, err)
			var told bytes.Buffer
			f.warnUnread(&Console{Err: &told})
			if len(f.shards) != 21 || !strings.HasPrefix(told.String(), "warning: shard "+hostileScope+": its keys in Consul are not read") || strings.Count(told.String(), "\n") != 1 {
				t.Errorf("%d shards: %s", len(f.shards), told.String())
			}
			used, sent := allocated()-before, consul.sent.Load()
			t.Logf("%d MiB were allocated, %d MiB sent", used>>20, sent>>20)
			if used > 192<<20 || sent > 64<<20 {
				t.Error("what the hostile shard has in Consul was read")
			}
		})
	}
}

// A fleet of which the token may read a part is told from one that is whole.
func TestHiddenShardsAreToldOf(t *testing.T) {
	for hides, want := range map[bool]string{false: "", true: "warning: Consul leaves out what the token may not read: "} {
		for name, command := range map[string]func(*Console, *Site) error{
			"fleet": func(c *Console, site *Site) error { return Fleet(t.Context(), c, site, FleetOptions{Quiet: true}) },
			"evacuate, rebalance": func(c *Console, site *Site) error {
				f, err := site.readFleet(t.Context())
				f.warnUnread(c)
				return err
			},
		} {
			consul, settings := newFakeConsul(t, 0)
			consul.hides = hides
			site, err := Connect(settings)
			testkit.Must(t, err)
			var out, told bytes.Buffer
			testkit.Must(t, command(&Console{Out: &out, Err: &told}, site))
			if got := told.String(); !strings.HasPrefix(got, want) || (want == "") != (got == "") {
				t.Errorf("%s: hides %t: %q", name, hides, got)
			}
		}
	}
}

func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

// A shard whose keys are few again is shown again.
func TestShardThatWasLeftOutComesBack(t *testing.T) {
	consul, settings := newFakeConsul(t, 2*keysOfShard)
	site, err := Connect(settings)
	testkit.Must(t, err)
	now := answer{}
	for i, keys := range []int{2 * keysOfShard, keysOfShard, 2, 2} {
		consul.keys = keys
		now, err = site.shardsAfter(t.Context(), stale, 0, now)
		testkit.Must(t, err)
		left, pairs := len(now.leftOut), len(now.pairs)
		if out := i < 2; out != (left == 1) || out != (pairs == 20*8) || !out && pairs != 20*8+2 {
			t.Errorf("with %d keys: %d keys are read, of %d shards none", keys, pairs, left)
		}
	}
}
