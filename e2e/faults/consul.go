package faults

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/e2e/lab"
)

// consulFaults are faults of Consul alone, and of the server that is lost with
// its host. Losing all of Consul costs nothing while the members see each other.
func consulFaults() []Fault {
	nothing := Expect{Leader: Stays, Writes: Nothing}
	return []Fault{
		{Name: "consul-leader-loss", Inject: consulLeaderLoss, Hold: outage, Expect: nothing},
		{Name: "consul-all-hang", Inject: consulHangs, Hold: outage, Expect: nothing},
		{Name: "consul-all-killed", Inject: consulKilled, Hold: outage, Expect: nothing},
		{Name: "consul-data-loss", Inject: consulDataLoss, Hold: briefly, Expect: nothing},
		{Name: "consul-rolling-leave", Inject: consulRollingLeave, Expect: nothing},
		{Name: "consul-agent-restart", Inject: consulAgentRestart, Expect: nothing},
		{
			Name: "consul-server-lost-with-primary", Inject: consulLeaderWithPrimary, Hold: failover,
			Expect: Expect{Leader: MustChange, Writes: Failover, AsyncLoss: true},
		},
	}
}

func consulLeaderLoss(ctx context.Context, s *Stage) error {
	leader, err := s.Lab.ConsulLeader(ctx)
	if err != nil {
		return err
	}
	s.Target("killing Consul's leader on", leader.Name)
	s.Undo(leader.Start)
	return leader.Consul().Kill(ctx)
}

func consulHangs(_ context.Context, s *Stage) error {
	for _, server := range s.Lab.ConsulServers() {
		s.Target("stopping (SIGSTOP) Consul on", server.Name)
		if err := s.freeze(server.Consul()); err != nil {
			return err
		}
	}
	return nil
}

func consulKilled(_ context.Context, s *Stage) error {
	s.Undo(s.Lab.StartConsul)
	var errs []error
	for _, server := range s.Lab.ConsulServers() {
		s.Target("killing Consul on", server.Name)
		errs = append(errs, server.Consul().Signal(syscall.SIGKILL))
	}
	return errors.Join(errs...)
}

// consulDataLoss makes Consul anew, without anything in it.
func consulDataLoss(ctx context.Context, s *Stage) error {
	var errs []error
	for _, server := range s.Lab.ConsulServers() {
		s.Target("killing Consul, and removing its data, on", server.Name)
		errs = append(errs, server.Consul().Kill(ctx), server.Wipe())
	}
	return errors.Join(append(errs, s.Lab.StartConsul(ctx))...)
}

// consulRollingLeave is how Consul is upgraded: server by server, the leader
// last, each one by a graceful leave.
func consulRollingLeave(ctx context.Context, s *Stage) error {
	servers := s.Lab.ConsulServers()
	leader, err := s.Lab.ConsulLeader(ctx)
	if err != nil {
		return err
	}
	slices.SortStableFunc(servers, func(a, b *lab.ConsulServer) int {
		return boolInt(a.Name == leader.Name) - boolInt(b.Name == leader.Name)
	})
	for _, server := range servers {
		s.Target("letting Consul leave, and start again, on", server.Name)
		s.Undo(server.Start)
		if err := server.Client().Agent().Leave(); err != nil {
			return fmt.Errorf("letting Consul on %s leave: %w", server.Name, err)
		}
		select {
		case <-server.Consul().Done():
		case <-ctx.Done():
			return fmt.Errorf("letting Consul on %s leave: it does not end: %w", server.Name, context.Cause(ctx))
		}
		if err := server.Start(ctx); err != nil {
			return err
		}
		if err := s.awaitConsulWhole(ctx); err != nil {
			return err
		}
	}
	return nil
}

// consulAgentRestart restarts the Consul of the primary's host and removes its
// node from the catalog meanwhile, which destroys every session that was made
// through it.
func consulAgentRestart(ctx context.Context, s *Stage) error {
	i := slices.IndexFunc(s.Lab.ConsulServers(), func(c *lab.ConsulServer) bool { return c.Host == s.Primary.Host })
	local := s.Lab.ConsulServers()[i]
	s.Target("restarting, and deregistering, Consul on", local.Name)
	s.Undo(local.Start)
	if err := local.Consul().Stop(ctx); err != nil {
		return err
	}
	err := await(ctx, "deregistering "+local.Name, func(ctx context.Context) error {
		return s.Lab.Consul(ctx, func(ctx context.Context, client *api.Client) error {
			_, err := client.Catalog().Deregister(&api.CatalogDeregistration{Node: local.Name}, new(api.WriteOptions).WithContext(ctx))
			return err
		})
	})
	if err != nil {
		return err
	}
	return local.Start(ctx)
}

// consulLeaderWithPrimary loses the primary's host when it also leads Consul.
func consulLeaderWithPrimary(ctx context.Context, s *Stage) error {
	err := await(ctx, "moving Consul's leadership to "+s.Primary.Name, func(ctx context.Context) error {
		leader, err := s.Lab.ConsulLeader(ctx)
		if err != nil {
			return err
		}
		if leader.Host == s.Primary.Host {
			return nil
		}
		// To whom is Consul's choice; asked again and again it comes round.
		_, err = leader.Client().Operator().RaftLeaderTransfer("", new(api.QueryOptions).WithContext(ctx))
		return errors.Join(fmt.Errorf("%s leads", leader.Name), err)
	})
	if err != nil {
		return err
	}
	return losePrimary(ctx, s)
}

// awaitConsulWhole waits until all servers are voters and one of them leads.
func (s *Site) awaitConsulWhole(ctx context.Context) error {
	servers := s.Lab.ConsulServers()
	return await(ctx, "Consul is not whole", func(ctx context.Context) error {
		return s.Lab.Consul(ctx, func(ctx context.Context, client *api.Client) error {
			raft, err := client.Operator().RaftGetConfiguration(new(api.QueryOptions).WithContext(ctx))
			if err != nil {
				return err
			}
			voters := 0
			for _, server := range raft.Servers {
				voters += boolInt(server.Voter)
			}
			members, err := client.Agent().MembersOpts(api.MembersOpts{})
			if err != nil {
				return err
			}
			alive := 0
			for _, m := range members {
				alive += boolInt(m.Status == 1) // serf's StatusAlive
			}
			if alive < len(servers) {
				// Gossip tries a lost server again every 30 s only.
				for _, server := range servers {
					_ = client.Agent().Join(server.Address, false) // the next look shows whether it helped
				}
			}
			if voters != len(servers) || alive < len(servers) {
				return fmt.Errorf("%d servers vote and %d are alive, of %d", voters, alive, len(servers))
			}
			return nil
		})
	})
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}
