package bouncer

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster/certfiles"
	"github.com/lictor-ha/lictor/bouncer/config"
)

// clientsPace is how often Drain looks whether the clients have gone.
const clientsPace = 500 * time.Millisecond

// pausedBound is how long a command waits for PgBouncer to pause or resume, pausedPace how
// often it looks.
const (
	pausedBound = 5 * time.Second
	pausedPace  = 50 * time.Millisecond
)

// ownURL is how the bouncer of this configuration is reached from its own host.
func ownURL(c config.Config) (string, error) {
	host, port, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return "", fmt.Errorf("listen: %w", err)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
		if ip != nil && ip.To4() == nil {
			host = "::1"
		}
	}
	return c.Scheme() + "://" + net.JoinHostPort(host, port), nil
}

// own is the running bouncer of a configuration, as it is reached from its own host.
type own struct {
	config config.Config
	url    string
	client *http.Client
}

// ownBouncer prepares to ask the bouncer of this configuration. Its certificate is for the
// host by which others reach it.
func ownBouncer(c config.Config) (own, error) {
	at, err := ownURL(c)
	if err != nil {
		return own{}, err
	}
	public, err := c.URL(c.Listen)
	if err != nil {
		return own{}, err
	}
	u, err := url.Parse(public)
	if err != nil {
		return own{}, fmt.Errorf("connect_address: %w", err)
	}
	client, err := clientFor(c, u.Hostname())
	return own{c, at, client}, err
}

// AskStatus asks the running bouncer of this configuration how it stands.
func AskStatus(ctx context.Context, c config.Config) (Status, error) {
	b, err := ownBouncer(c)
	if err != nil {
		return Status{}, err
	}
	s, err := askStatus(ctx, b.client, b.url)
	if err != nil {
		return Status{}, err
	}
	return *s, nil
}

// Drain makes the running bouncer of this configuration say to the load balancer
// that its PgBouncer should get no clients, or that it may again.
func Drain(ctx context.Context, c config.Config, on bool) error {
	b, err := ownBouncer(c)
	if err != nil {
		return err
	}
	path := "/undrain"
	if on {
		path = "/drain"
	}
	var answer struct {
		Draining bool `json:"draining"`
	}
	if err := b.post(ctx, path, &answer); err != nil {
		return err
	}
	if answer.Draining != on {
		return fmt.Errorf("bouncer at %s: it says draining is %v", b.url, answer.Draining)
	}
	return nil
}

// Pausing is what an operator may do with the clients of one shard: the last part of a
// path of the bouncer's API.
type Pausing string

const (
	Pause   Pausing = "pause"
	Resume  Pausing = "resume"
	Release Pausing = "release"
)

// Do asks the running bouncer of this configuration to pause, resume or release a shard, and
// waits until PgBouncer has done so, every process of it, which it does at once if it is well.
func (p Pausing) Do(ctx context.Context, c config.Config, shard, by string) (PauseAnswer, error) {
	b, err := ownBouncer(c)
	if err != nil {
		return PauseAnswer{}, err
	}
	var answer PauseAnswer
	query := url.Values{"shard": {shard}, "by": {by}}
	if err := b.post(ctx, "/"+string(p)+"?"+query.Encode(), &answer); err != nil {
		return PauseAnswer{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, pausedBound)
	defer cancel()
	for {
		status, err := AskStatus(ctx, c)
		if err != nil {
			return answer, fmt.Errorf("%s of shard %s was asked for, what came of it is not known: %w", p, answer.Shard, err)
		}
		s := status.Shards[answer.Shard]
		answer.Held = s.Held
		// The first status may be that of before.
		seen := p == Release && !s.Held || p == Pause && s.Operator != nil || p == Resume && s.Operator == nil
		waits := s.Held || s.Operator != nil
		if seen && (waits && s.Paused || !waits && !s.AnyPaused) {
			return answer, nil
		}
		why := status.PgBouncer.Error
		if !waits && s.AnyPaused {
			why = cmp.Or(why, "clients of it still wait, in at least one process")
		}
		select {
		case <-time.After(pausedPace):
		case <-ctx.Done():
			return answer, fmt.Errorf("%s of shard %s was asked for, and PgBouncer has not followed within %s: %s", p, answer.Shard, pausedBound, why)
		}
	}
}

// AwaitClientsGone waits until no client is connected to the PgBouncer of the
// running bouncer, and reports each count that differs from the one before.
func AwaitClientsGone(ctx context.Context, c config.Config, report func(clients int)) error {
	last := -1
	for {
		s, err := AskStatus(ctx, c)
		if err != nil {
			return err
		}
		if s.Clients == nil {
			return fmt.Errorf("the bouncer does not know how many clients there are: %s", s.PgBouncer.Error)
		}
		if *s.Clients != last {
			last = *s.Clients
			report(last)
		}
		if last == 0 {
			return nil
		}
		select {
		case <-time.After(clientsPace):
		case <-ctx.Done():
			return fmt.Errorf("%d clients are still connected: %w", last, ctx.Err())
		}
	}
}

// clientFor makes a client for bouncers' listeners. name is the host that their
// certificate must be for; empty: the one that is asked.
func clientFor(c config.Config, name string) (*http.Client, error) {
	certs, err := c.Certificates(func(error) {})
	if err != nil {
		return nil, err
	}
	check := certfiles.Name
	if c.VerifyNames != nil && !*c.VerifyNames {
		check = certfiles.Chain
	}
	var dialer net.Dialer
	return &http.Client{
		// Bouncers are neighbours: no proxy of the environment.
		Transport: &http.Transport{DialContext: dialer.DialContext, DialTLSContext: certs.DialTLS(check, dialer, name), DisableKeepAlives: true},
		// Credentials go to the bouncer that was asked and nowhere else.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}
