package bouncer

import (
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/config"
)

// A configuration that cannot be followed is given up: the bouncer, its API and the PgBouncer
// that it runs go on with the one before, as often as that happens.
func TestConfigurationThatCannotBeFollowed(t *testing.T) {
	w, _ := supervised(t)
	w.put(w.keys.Route(), w.route(0, cluster.RouteOpen))
	w.bouncer()
	w.awaitLeader(0)
	client := w.connect("s1")
	w.exec(client, "SELECT 1")
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	inUse, noCertificate := w.config, w.config
	inUse.Listen = taken.Addr().String()
	noCertificate.CertFile = w.dir + "/none.pem"
	for i, bad := range []config.Config{inUse, noCertificate, inUse} {
		w.changes <- bad
		w.await("a word on it", func() error {
			if strings.Count(w.log.String(), "the configuration cannot be followed") != i+1 {
				return errors.New("none")
			}
			return nil
		})
		w.put(w.keys.Route(), w.route((i+1)%2, cluster.RouteOpen))
		w.awaitLeader((i + 1) % 2)
		w.awaitHealthy()
		if got := w.where(client); got != (i+1)%2 {
			t.Errorf("the client is at %d", got)
		}
	}
	changed := w.config
	changed.HoldTimeout = 299
	w.changes <- changed
	w.awaitShard("the next configuration", func(s ShardStatus) bool { return s.VerifiedAt != nil && time.Since(*s.VerifiedAt) < time.Minute })
	w.exec(client, "SELECT 1")
}
