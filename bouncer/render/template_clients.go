package render

import (
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/consul-template/dependency"

	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/consul"
)

// templateClients are the clients that a template's functions use: of each of Consul's
// addresses as configured, Vault and Nomad by their own environment variables.
// consul-template's clients keep the token and the certificate that they were made with,
// so they are made anew when the token's file has another one, and after an error.
type templateClients struct {
	config config.Config
	pool   *consul.Pool

	mu   sync.Mutex
	sets map[int]tokenSet // by the address's number
}

// tokenSet is clients and the token that they have.
type tokenSet struct {
	*dependency.ClientSet
	token string
}

func newTemplateClients(c config.Config, pool *consul.Pool) *templateClients {
	return &templateClients{config: c, pool: pool, sets: map[int]tokenSet{}}
}

// get returns the clients of the address with that number; after the last comes the first.
func (c *templateClients) get(number int) (*dependency.ClientSet, error) {
	number %= c.pool.Size()
	c.mu.Lock()
	defer c.mu.Unlock()
	set, made := c.sets[number]
	token, err := c.config.Consul.CurrentToken()
	switch {
	case err != nil && made: // the file is being replaced
		return set.ClientSet, nil
	case err != nil:
		return nil, err
	case made && set.token == token:
		return set.ClientSet, nil
	case made:
		set.Stop()
		delete(c.sets, number)
	}
	set.token = token
	if set.ClientSet, err = c.make(number, token); err != nil {
		return nil, err
	}
	c.sets[number] = set
	return set.ClientSet, nil
}

// drop forgets clients that met an error.
func (c *templateClients) drop(set *dependency.ClientSet) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for number, s := range c.sets {
		if s.ClientSet == set {
			set.Stop()
			delete(c.sets, number)
		}
	}
}

func (c *templateClients) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, set := range c.sets {
		set.Stop()
	}
	clear(c.sets)
}

func (c *templateClients) make(number int, token string) (*dependency.ClientSet, error) {
	consul := c.config.Consul
	addresses, err := consul.Addresses()
	if err != nil {
		return nil, err
	}
	at := addresses[number]
	input := &dependency.CreateConsulClientInput{
		Address: at.Host, Token: token, SSLEnabled: at.Scheme == "https", SSLVerify: consul.Verify == nil || *consul.Verify,
		SSLCert: consul.Cert, SSLKey: consul.Key, ServerName: consul.ServerName(at),
		TransportDialTimeout: 3 * time.Second, TransportIdleConnTimeout: time.Minute, TransportMaxIdleConnsPerHost: 8,
	}
	if at.Scheme == "unix" {
		input.Address = "unix://" + at.Host
	}
	if info, err := os.Stat(consul.CACert); err == nil && info.IsDir() {
		input.SSLCAPath = consul.CACert
	} else {
		input.SSLCACert = consul.CACert
	}
	set := dependency.NewClientSet()
	if err := set.CreateConsulClient(input); err != nil {
		return nil, fmt.Errorf("consul %s: %w", at, err)
	}
	if err := set.CreateVaultClient(&dependency.CreateVaultClientInput{SSLVerify: true}); err != nil {
		return nil, fmt.Errorf("vault: %w", err)
	}
	if err := set.CreateNomadClient(&dependency.CreateNomadClientInput{SSLVerify: true}); err != nil {
		return nil, fmt.Errorf("nomad: %w", err)
	}
	return set, nil
}
