package faults

import (
	"context"

	"github.com/lictor-ha/lictor/e2e/lab"
)

// partitions are faults of the network. All of them drop packets; nobody is told.
func partitions() []Fault {
	lost := Expect{Leader: MustChange, Writes: Failover, AsyncLoss: true}
	return []Fault{
		{Name: "partition-primary", Inject: isolate(primary), Hold: failover, Expect: lost},
		{Name: "partition-replica", Inject: isolate(standby), Hold: pastLease, Expect: Expect{Leader: Stays, Writes: Standby}},
		{
			// Two of three Consul servers are cut off with them: nobody can lead.
			Name: "partition-both", Inject: isolate(primary, standby), Hold: pastLease,
			Expect: Expect{Leader: MayChange, Writes: Outage, AsyncLoss: true},
		},
		{Name: "partition-in", Inject: oneWay(func(primary, other *lab.Host) (from, to *lab.Host) { return other, primary }), Hold: failover, Expect: lost},
		{Name: "partition-out", Inject: oneWay(func(primary, other *lab.Host) (from, to *lab.Host) { return primary, other }), Hold: failover, Expect: lost},
		{Name: "primary-cut-from-consul", Inject: cutFromConsul, Hold: outage, Expect: Expect{Leader: Stays, Writes: Nothing}},
		{Name: "primary-cut-from-clients", Inject: cutFromClients, Hold: pastLease, Expect: Expect{Leader: Stays, Writes: Outage}},
	}
}

func primary(s *Stage) *lab.Member { return s.Primary }
func standby(s *Stage) *lab.Member { return s.Standby }

func isolate(victims ...func(*Stage) *lab.Member) func(context.Context, *Stage) error {
	return func(ctx context.Context, s *Stage) error {
		for _, victim := range victims {
			m := victim(s)
			s.Target("isolating", m.Name)
			s.Undo(m.Heal)
			if err := m.Isolate(ctx); err != nil {
				return err
			}
		}
		return nil
	}
}

func oneWay(direction func(primary, other *lab.Host) (from, to *lab.Host)) func(context.Context, *Stage) error {
	return func(ctx context.Context, s *Stage) error {
		s.Undo(s.Primary.Heal)
		s.Target("cutting off, in one direction,", s.Primary.Name)
		return s.eachOther(func(other *lab.Host) error {
			from, to := direction(s.Primary.Host, other)
			return from.CutTo(ctx, to)
		})
	}
}

func cutFromConsul(ctx context.Context, s *Stage) error {
	s.Undo(s.Primary.Heal)
	s.Target("dropping all of Consul's packets to and from", s.Primary.Name)
	return s.eachOther(func(other *lab.Host) error {
		return s.Primary.CutPorts(ctx, other, lab.ConsulPorts()...)
	})
}

func cutFromClients(ctx context.Context, s *Stage) error {
	s.Undo(s.Primary.Heal)
	s.Target("dropping all packets between the poolers and", s.Primary.Name)
	for _, b := range s.Lab.BouncerHosts() {
		if err := b.CutTo(ctx, s.Primary.Host); err != nil {
			return err
		}
		if err := s.Primary.CutTo(ctx, b.Host); err != nil {
			return err
		}
	}
	return nil
}

// eachOther runs f for every host but the primary's.
func (s *Stage) eachOther(f func(*lab.Host) error) error {
	for _, h := range s.Lab.Hosts() {
		if h == s.Primary.Host {
			continue
		}
		if err := f(h); err != nil {
			return err
		}
	}
	return nil
}
