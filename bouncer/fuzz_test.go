package bouncer

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster/settings"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
	"github.com/lictor-ha/lictor/bouncer/render"
	"github.com/lictor-ha/lictor/bouncer/routes"
)

// FuzzRoute: whatever Consul holds, what is known can be rendered, and what is
// rendered says exactly what is known.
func FuzzRoute(f *testing.F) {
	good, err := json.Marshal(someRoute("10.0.0.1"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add("service/s1", good)
	f.Add("a b/c;d", []byte(strings.Replace(string(good), "m-10.0.0.1", `]\"'\\`, 1)))
	f.Add("x/[pgbouncer]", good)
	f.Add("x/a=b", good)
	f.Add("x/"+strings.Repeat("long", 20), good)
	c := config.Config{
		Name: "b1", Consul: settings.Consul{Host: "127.0.0.1:8500"}, PgBouncer: config.PgBouncer{Config: "/x/pgbouncer.ini", Admin: "127.0.0.1:6432", User: "pooler"},
	}
	f.Fuzz(func(t *testing.T, id string, value []byte) {
		b := routes.NewTable(c)
		b.Merge(routes.Answer{KnownLeader: true, Pairs: []routes.Pair{{Key: "lictor/routes/" + id, Value: value, ModifyIndex: 1}, {Key: "lictor/routes/service/whole", Value: good, ModifyIndex: 1}}})
		routes, _ := routesOf(b)
		views, _ := render.View(c, routes, pgbouncer.Version{})
		if !slices.ContainsFunc(views, func(v *render.Shard) bool { _, scope := v.ID.Split(); return scope == "whole" || scope == "whole_ro" }) {
			t.Fatal("one shard displaced another")
		}
		r := render.NewRenderer(c, nil, "")
		defer r.Close()
		source, err := r.Template()
		if err != nil {
			t.Fatal(err)
		}
		text, err := r.Render(source, views, pgbouncer.Version{})
		if err != nil {
			t.Fatal(err)
		}
		file, err := render.Check(text, views, c, pgbouncer.Version{})
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		if len(file.Databases) != 2*len(views) || file.Settings["admin_users"] != "pooler" {
			t.Fatalf("%d shards, %d databases\n%s", len(views), len(file.Databases), text)
		}
	})
}
