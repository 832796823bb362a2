package consul

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/bouncer/config"
)

// requestBound bounds one request of attempt. It also is how soon a Consul agent that
// hangs is found out.
const requestBound = 2 * time.Second

// Pool is the list of Consul addresses, one of which is in use. Whoever
// meets a failure moves everybody on to the next address: the presence's
// renewals thereby also find a local Consul agent that hangs while a blocking
// query waits for it.
type Pool struct {
	clients []*api.Client

	mu      sync.Mutex
	current int
	// term ends when current changes.
	term    context.Context
	endTerm context.CancelFunc
	// Moved is called when another address is in use.
	Moved func()
}

func NewPool(clients []*api.Client) (*Pool, error) {
	if len(clients) == 0 {
		return nil, fmt.Errorf("consul: no address is configured")
	}
	p := &Pool{clients: clients, Moved: func() {}}
	p.term, p.endTerm = context.WithCancel(context.Background())
	return p, nil
}

// Use returns the client in use, its number, and a context that ends with ctx
// or when another client takes its place. cancel must be called.
func (p *Pool) Use(parent context.Context) (ctx context.Context, client *api.Client, number int, cancel func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	ctx, end := context.WithCancel(parent)
	stop := context.AfterFunc(p.term, end)
	return ctx, p.clients[p.current], p.current, func() { stop(); end() }
}

// Client returns the client with that number; after the last comes the first.
func (p *Pool) Client(number int) *api.Client { return p.clients[number%len(p.clients)] }

// Single reports whether there is no other address to turn to.
func (p *Pool) Single() bool { return len(p.clients) == 1 }

// Size is the number of addresses.
func (p *Pool) Size() int { return len(p.clients) }

// InUse is the number of the client in use.
func (p *Pool) InUse() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.current
}

// Fail moves on to the next address, unless somebody already did.
func (p *Pool) Fail(number int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current != number || len(p.clients) == 1 {
		return
	}
	p.current = (p.current + 1) % len(p.clients)
	p.endTerm()
	p.term, p.endTerm = context.WithCancel(context.Background())
	p.Moved()
}

// NoAnswer reports whether an error is the address's own, so that another one may
// do better: no connection, no answer in time, a Consul that is not well. What
// Consul refuses (a missing permission, say) it refuses everywhere.
func NoAnswer(err error) bool {
	var status api.StatusError
	if errors.Is(err, ErrTooLong) {
		return false
	}
	return !errors.As(err, &status) || status.Code >= http.StatusInternalServerError || status.Code == http.StatusTooManyRequests
}

// inOrder lists the clients, the one in use first.
func (p *Pool) inOrder() []*api.Client {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append(append([]*api.Client(nil), p.clients[p.current:]...), p.clients[:p.current]...)
}

// readHedge is how long a read waits for one Consul address before it also asks
// the next: longer than a healthy one takes, and less than anybody notices.
const readHedge = 30 * time.Millisecond

// Hedged makes one request of the first Consul address that answers it: each next
// one is asked too when those before it are slow.
func Hedged[T any](ctx context.Context, pool *Pool, request func(context.Context, *api.Client) (T, error)) (none T, err error) {
	type result struct {
		value T
		err   error
	}
	clients := pool.inOrder()
	results := make(chan result, len(clients))
	ctx, cancel := context.WithCancel(ctx)
	var asked sync.WaitGroup
	defer asked.Wait() // after cancel
	defer cancel()
	var errs []error
	next, open := 0, 0
	hedge := time.NewTimer(0)
	defer hedge.Stop()
	for {
		select {
		case <-hedge.C:
			if next < len(clients) {
				client := clients[next]
				asked.Go(func() {
					value, err := request(ctx, client)
					results <- result{value, err}
				})
				next, open = next+1, open+1
				hedge.Reset(readHedge)
			}
		case r := <-results:
			if r.err == nil {
				return r.value, nil
			}
			errs = append(errs, r.err)
			open--
			if open == 0 && next == len(clients) {
				return none, errors.Join(errs...)
			}
			hedge.Reset(0)
		}
	}
}

// Close ends the last term.
func (p *Pool) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.endTerm()
}

// NewClients makes a client for each configured address.
func NewClients(c config.Config) ([]*api.Client, error) {
	configs, err := c.Consul.ClientConfigs()
	if err != nil {
		return nil, err
	}
	var clients []*api.Client
	for _, config := range configs {
		config.HttpClient.Transport = pairs{limits{config.HttpClient.Transport}}
		client, err := api.NewClient(config)
		if err != nil {
			return nil, fmt.Errorf("consul %s: %w", config.Address, err)
		}
		clients = append(clients, client)
	}
	return clients, nil
}

// Attempt runs one bounded request and moves on to the next Consul address when
// this one gives no answer.
func Attempt[T any](parent context.Context, pool *Pool, request func(context.Context, *api.Client) (T, error)) (T, error) {
	ctx, client, number, end := pool.Use(parent)
	defer end()
	ctx, cancel := context.WithTimeout(ctx, requestBound)
	defer cancel()
	result, err := request(ctx, client)
	if err != nil && parent.Err() == nil && NoAnswer(err) {
		pool.Fail(number)
	}
	return result, err
}

// errNoLeader: the answer came from a Consul that has no leader.
var errNoLeader = errors.New("consul has no leader")

// Led makes an answer without a leader an error.
func Led(meta *api.QueryMeta, err error) error {
	if err == nil && !meta.KnownLeader {
		return errNoLeader
	}
	return err
}
