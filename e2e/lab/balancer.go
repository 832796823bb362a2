package lab

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"time"
)

// Balancer is the host of the load balancer, HAProxy in TCP mode.
type Balancer struct {
	*Host
	// Address is where applications connect: host:port.
	Listen string
	health string // host:port of its own health page
}

func (l *Lab) addBalancer(ctx context.Context) error {
	host, err := l.addHost(ctx, "balancer")
	if err != nil {
		return err
	}
	b := &Balancer{Host: host}
	if b.Listen, err = host.ListenAddress(balancerPort); err != nil {
		return err
	}
	if b.health, err = host.ListenAddress(8404); err != nil {
		return err
	}
	l.balancer = b
	return nil
}

func (b *Balancer) specs() ([]Spec, error) {
	path := filepath.Join(b.Dir, "haproxy.cfg")
	if err := b.lab.owner.write(path, []byte(b.config()), 0o644); err != nil {
		return nil, err
	}
	return []Spec{{
		Name: "haproxy", Path: b.lab.Options.Programs.HAProxy, Args: []string{"-db", "-f", path},
		Unprivileged: true,
		Ready: func(ctx context.Context) error {
			_, err := b.lab.get(ctx, "http://"+b.health+"/", time.Second)
			return err
		},
	}}, nil
}

// config is that of a cloud's network load balancer: connections are passed on
// to the PgBouncers that say they are healthy, and cut when one no longer is.
func (b *Balancer) config() string {
	var c strings.Builder
	fmt.Fprintf(&c, `global
  maxconn 4000
  log stdout format raw local0 info

defaults
  log global
  mode tcp
  option dontlognull
  option clitcpka
  option srvtcpka
  timeout connect 1s
  timeout check 1s
  timeout client 24h
  timeout server 24h
  retries 2
  option redispatch

frontend health
  mode http
  bind %s
  no log
  timeout client 5s
  http-request return status 200 content-type text/plain string "ok"

frontend postgres
  bind %s
  default_backend pgbouncers

backend pgbouncers
  balance roundrobin
`, b.health, b.Listen)
	var servers []string
	checked := false
	for _, bouncer := range b.lab.bouncers {
		line := fmt.Sprintf("  server %s %s check inter 500ms fall 2 rise 1 on-marked-down shutdown-sessions", bouncer.Name, bouncer.PgBouncer)
		if health := b.lab.Options.Pooler.Health(bouncer); health != "" {
			checked = true
			line += " port " + portOf(health)
		}
		servers = append(servers, line)
	}
	if checked {
		c.WriteString("  option httpchk GET /health\n  http-check expect status 200\n")
	}
	c.WriteString(strings.Join(servers, "\n") + "\n")
	return c.String()
}

// AwaitServing waits until a client that comes through the balancer reaches the
// primary of every shard. Shard.Prepare must have been called.
func (l *Lab) AwaitServing(ctx context.Context) error {
	for _, s := range l.shards {
		err := poll(ctx, awaitInterval, func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			conn, err := l.connect(ctx, l.balancer.Listen, AppRole, l.Secrets.App, s.Name)
			if err != nil {
				return err
			}
			defer conn.Close(context.WithoutCancel(ctx))
			var recovering bool
			if err := conn.QueryRow(ctx, "SELECT pg_is_in_recovery()").Scan(&recovering); err != nil {
				return err
			}
			if recovering {
				return fmt.Errorf("clients of %s are sent to a replica", s.Name)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("shard %s does not serve through the load balancer: %w", s.Name, err)
		}
	}
	return nil
}

// DSN is how a client connects to the shard through the load balancer, without
// the password.
func (s *Shard) DSN() string {
	host, port, err := net.SplitHostPort(s.lab.balancer.Listen)
	if err != nil {
		return ""
	}
	return fmt.Sprintf("host=%s port=%s user=%s dbname=%s", host, port, AppRole, s.Name)
}

// Healthy asks the pooler what the load balancer asks it.
func (b *Bouncer) Healthy(ctx context.Context) error {
	health := b.lab.Options.Pooler.Health(b)
	if health == "" {
		return nil
	}
	status, body, err := b.lab.request(ctx, http.MethodGet, "http://"+health+"/health", nil, restTimeout)
	if err != nil {
		return fmt.Errorf("bouncer %s: %w", b.Name, err)
	}
	if status != http.StatusOK {
		return fmt.Errorf("bouncer %s: GET /health answers %d: %.200s", b.Name, status, body)
	}
	return nil
}

// AwaitPoolers waits until every pooler says that it may have clients.
func (l *Lab) AwaitPoolers(ctx context.Context) error {
	for _, b := range l.bouncers {
		if err := poll(ctx, awaitInterval, b.Healthy); err != nil {
			return err
		}
	}
	return nil
}
