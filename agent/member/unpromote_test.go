package member

import (
	"errors"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
)

// unkillable is a PostgreSQL whose first kill ends so, and the next one never.
type unkillable struct {
	Postgres
	err   error
	kills int
}

func (u *unkillable) Kill(_ *Work, _ time.Duration, done func(error)) {
	if u.kills++; u.kills == 1 {
		done(u.err)
	}
}

func (*unkillable) Look(_ *Work, _ time.Duration, done func(Found, bool)) {
	done(Found{Data: Data{State: ha.DataValid}}, true)
}

type clockAt cluster.Instant

func (c clockAt) Now() cluster.Instant { return cluster.Instant(c) }
func (clockAt) Wall() time.Time        { return time.Time{} }

// A PostgreSQL that was asked to promote and cannot be killed may do so at any time. So its
// member drops the lease, and gives it to nobody: the others wait for its end, and the guard
// keeps its deadline. What lingers on a disk is dead all the same.
func TestPostgresThatWasAskedToPromoteCannotBeKilled(t *testing.T) {
	t.Parallel()
	const now = cluster.Instant(time.Hour)
	alone := cluster.NewSync("a", nil)
	for _, tt := range []struct {
		name string
		err  error
		key  *cluster.Sync
		held bool
	}{
		{"killed", nil, nil, true},
		{"lingers", ErrLingering, nil, true},
		{"not killed", errors.New("whose process this is cannot be told"), nil, false},
		{"not killed, with the key sync", errors.New("whose process this is cannot be told"), &alone, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			u := &unkillable{err: tt.err}
			m := New(Settings{Name: "a", Log: zerolog.Nop()}, Ports{Clock: clockAt(now), Postgres: u}, nil, cluster.Dynamic{})
			m.LeaseState.TookOver(now, 8*time.Second)
			p := &promotion{promoter: &m.promoter, Promote: ha.Promote{Sync: tt.key}, asked: true}
			if tt.key != nil {
				p.index = 150
			}
			p.promoted(&Work{}, errors.New("the connection was lost"), func(error) {})
			if u.kills == 0 || m.LeaseState.Held(now) != tt.held || m.LeaseState.Giving() != nil {
				t.Fatalf("%d kills; the lease is held: %v, given up: %v", u.kills, m.LeaseState.Held(now), m.LeaseState.Giving())
			}
			if !tt.held && u.kills < 2 {
				t.Fatal("it is not killed again")
			}
		})
	}
}

// PostgreSQL counts as asked from its last step on, with the key sync or without it.
func TestPostgresCountsAsAsked(t *testing.T) {
	t.Parallel()
	p := &promotion{promoter: &New(Settings{}, Ports{}, nil, cluster.Dynamic{}).promoter}
	p.replaceSync(func(err error) {
		if err != nil || !p.asked {
			t.Errorf("asked: %v, %v", p.asked, err)
		}
	})
}
