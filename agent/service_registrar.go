package agent

import (
	"context"
	"net/url"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/cluster/settings"
	"github.com/lictor-ha/lictor/agent/consul"
)

const (
	// serviceLook is how often it is made sure that Consul still knows the service:
	// it forgets one whose check has failed for long.
	serviceLook = 10 * time.Second
	// serviceLimit bounds one request to the local Consul agent.
	serviceLimit = 2 * time.Second
	// serviceInterval is how often Consul checks the member, Patroni's.
	serviceInterval = 5 * time.Second
	// serviceForget is after how many ttl of a failing check Consul is to forget the
	// service, Patroni's.
	serviceForget = 5
)

// serviceRegistrar keeps this member's service in Consul's catalogue (consul.register_service),
// so that Consul DNS answers primary.SCOPE.service.consul and replica.SCOPE...: as
// Patroni does, registered once PostgreSQL runs, changed with the role, taken back when
// it has been stopped. Nothing of Lictor's rests on it.
type serviceRegistrar struct {
	store    *consul.Store
	id, name string
	tags     []string
	interval time.Duration
	tlsName  string

	told   consul.Service // what Consul knows; zero: nothing, or not known
	looked time.Time      // when it was made sure of
}

// newServiceRegistrar is nil where no service is wanted.
func newServiceRegistrar(store *consul.Store, c settings.Consul, scope, name string) *serviceRegistrar {
	if !c.RegisterService {
		return nil
	}
	interval, err := time.ParseDuration(c.ServiceCheckInterval)
	if err != nil { // not set: it was checked
		interval = serviceInterval
	}
	return &serviceRegistrar{
		store: store, id: scope + "/" + name, name: serviceName(scope), tags: c.ServiceTags,
		interval: interval, tlsName: c.ServiceCheckTLSServerName,
	}
}

// serviceName is a scope as DNS takes it.
func serviceName(scope string) string {
	return strings.NewReplacer(".", "-", "_", "-", " ", "-").Replace(strings.ToLower(scope))
}

// service is what the catalogue is to say of a member that runs.
func (c *serviceRegistrar) service(s api.State) (consul.Service, error) {
	host, port, err := s.Member.Address()
	if err != nil {
		return consul.Service{}, err
	}
	rest, err := url.Parse(s.Member.APIURL)
	if err != nil {
		return consul.Service{}, err
	}
	role := strings.ReplaceAll(s.Member.Role, "_", "-")
	tags := append(c.tags[:len(c.tags):len(c.tags)], role)
	switch role {
	case cluster.RoleMaster:
		tags = append(tags, cluster.RolePrimary)
	case cluster.RolePrimary:
		tags = append(tags, cluster.RoleMaster)
	}
	return consul.Service{
		ID: c.id, Name: c.name, Address: host, Port: port, Tags: tags,
		CheckURL: rest.Scheme + "://" + rest.Host + "/" + role, CheckInterval: c.interval, CheckServerName: c.tlsName,
		Forget: serviceForget * s.Dynamic.TTL,
	}, nil
}

// follow brings the catalogue in step with the member.
func (c *serviceRegistrar) follow(ctx context.Context, s api.State) error {
	ctx, cancel := context.WithTimeout(ctx, serviceLimit)
	defer cancel()
	switch s.Member.State {
	case cluster.StateRunning:
		want, err := c.service(s)
		if err != nil {
			return err
		}
		return c.register(ctx, want)
	case cluster.StateStopped:
		return c.withdraw(ctx)
	}
	return nil
}

// register makes the service known unless Consul has it as it is to be, of which it
// makes sure now and then.
func (c *serviceRegistrar) register(ctx context.Context, want consul.Service) error {
	if c.told.Equal(want) {
		if time.Since(c.looked) < serviceLook {
			return nil
		}
		known, err := c.store.HasService(ctx, c.id)
		if err != nil {
			return err
		}
		c.looked = time.Now()
		if known {
			return nil
		}
	}
	if err := c.store.RegisterService(ctx, want); err != nil {
		return err
	}
	c.told, c.looked = want, time.Now()
	return nil
}

func (c *serviceRegistrar) withdraw(ctx context.Context) error {
	if c.told.ID == "" {
		return nil
	}
	if err := c.store.DeregisterService(ctx, c.id); err != nil {
		return err
	}
	c.told = consul.Service{}
	return nil
}

// keep keeps the service in step with the member until the agent ends, and
// takes it back then if PostgreSQL was stopped.
func (c *serviceRegistrar) keep(ctx context.Context, b *board, log zerolog.Logger) {
	problem := ""
	for ctx.Err() == nil {
		changed, told := b.changed(), c.told
		if err := c.follow(ctx, b.State()); err != nil {
			if text := err.Error(); text != problem && ctx.Err() == nil {
				problem = text
				log.Warn().Err(err).Msg("the member's service in Consul's catalogue is not up to date")
			}
			pause(ctx, serviceLimit)
			continue
		}
		problem = ""
		if c.told.ID != "" && !c.told.Equal(told) {
			log.Info().Str("service", c.name).Strs("tags", c.told.Tags).Msg("registered in Consul's catalogue")
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
	state := b.State()
	if state.Member.State != cluster.StateStopped {
		return // PostgreSQL goes on without its agent
	}
	if err := c.follow(context.WithoutCancel(ctx), state); err != nil {
		log.Warn().Err(err).Msg("the member's service stays in Consul's catalogue until its check has failed for long")
	}
}
