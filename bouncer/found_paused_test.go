package bouncer

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/bouncertest"
)

// A bouncer that starts does not know why an earlier one held clients: they are not sent to a primary that is dead
// or none any more, though Consul still says that it leads. Nor are they by another configuration.
func TestRestartKeepsClientsOfDeadPrimaryWaiting(t *testing.T) {
	bouncertest.NeedInHotStandby(t)
	for _, event := range []string{"restart", "SIGHUP"} {
		for _, primary := range []string{"refused", "silent", "replica"} {
			t.Run(event+"-"+primary, func(t *testing.T) {
				w := newWorld(t, nil)
				var port int
				answer, back := w.waiting(func(m cluster.RouteMember) {
					port = m.Port
					if err := execute(m, "CREATE ROLE pooler LOGIN"); err != nil {
						t.Fatal(err)
					}
				})
				if event == "restart" {
					w.stop()
				}
				switch primary {
				case "silent": // connections are taken, and nobody says anything
					listener, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port))
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { _ = listener.Close() })
				case "replica":
					back(func(data string) {
						signal := filepath.Join(data, "standby.signal")
						if err := errors.Join(os.WriteFile(signal, nil, 0o600), bouncertest.GiveAway(signal)); err != nil {
							t.Fatal(err)
						}
					})
				}
				before := strings.Count(w.log.String(), "PgBouncer answers")
				if event == "restart" {
					w.bouncer()
				} else {
					w.changes <- w.config
				}
				var asking sync.WaitGroup
				const most = 60 // of the 100 that PgBouncer lets in
				answers := make(chan error, most)
				n := 0
				w.await("the primary being found out", func() error {
					if n < most {
						n++
						client := w.connect("s1")
						asking.Go(func() { answers <- <-w.awaitMember1(client) })
					}
					if strings.Count(w.log.String(), "PgBouncer answers") == before {
						return errors.New("the bouncer has not looked at PgBouncer yet")
					}
					s, err := w.status()
					if one := s.Shards["service/s1"]; err == nil && (!one.Held || !one.Unhealthy || !one.Paused) {
						err = fmt.Errorf("%+v", one)
					}
					return err
				})
				time.Sleep(300 * time.Millisecond) // what is tested is that nothing happens
				w.put(w.keys.Route(), w.route(1, cluster.RouteOpen))
				if err := <-answer; err != nil {
					t.Errorf("the client that waited got %v", err)
				}
				asking.Wait()
				close(answers)
				for err := range answers {
					if err != nil {
						t.Errorf("a new client got %v", err)
					}
				}
			})
		}
	}
}
