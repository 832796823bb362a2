package bouncer

import (
	"encoding/binary"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

// A primary that is called by another name is no other one: nobody's transaction ends for that,
// neither one from before nor one that has begun since.
func TestRenamedPrimaryLosesNoClients(t *testing.T) {
	w := newWorld(t, nil)
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	before := w.connect("s1")
	w.exec(before, "BEGIN")
	w.exec(before, "SELECT 1")
	renamed := w.route(0, cluster.RouteOpen)
	renamed.Leader.Host = "localhost"
	w.put(w.keys.Route(), renamed)
	w.awaitShard("the new name", func(s ShardStatus) bool { return s.Host == "localhost" && s.VerifiedAt != nil })
	since := w.connect("s1")
	w.exec(since, "BEGIN")
	w.exec(since, "SELECT 1")
	time.Sleep(1500 * time.Millisecond) // what is tested is that nothing happens: a deposed primary's would be looked for twice
	w.exec(before, "COMMIT")
	w.exec(since, "COMMIT")
}

// The clients of a lost primary are freed also when its name leads nowhere any more, as those of
// hosts that are gone do.
func TestLostPrimaryWithoutName(t *testing.T) {
	const name = "db1.lictor.invalid"
	server := serveName(t, name)
	w := newWorld(t, func(c *config.Config) {
		c.PgBouncer.Settings = map[string]any{"resolv_conf": filepath.Join(filepath.Dir(c.PgBouncer.Config), "resolv.conf")}
		c.HoldTimeout = 1 // the bouncer does not reach that primary, and holds its clients
	})
	w.write("resolv.conf", "nameserver "+server+"\n") // the bouncer itself does not know the name
	named := w.route(0, cluster.RouteOpen)
	named.Leader.Host = name
	w.put(w.keys.Route(), named)
	w.bouncer()
	w.pgbouncer()
	w.awaitLeader(0)
	client := w.connect("s1")
	freed := make(chan error, 1)
	go func() {
		_, err := client.Exec(w.ctx, "SELECT pg_sleep(600)").ReadAll()
		freed <- err
	}()
	w.awaitPool("a query that runs", func(p pgbouncer.Pool) bool { return p.Database == "s1" && p.ServersActive > 0 })
	w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
	if err := <-freed; err == nil || w.ctx.Err() != nil {
		t.Errorf("the client of the lost primary: %v", err)
	}
	w.awaitLeader(1)
	if got := w.where(w.connect("s1")); got != 1 {
		t.Errorf("answered by member %d", got)
	}
}

// serveName answers for one name, by 127.0.0.1, and returns where.
func serveName(t *testing.T, name string) (server string) {
	t.Helper()
	server = "127.77.0.53"
	conn, err := net.ListenPacket("udp", net.JoinHostPort(server, "53"))
	if errors.Is(err, os.ErrPermission) {
		t.Skipf("serving names needs a privilege: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	t.Cleanup(func() {
		_ = conn.Close()
		<-ended
	})
	go func() {
		defer close(ended)
		query := make([]byte, 512)
		for {
			n, from, err := conn.ReadFrom(query)
			if err != nil {
				return
			}
			if answer := answerName(query[:n], name); answer != nil {
				_, _ = conn.WriteTo(answer, from) // who asks asks again
			}
		}
	}()
	return server
}

// answerName is the answer to a query of the DNS (RFC 1035), nil to what is none.
func answerName(query []byte, name string) []byte {
	const header, addressRecord = 12, 1
	at, asked := header, ""
	for at < len(query) && query[at] > 0 {
		end := at + 1 + int(query[at])
		if end > len(query) {
			return nil
		}
		asked, at = asked+"."+string(query[at+1:end]), end
	}
	if at+5 > len(query) {
		return nil
	}
	question := query[header : at+5]
	found := asked == "."+name && binary.BigEndian.Uint16(query[at+1:]) == addressRecord
	answer := append([]byte{}, query[:2]...) // its id
	answer = append(answer, 0x84, 0, 0, 1, 0, 0, 0, 0, 0, 0)
	answer = append(answer, question...)
	if !found {
		if asked != "."+name {
			answer[3] = 3 // there is no such name
		}
		return answer
	}
	answer[7] = 1
	answer = append(answer, 0xc0, header, 0, addressRecord, 0, 1, 0, 0, 0, 1, 0, 4) // the name of the question, for a second
	return append(answer, 127, 0, 0, 1)
}
