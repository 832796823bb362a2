package bouncer

import (
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/bouncertest"
)

// While a backend's crash makes PostgreSQL recover in place, clients that come wait
// for it: it is there, but lets nobody in.
func TestRecoveringPrimaryMakesClientsWait(t *testing.T) {
	w := newWorld(t, nil)
	member := bouncertest.FakePostgres(t, &pgproto3.ErrorResponse{Severity: "FATAL", Code: "57P03", Message: "the database system is in recovery mode"})
	r := w.route(0, cluster.RouteOpen)
	w.put(w.keys.Route(), r)
	w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	client := w.connect("s1")
	w.exec(client, "SELECT 1")
	r.Leader, r.Timeline = member, 2
	w.put(w.keys.Route(), r)
	w.awaitShard("the new leader", func(s ShardStatus) bool { return s.Port == member.Port && s.VerifiedAt != nil })
	answer := w.awaitMember1(client)
	w.awaitShard("hold", func(s ShardStatus) bool { return s.Held && s.Unhealthy && s.Paused })
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	if err := <-answer; err != nil {
		t.Fatalf("the waiting client got %v", err)
	}
}
