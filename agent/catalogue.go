package agent

import (
	"context"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

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

// catalogue keeps this member's service in Consul's catalogue (consul.register_service),
// so that Consul DNS answers primary.SCOPE.service.consul and replica.SCOPE...: as
// Patroni does, registered once PostgreSQL runs, changed with the role, taken back when
// it has been stopped. Nothing of Lictor's rests on it.
type catalogue struct {
	store    *consul.Store
	id, name string
	tags     []string
	interval time.Duration
	tlsName  string
}

// newCatalogue is nil where no service is wanted.
func newCatalogue(store *consul.Store, c settings.Consul, scope, name string) *catalogue {
	if !c.RegisterService {
		return nil
	}
	interval, err := time.ParseDuration(c.ServiceCheckInterval)
	if err != nil { // not set: it was checked
		interval = serviceInterval
	}
	return &catalogue{
		store: store, id: scope + "/" + name, name: serviceName(scope), tags: c.ServiceTags,
		interval: interval, tlsName: c.ServiceCheckTLSServerName,
	}
}

// serviceName is a scope as DNS takes it.
func serviceName(scope string) string {
	return strings.NewReplacer(".", "-", "_", "-", " ", "-").Replace(strings.ToLower(scope))
}

// service is what the catalogue is to say of a member that runs.
func (c *catalogue) service(s api.State) (consul.Service, error) {
	pg, err := url.Parse(s.Member.ConnURL)
	if err != nil {
		return consul.Service{}, err
	}
	rest, err := url.Parse(s.Member.APIURL)
	if err != nil {
		return consul.Service{}, err
	}
	host, port := pg.Hostname(), 5432
	if _, text, err := net.SplitHostPort(pg.Host); err == nil {
		if port, err = strconv.Atoi(text); err != nil {
			return consul.Service{}, err
		}
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

// keepCatalogue keeps the service in step with the member until the agent ends.
func (a *Agent) keepCatalogue(ctx context.Context) {
	c := a.catalogue
	if c == nil {
		return
	}
	var (
		told    consul.Service // zero: none, or not known
		looked  time.Time
		problem string
	)
	request := func(f func(context.Context) error) bool {
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), serviceLimit)
		defer cancel()
		err := f(limit)
		switch {
		case err == nil:
			problem = ""
		case err.Error() != problem:
			problem = err.Error()
			a.log.Warn().Err(err).Msg("the member's service in Consul's catalogue is not up to date")
		}
		return err == nil
	}
	stopped := func() {
		if told.ID != "" && request(func(ctx context.Context) error { return c.store.DeregisterService(ctx, c.id) }) {
			told = consul.Service{}
		}
	}
	for {
		changed := a.changed.wait()
		state := a.State()
		ok := true
		switch state.Member.State {
		case cluster.StateRunning:
			want, err := c.service(state)
			known := told.Equal(want)
			if known && time.Since(looked) >= serviceLook {
				ok = request(func(ctx context.Context) (err error) { known, err = c.store.HasService(ctx, c.id); return err })
				looked = time.Now()
			}
			if ok && !known {
				ok = request(func(ctx context.Context) error {
					if err != nil {
						return err
					}
					return c.store.RegisterService(ctx, want)
				})
				if ok {
					told, looked = want, time.Now()
					a.log.Info().Str("service", c.name).Strs("tags", want.Tags).Msg("registered in Consul's catalogue")
				}
			}
		case cluster.StateStopped:
			stopped()
		}
		if !ok {
			pause(ctx, serviceLimit)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if a.State().Member.State == cluster.StateStopped {
				stopped()
			}
			return
		}
	}
}
