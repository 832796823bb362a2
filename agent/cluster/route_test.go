package cluster

import (
	"encoding/json"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func goodRoute() Route {
	return Route{
		Version: RouteVersion, SystemIdentifier: "7300000000000000001", State: RouteOpen, Timeline: 2,
		Leader:   RouteMember{Name: "a", Host: "10.0.0.1", Port: 5432, Tags: map[string]any{"Zone": "x"}},
		Replicas: []RouteMember{{Name: "b", Host: "fd00::2", Port: 65535}, {Name: "c", Host: "c.example.com", Port: 1}},
		Since:    time.Date(2026, 11, 21, 2, 50, 8, 922841000, time.UTC),
	}
}

func manyReplicas(n int) (list []RouteMember) {
	for i := range n {
		list = append(list, RouteMember{Name: "r" + strconv.Itoa(i), Host: "h" + strconv.Itoa(i), Port: 5432})
	}
	return list
}

func manyIdentifiers(n int) (list []string) {
	for i := range n {
		list = append(list, strconv.Itoa(i+1))
	}
	return list
}

func TestRouteAnnounces(t *testing.T) {
	r := goodRoute()
	r.Succeeds = []string{"8", "7"}
	for id, want := range map[string]bool{"8": true, "7": true, "9": false, "": false, r.SystemIdentifier: false} {
		if r.Announces(id) != want {
			t.Errorf("%q: %v", id, !want)
		}
	}
}

func TestRouteRoundTrip(t *testing.T) {
	want := goodRoute()
	got, err := ParseRoute([]byte(encode(t, want)))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if strings.Contains(encode(t, want), "succeeds") {
		t.Error("a shard that was never upgraded says that it succeeds something")
	}
	newer := strings.Replace(encode(t, want), `{"version":1`, `{"version":2,"what_a_later_version_adds":[1]`, 1)
	if got, err := ParseRoute([]byte(newer)); err != nil || got.Leader.Name != "a" {
		t.Errorf("a newer agent's: %+v, %v", got, err)
	}
}

func TestRouteValidate(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*Route)
		want   string // in the message; empty: valid
	}{
		"good":                 {func(*Route) {}, ""},
		"promoting":            {func(r *Route) { r.State = RoutePromoting }, ""},
		"handover":             {func(r *Route) { r.State = RouteHandover }, ""},
		"down":                 {func(r *Route) { r.State = RouteDown }, ""},
		"newer version":        {func(r *Route) { r.Version = 9 }, ""},
		"no replicas":          {func(r *Route) { r.Replicas = nil }, ""},
		"no time":              {func(r *Route) { r.Since = time.Time{} }, ""},
		"largest identifier":   {func(r *Route) { r.SystemIdentifier = "18446744073709551615" }, ""},
		"no version":           {func(r *Route) { r.Version = 0 }, "version: 0"},
		"negative version":     {func(r *Route) { r.Version = -1 }, "version: -1"},
		"no state":             {func(r *Route) { r.State = "" }, `state: ""`},
		"unknown state":        {func(r *Route) { r.State = "Open" }, `state: "Open"`},
		"no identifier":        {func(r *Route) { r.SystemIdentifier = "" }, "system_identifier"},
		"identifier in hex":    {func(r *Route) { r.SystemIdentifier = "0x12" }, "system_identifier"},
		"negative identifier":  {func(r *Route) { r.SystemIdentifier = "-1" }, "system_identifier"},
		"other digits":         {func(r *Route) { r.SystemIdentifier = "٧" }, "system_identifier"},
		"succeeds two":         {func(r *Route) { r.Succeeds = []string{"8", "7"} }, ""},
		"succeeds itself":      {func(r *Route) { r.Succeeds = []string{"8", r.SystemIdentifier} }, "succeeds[1]: 7300000000000000001 is the route's own"},
		"succeeds one twice":   {func(r *Route) { r.Succeeds = []string{"8", "7", "8"} }, "succeeds[2]: 8 is there twice"},
		"succeeds no number":   {func(r *Route) { r.Succeeds = []string{"8", ""} }, `succeeds[1]: ""`},
		"succeeds a new line":  {func(r *Route) { r.Succeeds = []string{"8\n"} }, "succeeds[0]"},
		"succeeds many":        {func(r *Route) { r.Succeeds = manyIdentifiers(MaxSucceeds) }, ""},
		"succeeds too many":    {func(r *Route) { r.Succeeds = manyIdentifiers(MaxSucceeds + 1) }, "succeeds: 33, must not be more than 32"},
		"no timeline":          {func(r *Route) { r.Timeline = 0 }, "timeline: 0"},
		"no leader":            {func(r *Route) { r.Leader = RouteMember{} }, "leader.name"},
		"no host":              {func(r *Route) { r.Leader.Host = "" }, "leader.host"},
		"host with a space":    {func(r *Route) { r.Leader.Host = "a b" }, "leader.host"},
		"host with a setting":  {func(r *Route) { r.Leader.Host = "h port=1" }, "leader.host"},
		"host with a new line": {func(r *Route) { r.Leader.Host = "h\nevil = 1" }, "leader.host"},
		"host with a quote":    {func(r *Route) { r.Leader.Host = "h'" }, "leader.host"},
		"several hosts":        {func(r *Route) { r.Leader.Host = "a,b" }, "leader.host"},
		"a comment":            {func(r *Route) { r.Leader.Host = "a;b" }, "leader.host"},
		"no port":              {func(r *Route) { r.Leader.Port = 0 }, "leader.port: 0"},
		"port too large":       {func(r *Route) { r.Leader.Port = 65536 }, "leader.port: 65536"},
		"negative port":        {func(r *Route) { r.Leader.Port = -1 }, "leader.port: -1"},
		"a bad replica":        {func(r *Route) { r.Replicas[1].Port = 0 }, "replicas[1].port"},
		"a nameless replica":   {func(r *Route) { r.Replicas[0].Name = "" }, "replicas[0].name"},
		"many replicas":        {func(r *Route) { r.Replicas = manyReplicas(MaxReplicas) }, ""},
		"too many replicas":    {func(r *Route) { r.Replicas = manyReplicas(MaxReplicas + 1) }, "replicas: 257, must not be more than 256"},
	} {
		t.Run(name, func(t *testing.T) {
			r := goodRoute()
			test.change(&r)
			err := r.Validate()
			switch {
			case test.want == "" && err != nil:
				t.Error(err)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
				t.Errorf("%v, want one about %s", err, test.want)
			}
		})
	}
	err := Route{}.Validate()
	for _, field := range []string{"version", "state", "system_identifier", "timeline", "leader"} {
		if err == nil || !strings.Contains(err.Error(), field+":") && !strings.Contains(err.Error(), field+".") {
			t.Errorf("all is wrong, but %s is not told: %v", field, err)
		}
	}
}

func TestParseRouteRefuses(t *testing.T) {
	for _, in := range []string{``, `null`, `{}`, `[]`, `"open"`, `{"version":"1"}`, `{`, encode(t, goodRoute()) + "x"} {
		if r, err := ParseRoute([]byte(in)); err == nil {
			t.Errorf("%s: read as %+v", in, r)
		}
	}
}

func TestSameTopology(t *testing.T) {
	r := goodRoute()
	later := goodRoute()
	later.Since = later.Since.Add(time.Hour)
	if !r.SameTopology(later) {
		t.Error("another time is another topology")
	}
	if r.Since.IsZero() || later.Since.IsZero() {
		t.Error("the times were changed")
	}
	for what, change := range map[string]func(*Route){
		"state":    func(o *Route) { o.State = RouteDown },
		"leader":   func(o *Route) { o.Leader.Port++ },
		"tag":      func(o *Route) { o.Leader.Tags = nil },
		"replica":  func(o *Route) { o.Replicas = o.Replicas[:1] },
		"timeline": func(o *Route) { o.Timeline++ },
		"version":  func(o *Route) { o.Version++ },
		"cluster":  func(o *Route) { o.SystemIdentifier += "0" },
		"past":     func(o *Route) { o.Succeeds = []string{"7"} },
		"name":     func(o *Route) { o.Replicas[0].Name = "x" },
		"host":     func(o *Route) { o.Replicas[0].Host = "x" },
		"value":    func(o *Route) { o.Leader.Tags = map[string]any{"Zone": "y"} },
	} {
		o := goodRoute()
		change(&o)
		if r.SameTopology(o) {
			t.Errorf("another %s is the same topology", what)
		}
	}
}

// SameTopology compares field by field: it must know all of them.
func TestSameTopologyKnowsAllFields(t *testing.T) {
	if route, member := reflect.TypeFor[Route]().NumField(), reflect.TypeFor[RouteMember]().NumField(); route != 8 || member != 4 {
		t.Errorf("a route has %d fields and a member %d: does SameTopology compare the new ones?", route, member)
	}
	one, other := goodRoute(), goodRoute()
	one.Leader.Tags, other.Leader.Tags = map[string]any{"priority": 1}, map[string]any{"priority": 1.0}
	if !one.SameTopology(other) {
		t.Error("a number that was read from JSON is another one")
	}
}

// A route that passes can be rendered: nothing in a line of its own or beside
// its place, and it survives being written again.
func FuzzParseRoute(f *testing.F) {
	good, err := json.Marshal(goodRoute())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"version":1,"state":"down","system_identifier":"1","timeline":1,"leader":{"name":"a","host":"h","port":1},"replicas":null}`))
	f.Add([]byte(`{"version":1e0}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, in []byte) {
		r, err := ParseRoute(in)
		if err != nil {
			return
		}
		for _, m := range append([]RouteMember{r.Leader}, r.Replicas...) {
			if m.Name == "" || m.Host == "" || strings.ContainsAny(m.Host, " \t\r\n'\"=,;") || m.Port < 1 || m.Port > 65535 {
				t.Fatalf("passed: %+v", m)
			}
		}
		out, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseRoute(out)
		if err != nil || !again.SameTopology(r) {
			t.Fatalf("%s came back as %s, %v", in, out, err)
		}
	})
}
