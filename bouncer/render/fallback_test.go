package render

import (
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

func TestWithRoutes(t *testing.T) {
	shard := func(name, host string, port int) *Shard {
		return &Shard{
			ID: config.ShardID("service/" + name), Databases: []config.Database{{Name: name, DBName: name}},
			Route:   cluster.Route{Leader: cluster.RouteMember{Name: "x", Host: host, Port: port}},
			readers: Readers{Host: host, Port: port},
		}
	}
	good := `; by hand
[databases]
a = host=old port=1 dbname=a password='it''s' pool_size=3
a_ro = host=r1,r2 port=1 dbname=a
alias = host=old port=1 dbname=other
b = host=same port=2 dbname=b
c = host=one port=3
d = host=one port=3
e = host=one port=3
mine = host=elsewhere port=9
s = host=s port=1
s_ro = host=r1 port=1
t = host=t port=1
* = host=old port=1 user=app
[pgbouncer]
max_client_conn = 7`
	strict := func(name string, readers Readers) *Shard {
		v := shard(name, name, 1)
		v.mode, v.readers = config.ReadersStrict, readers
		return v
	}
	text, err := WithRoutes([]byte(good), []*Shard{
		shard("a", "new", 5), shard("b", "same", 2), shard("c", "p", 3), shard("d", "q", 3), shard("n", "h", 8),
		strict("s", Readers{unserved: true}), strict("t", Readers{Host: "r2", Port: 1}),
	}, pgbouncer.Version{1, 18})
	if err != nil {
		t.Fatal(err)
	}
	want := `; by hand
[databases]
a = host=new port=5 dbname=a password='it''s' pool_size=3
a_ro = host=new port=5 dbname=a
alias = host=new port=5 dbname=other
b = host=same port=2 dbname=b
c = host=p port=3
d = host=q port=3
e = host=one port=3
mine = host=elsewhere port=9
s = host=s port=1
; s_ro: no replica takes readers
t = host=t port=1
* = host=new port=5 user=app
[pgbouncer]
max_client_conn = 7
[databases]
n = host=h port=8 dbname=n
n_ro = host=h port=8 dbname=n
t_ro = host=r2 port=1 dbname=t
`
	if string(text) != want {
		t.Errorf("it is\n%s", text)
	}
	again, err := WithRoutes(text, nil, pgbouncer.Version{})
	if err != nil || string(again) != want {
		t.Errorf("once more: %v\n%s", err, again)
	}
	if _, err := WithRoutes([]byte("no file"), nil, pgbouncer.Version{}); err == nil || !strings.Contains(err.Error(), "last good") {
		t.Errorf("not a file: %v", err)
	}
}

// With a shard that database * follows, it leads to that shard's primary, though it led to
// another's when the file was good, and nowhere is a failover refused for it.
func TestWithRoutesOfAnotherFallback(t *testing.T) {
	at := func(name, host string) *Shard {
		v := &Shard{
			ID: config.ShardID("service/" + name), Databases: []config.Database{{Name: name, DBName: name}},
			Route: cluster.Route{Leader: cluster.RouteMember{Name: "x", Host: host, Port: 1}}, mode: config.ReadersOff,
		}
		v.readers.unserved = true
		return v
	}
	good := "[databases]\na = host=a1 port=1\nb = host=b1 port=1\n* = host=a1 port=1 pool_size=5\n[pgbouncer]\nadmin_users = pooler\n"
	c := config.Config{PgBouncer: config.PgBouncer{Admin: "127.0.0.1:6432", User: "pooler"}}
	for _, to := range []struct{ a, b string }{{"a1", "b1"}, {"a1", "b2"}, {"a2", "b1"}, {"b1", "a1"}} {
		a, b := at("a", to.a), at("b", to.b)
		b.Fallback = true
		views := []*Shard{a, b}
		text, err := WithRoutes([]byte(good), views, pgbouncer.Version{1, 18})
		if err != nil {
			t.Fatal(err)
		}
		if want := "\n* = host=" + to.b + " port=1 pool_size=5\n"; !strings.Contains(string(text), want) {
			t.Errorf("a at %s, b at %s: no %q in\n%s", to.a, to.b, want, text)
		}
		file, err := Check(text, views, c, pgbouncer.Version{})
		if err != nil {
			t.Error(err)
		}
		if err := CheckFallback(file, views...); err != nil {
			t.Error(err)
		}
	}
}
