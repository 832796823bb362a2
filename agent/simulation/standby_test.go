package simulation

import (
	"slices"
	"testing"
	"time"
)

// standbyShard is a shard that is the standby of another one from its beginning.
func standbyShard(config map[string]any, events ...Event) Schedule {
	s := directed(3, config, events...)
	s.Standby = true
	return s
}

// Whatever becomes of its leaders, a standby shard has no primary, and somebody follows the remote
// one in the end.
func TestStandbyShard(t *testing.T) {
	for name, s := range map[string]Schedule{
		"the leader's host is lost":   standbyShard(alone(8), during(30, 30, HostLoss, a), during(70, 20, HostLoss, b)),
		"its PostgreSQL is killed":    standbyShard(alone(8), ev(30, KillPostmaster, a), ev(40, KillPostmaster, b), ev(50, KillPostmaster, c)),
		"it is cut off":               standbyShard(alone(5), during(30, 30, Isolate, a), during(70, 10, Isolate, b)),
		"its agent is killed":         standbyShard(alone(5), during(30, 20, KillAgent, a), during(60, 20, KillAgent, b)),
		"switchovers":                 standbyShard(alone(8), ev(30, Switchover, b), ev(50, Switchover, c), ev(70, Switchover, a)),
		"Consul is away":              standbyShard(map[string]any{"ttl": 8}, during(30, 40, ConsulDown, a)),
		"Consul is away, no failsafe": standbyShard(alone(8), during(30, 40, ConsulDown, a)),
		"the remote one is lost":      standbyShard(alone(8), during(30, 60, LoseRemote, a), during(50, 10, HostLoss, a), ev(70, KillPostmaster, b)),
		"synchronous mode":            standbyShard(map[string]any{"ttl": 8, "synchronous_mode": true}, during(30, 30, HostLoss, a)),
		"quorum":                      standbyShard(map[string]any{"ttl": 8, "synchronous_mode": "quorum"}, during(30, 30, HostLoss, a)),
	} {
		t.Run(name, func(t *testing.T) { survived(t, s) })
		t.Run(name+", a new shard", func(t *testing.T) {
			s.Fresh = true
			survived(t, s)
		})
	}
}

// When standby_cluster is removed the standby leader is promoted, with all that it has received: the
// remote primary is lost, and perhaps the leader at that moment.
func TestStandbyShardIsPromoted(t *testing.T) {
	for name, s := range map[string]Schedule{
		"the remote one is lost":     standbyShard(alone(8), during(30, 90, LoseRemote, a), ev(40, EndStandby, a)),
		"and the leader is":          standbyShard(alone(8), during(30, 90, LoseRemote, a), during(39.5, 30, HostLoss, a), ev(40, EndStandby, a)),
		"the leader is just after":   standbyShard(alone(8), during(30, 90, LoseRemote, a), ev(40, EndStandby, a), during(40.5, 30, HostLoss, a)),
		"in synchronous mode":        standbyShard(map[string]any{"ttl": 8, "synchronous_mode": true}, ev(40, EndStandby, a), during(60, 20, HostLoss, a)),
		"in quorum mode":             standbyShard(map[string]any{"ttl": 8, "synchronous_mode": "quorum"}, ev(40, EndStandby, a), during(60, 20, HostLoss, a)),
		"while the leader is paused": standbyShard(alone(8), during(39, 20, StopAgent, a), ev(40, EndStandby, a)),
	} {
		t.Run(name, func(t *testing.T) { survived(t, s) })
	}
}

// A shard with a primary is made the standby of another one, which has left its history: the primary
// is stopped, rewound, and follows.
func TestPrimaryShardIsDemoted(t *testing.T) {
	for name, config := range map[string]map[string]any{
		"asynchronous": alone(8),
		"synchronous":  {"ttl": 8, "synchronous_mode": true},
		"quorum":       {"ttl": 8, "synchronous_mode": "quorum"},
	} {
		t.Run(name, func(t *testing.T) {
			survived(t, directed(3, config, ev(30, BeginStandby, a), during(50, 20, HostLoss, a), ev(90, KillPostmaster, b)))
		})
		t.Run(name+", and lost meanwhile", func(t *testing.T) {
			survived(t, directed(3, config, ev(30, BeginStandby, a), during(31, 20, HostLoss, a)))
		})
		t.Run(name+", and made a primary again", func(t *testing.T) {
			survived(t, directed(3, config, ev(30, BeginStandby, a), ev(60, EndStandby, a), during(80, 10, HostLoss, a)))
		})
	}
}

// Faults by chance, in a shard that is a standby for five minutes of ten.
func TestStandbyShardAtRandom(t *testing.T) {
	t.Parallel()
	for seed := uint64(1); seed <= timings(); seed++ {
		s := Generate(seed)
		s.Standby, s.Patroni, s.NoStream, s.Keeps, s.Operator, s.Adopted, s.Cascade = true, nil, nil, 0, false, false, nil
		s.Events = slices.DeleteFunc(s.Events, func(e Event) bool {
			return slices.Contains([]Kind{Pause, ByHand, RestoreSnapshot, SetSyncMode}, e.Kind)
		})
		for at := 60.0; at < 500; at += 100 {
			s.Events = append(s.Events, during(at, 30, LoseRemote, a))
		}
		s.Events = append(s.Events, Event{At: 5 * time.Minute, Kind: EndStandby})
		if v := Run(s, Options{}).Violation; v != nil {
			t.Errorf("seed %d: %v", seed, v)
			report(t, s, Options{})
			return
		}
	}
}
