package bouncer

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/bouncer/config"
)

// A shard of Patroni's that was upgraded has another system identifier: it is refused, with what to do, and
// followed once that is done.
func TestPatroniShardIsUpgraded(t *testing.T) {
	const namespace = "upgraded-by-patroni"
	w := newWorld(t, func(c *config.Config) {
		c.Shards = []config.Shard{{Namespace: namespace, Scope: "s1", Patroni: true}}
	})
	w.putPatroni(namespace, "s1", 0)
	w.bouncer()
	w.pgbouncer()
	leads := func(member int) {
		t.Helper()
		w.await("the leader", func() error {
			s, err := w.status()
			if got := s.Shards[namespace+"/s1"]; err == nil && (got.Port != w.site.members[member].Port || got.VerifiedAt == nil) {
				err = fmt.Errorf("%+v %v", got, s.Problems)
			}
			return err
		})
	}
	leads(0)
	prefix := namespace + "/s1/"
	m := w.site.members[1]
	w.putRaw(prefix+"initialize", []byte("7000000000000000002"))
	w.putRaw(prefix+"members/db1", []byte(fmt.Sprintf(`{"conn_url":"postgres://%s:%d/postgres","role":"master","state":"running","timeline":1,"xlog_location":100000000}`, m.Host, m.Port)))
	touch := func() { // what is awaited is another leader
		pair, _, err := w.site.client.KV().Get(prefix+"leader", nil)
		if err != nil {
			t.Fatal(err)
		}
		if held, _, err := w.site.client.KV().Acquire(&api.KVPair{Key: pair.Key, Value: pair.Value, Session: pair.Session, Flags: pair.Flags + 1}, nil); err != nil || !held {
			t.Fatalf("%v %v", held, err)
		}
	}
	touch()
	w.await("the refusal", func() error {
		s, err := w.status()
		if err == nil && !strings.Contains(fmt.Sprint(s.Problems), "delete its key initialize") {
			err = fmt.Errorf("%v", s.Problems)
		}
		return err
	})
	leads(0)
	if _, err := w.site.client.KV().Delete(prefix+"initialize", nil); err != nil {
		t.Fatal(err)
	}
	w.putRaw(prefix+"initialize", []byte("7000000000000000002")) // as Patroni's leader does
	leads(1)
	w.await("the end of the problem", func() error {
		if s, err := w.status(); err != nil || len(s.Problems) > 0 {
			return errors.Join(err, fmt.Errorf("%v", s.Problems))
		}
		return nil
	})
}
