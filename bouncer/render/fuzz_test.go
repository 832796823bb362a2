package render

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/hashicorp/consul-template/dependency"
	"github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/printable"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
	"github.com/lictor-ha/lictor/bouncer/routes"
	"github.com/lictor-ha/lictor/templates"
)

// FuzzHAProxy: whatever stands in Consul, each line of the shipped haproxy.cfg is one that
// the template has, and no shard takes a line from another.
func FuzzHAProxy(f *testing.F) {
	good, err := json.Marshal(routeTo("10.0.0.1"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add("service/s1", good, `{"api_url":"http://10.0.0.1:8008/patroni"}`)
	f.Add("a/b:c", good, "{\"api_url\":\"http://h:8008\\nprogram x\\n    command id\"}")
	f.Add("x/--x", good, `null`)
	f.Add("x/y", []byte(strings.Replace(string(good), "m-10.0.0.1", `m\n    command id`, 1)), `[`)
	f.Add("x/ä+b", good, `{"api_url":"https://[::1]"}`)
	source, err := templates.Read(templates.HAProxy)
	if err != nil {
		f.Fatal(err)
	}
	c := config.Config{Name: "b1", PgBouncer: config.PgBouncer{Config: "/x/pgbouncer.ini", Admin: "127.0.0.1:6432", User: "pooler"}}
	line := regexp.MustCompile(`^(|global|defaults|listen [A-Za-z0-9._:-]+_(primary|replica)|    (maxconn|mode|retries|timeout|bind|option|http-check|default-server) [ -~]+|` +
		`    server [A-Za-z0-9._:-]+ [A-Za-z0-9._:-]+:\d+ check port \d+)$`)
	f.Fuzz(func(t *testing.T, id string, route []byte, member string) {
		b := routes.NewTable(c)
		b.Merge(routes.Answer{KnownLeader: true, Pairs: []routes.Pair{{Key: "lictor/routes/" + id, Value: route, ModifyIndex: 1}, {Key: "lictor/routes/service/whole", Value: good, ModifyIndex: 1}}})
		known, _ := b.Known()
		shards := map[config.ShardID]ShardRoute{}
		for id, k := range known {
			shards[id] = ShardRoute{Route: k.Route, Index: k.ModifyIndex, First: k.First, Confirmed: k.Confirmed}
		}
		views, _ := View(c, shards, pgbouncer.Version{})
		data := newTemplateData(nil)
		defer data.close()
		// Every member's key that the template asks for holds the same.
		for _, v := range views {
			ports := map[string]memberPort{}
			for _, m := range append([]cluster.RouteMember{v.Route.Leader}, v.Route.Replicas...) {
				ports[m.Name] = portOf(m.Name, []byte(member))
			}
			d := newMemberPorts(v)
			data.brain.Remember(d, ports)
			data.followed[d.String()] = &followed{dependency: d, cancel: func() {}}
		}
		r := &Renderer{config: c, data: data, label: templates.HAProxy}
		text, err := r.Render(source, views, pgbouncer.Version{})
		if err != nil {
			t.Fatalf("%q %q %q: %v", id, route, member, err)
		}
		for l := range strings.SplitSeq(string(text), "\n") {
			if !line.MatchString(l) {
				t.Errorf("%q %q %q: line %q", id, route, member, l)
			}
		}
		if !strings.Contains(string(text), "listen whole_primary\n") && !strings.Contains(string(text), ":whole_primary\n") && !strings.Contains(string(text), "3awhole_primary") {
			t.Errorf("%q displaced another shard:\n%s", id, text)
		}
	})
}

// FuzzServices: an instance of a service that passes is made of words, hosts and ports.
func FuzzServices(f *testing.F) {
	f.Add("svc", "10.0.0.1", "tag", "note", 80)
	f.Add("svc\nx", "10.0.0.1 check", "a b", "x\nprogram", -1)
	f.Add("", "", "", "", 0)
	f.Add("--x", "::1", "\x1b", "\u202e", 99999)
	f.Fuzz(func(t *testing.T, name, address, tag, note string, port int) {
		s := &dependency.HealthService{
			Name: name, ID: name, Node: name, Address: address, NodeAddress: address, Port: port, Tags: []string{tag, "t"},
			ServiceMeta: map[string]string{"note": note, tag: "x"}, NodeTaggedAddresses: map[string]string{"wan": address},
			ServiceTaggedAddresses: map[string]api.ServiceAddress{"wan": {Address: address, Port: port}},
		}
		clean, err := cleanService(s)
		if err != nil {
			if !printable.Printable(strings.ReplaceAll(err.Error(), "\n", "")) {
				t.Errorf("%q", err)
			}
			return
		}
		text := fmt.Sprint(clean.Name, clean.ID, clean.Node, clean.Address, clean.NodeAddress, clean.Tags, clean.ServiceMeta, clean.NodeTaggedAddresses, clean.ServiceTaggedAddresses)
		if !printable.Printable(text) || strings.ContainsAny(text, "'\"\\`$;|&<>()*?!#") || clean.Port < 0 || clean.Port > 65535 {
			t.Errorf("%q passes", text)
		}
		if n, err := haproxyName(name); err == nil && !regexp.MustCompile(`^[A-Za-z0-9._:-]+$`).MatchString(n) {
			t.Errorf("%q is %q to HAProxy", name, n)
		}
	})
}
