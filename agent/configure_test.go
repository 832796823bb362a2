package agent

import (
	"path/filepath"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/member"
	"github.com/lictor-ha/lictor/agent/postgres"
)

// A configuration that is not valid is not taken, but that it makes the shard a standby of another
// one is heeded by whoever cannot know that it was ever anything else: nobody is promoted.
func TestStandbyClusterIsHeeded(t *testing.T) {
	for name, c := range map[string]struct{ known, patroni, keepsOff bool }{
		"no valid one is known":   {false, false, true},
		"the last good one stays": {true, false, false},
		"Patroni's leader obeys":  {true, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			conf := &dynamicConfig{
				board: newBoard(&runner{}), m: member.New(member.Settings{}, member.Ports{}, nil, cluster.Dynamic{}), log: zerolog.Nop(), valid: c.known,
			}
			good, _, err := cluster.ParseDynamic(map[string]any{"ttl": 5})
			if err != nil {
				t.Fatal(err)
			}
			conf.m.Dynamic = good
			var s cluster.Snapshot
			s.Config = cluster.Entry[[]byte]{Value: []byte(`{"ttl":1,"standby_cluster":{"host":"db9"}}`), ModifyIndex: 7}
			s.Status.ModifyIndex = 8
			if !c.patroni {
				s.Status.Value.Lictor = &cluster.Beat{Owner: "a"}
			}
			conf.apply(s)
			if keepsOff := conf.m.Dynamic.StandbyCluster.On(); keepsOff != c.keepsOff {
				t.Errorf("keeps off: %t, want %t", keepsOff, c.keepsOff)
			}
			if conf.m.Dynamic.TTL != good.TTL {
				t.Errorf("ttl %s is in force, want %s", conf.m.Dynamic.TTL, good.TTL)
			}
		})
	}
}

// noLauncher starts no PostgreSQL.
type noLauncher struct{ postgres.Launcher }

func (noLauncher) Parent() int { return 0 }

// When Consul has lost its data, or the key config, what is in force is written there again, and
// not what was when the agent began: synchronous mode or a pause would be over.
func TestWhatIsInForceIsWrittenAgain(t *testing.T) {
	pg, err := postgres.New(postgres.Settings{Postgres: config.Postgres{Listen: "127.0.0.1:5432", DataDir: filepath.Join(t.TempDir(), "data")}, Launcher: noLauncher{}})
	if err != nil {
		t.Fatal(err)
	}
	conf := &dynamicConfig{
		board: newBoard(&runner{}), m: member.New(member.Settings{}, member.Ports{}, nil, cluster.Dynamic{}), log: zerolog.Nop(),
		cfg: &config.Config{Bootstrap: config.Bootstrap{DCS: map[string]any{"ttl": 40}}}, pg: pg,
	}
	written := func(want string) {
		t.Helper()
		if got := string(conf.initial()); got != want {
			t.Errorf("it writes %s, want %s", got, want)
		}
	}
	written(`{"ttl":40}`)
	apply := func(index uint64, value string) {
		var s cluster.Snapshot
		s.Config = cluster.Entry[[]byte]{Value: []byte(value), ModifyIndex: index}
		conf.apply(s)
	}
	apply(7, `{"ttl":50}`)
	apply(8, `{"ttl":50,"synchronous_mode":true}`)
	apply(9, `{"ttl":1}`) // not valid
	conf.apply(cluster.Snapshot{})
	written(`{"ttl":50,"synchronous_mode":true}`)
	conf.resume([]byte(`{"ttl":60,"pause":true}`))
	written(`{"ttl":60,"pause":true}`)
}

func TestTimingOfPatroniIsWrittenAsItsVersionDoes(t *testing.T) {
	given := map[string]any{"ttl": 20, "loop_wait": 2, "retry_timeout": 10}
	for compat, want := range map[string]map[string]any{
		"patroni-3": given,
		"patroni-4": {"ttl": 20, "loop_wait": 1, "retry_timeout": 9},
	} {
		cfg := config.Config{Lictor: config.Lictor{Compat: compat}}
		d, warnings, err := cfg.Lictor.Rules().Parse(given)
		if err != nil || len(warnings) == 0 {
			t.Fatal(warnings, err)
		}
		if got := inForce(compat, d, given); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v, want %v", compat, got, want)
		}
	}
}

// Where PostgreSQL could not be asked of its values, the configuration is written anew after a loop_wait, and once.
func TestValuesAreAskedOfAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, stop := newRunner(t)
		defer stop()
		conf := &dynamicConfig{board: newBoard(r), m: member.New(member.Settings{}, member.Ports{}, nil, cluster.Dynamic{}), log: zerolog.Nop()}
		conf.m.PG.Running, conf.m.Dynamic.LoopWait = true, 2*time.Second
		unasked := false
		step := func() (rewrite bool) {
			err := r.ask(t.Context(), func() error {
				conf.askAgain(func() bool { return unasked })
				rewrite, conf.rewrite = conf.rewrite, false
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			return rewrite
		}
		for _, now := range []struct {
			unasked, rewrite bool
			after            time.Duration
		}{
			{false, false, time.Hour},
			{true, false, time.Second},
			{true, false, time.Second - time.Millisecond},
			{true, false, time.Millisecond},
			{true, true, time.Second}, // and begins again
			{false, false, 3 * time.Second},
			{false, false, time.Hour},
		} {
			unasked = now.unasked
			if got := step(); got != now.rewrite {
				t.Errorf("%+v: %t", now, got)
			}
			time.Sleep(now.after)
			synctest.Wait()
		}
	})
}
