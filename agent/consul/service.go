package consul

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/hashicorp/consul/api"
)

// Service is a member in Consul's catalogue: what Consul DNS answers with.
type Service struct {
	// ID is one of its own, Name that of the shard, as DNS takes it.
	ID, Name string
	// Address and Port are PostgreSQL's.
	Address string
	Port    int
	Tags    []string
	// CheckURL is asked every CheckInterval, and must answer 200.
	CheckURL      string
	CheckInterval time.Duration
	// CheckServerName is the name that its certificate must have; empty: the host's.
	CheckServerName string
	// Forget is for how long the check may fail until Consul forgets the service
	// (at least a minute, says Consul).
	Forget time.Duration
}

// Equal reports whether two services are the same.
func (s Service) Equal(o Service) bool {
	return slices.Equal(s.Tags, o.Tags) && s.ID == o.ID && s.Name == o.Name && s.Address == o.Address && s.Port == o.Port && s.CheckURL == o.CheckURL &&
		s.CheckInterval == o.CheckInterval && s.CheckServerName == o.CheckServerName && s.Forget == o.Forget
}

// RegisterService makes a service known, or changes it (Consul's HTTP API, PUT
// /agent/service/register). Services belong to a Consul agent, so this speaks to the
// first address alone, the local one.
func (s *Store) RegisterService(ctx context.Context, v Service) error {
	err := s.clients[0].Agent().ServiceRegisterOpts(&api.AgentServiceRegistration{
		ID: v.ID, Name: v.Name, Address: v.Address, Port: v.Port, Tags: v.Tags, EnableTagOverride: true,
		Check: &api.AgentServiceCheck{
			HTTP: v.CheckURL, Interval: v.CheckInterval.String(), TLSServerName: v.CheckServerName,
			DeregisterCriticalServiceAfter: v.Forget.String(),
		},
	}, api.ServiceRegisterOpts{}.WithContext(ctx))
	if err != nil {
		return fmt.Errorf("registering the service %s at the Consul agent %s: %w", v.ID, s.clients[0].address, err)
	}
	return nil
}

// HasService reports whether the local Consul agent knows a service.
func (s *Store) HasService(ctx context.Context, id string) (bool, error) {
	_, _, err := s.clients[0].Agent().Service(id, (&api.QueryOptions{}).WithContext(ctx))
	var status api.StatusError
	switch {
	case errors.As(err, &status) && status.Code == http.StatusNotFound:
		return false, nil
	case err != nil:
		return false, fmt.Errorf("looking for the service %s at the Consul agent %s: %w", id, s.clients[0].address, err)
	}
	return true, nil
}

// DeregisterService makes the local Consul agent forget a service. One that it does
// not know is no error.
func (s *Store) DeregisterService(ctx context.Context, id string) error {
	err := s.clients[0].Agent().ServiceDeregisterOpts(id, (&api.QueryOptions{}).WithContext(ctx))
	var status api.StatusError
	if err != nil && (!errors.As(err, &status) || status.Code != http.StatusNotFound) {
		return fmt.Errorf("taking the service %s from the Consul agent %s: %w", id, s.clients[0].address, err)
	}
	return nil
}
