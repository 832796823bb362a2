package bouncer

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

// consulPool is the list of Consul addresses, one of which is in use. Whoever
// meets a failure moves everybody on to the next address: the presence's
// renewals thereby also find a local Consul agent that hangs while a blocking
// query waits for it.
type consulPool struct {
	clients []*api.Client

	mu      sync.Mutex
	current int
	// term ends when current changes.
	term    context.Context
	endTerm context.CancelFunc
	// moved is called when another address is in use.
	moved func()
}

func newConsulPool(clients []*api.Client) (*consulPool, error) {
	if len(clients) == 0 {
		return nil, fmt.Errorf("consul: no address is configured")
	}
	p := &consulPool{clients: clients, moved: func() {}}
	p.term, p.endTerm = context.WithCancel(context.Background())
	return p, nil
}

// use returns the client in use, its number, and a context that ends with ctx
// or when another client takes its place. cancel must be called.
func (p *consulPool) use(parent context.Context) (ctx context.Context, client *api.Client, number int, cancel func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	ctx, end := context.WithCancel(parent)
	stop := context.AfterFunc(p.term, end)
	return ctx, p.clients[p.current], p.current, func() { stop(); end() }
}

// client returns the client with that number; after the last comes the first.
func (p *consulPool) client(number int) *api.Client { return p.clients[number%len(p.clients)] }

// single tells whether there is no other address to turn to.
func (p *consulPool) single() bool { return len(p.clients) == 1 }

// size is the number of addresses.
func (p *consulPool) size() int { return len(p.clients) }

// inUse is the number of the client in use.
func (p *consulPool) inUse() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.current
}

// fail moves on to the next address, unless somebody already did.
func (p *consulPool) fail(number int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current != number || len(p.clients) == 1 {
		return
	}
	p.current = (p.current + 1) % len(p.clients)
	p.endTerm()
	p.term, p.endTerm = context.WithCancel(context.Background())
	p.moved()
}

// noAnswer tells whether an error is the address's own, so that another one may
// do better: no connection, no answer in time, a Consul that is not well. What
// Consul refuses (a missing permission, say) it refuses everywhere.
func noAnswer(err error) bool {
	var status api.StatusError
	return !errors.As(err, &status) || status.Code >= http.StatusInternalServerError || status.Code == http.StatusTooManyRequests
}

// inOrder lists the clients, the one in use first.
func (p *consulPool) inOrder() []*api.Client {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append(append([]*api.Client(nil), p.clients[p.current:]...), p.clients[:p.current]...)
}

// readHedge is how long a read waits for one Consul address before it also asks
// the next: longer than a healthy one takes, and less than anybody notices.
const readHedge = 30 * time.Millisecond

// hedged makes one request of the first Consul address that answers it: each next
// one is asked too when those before it are slow.
func hedged[T any](ctx context.Context, pool *consulPool, request func(context.Context, *api.Client) (T, error)) (none T, err error) {
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

// close ends the last term.
func (p *consulPool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.endTerm()
}

// consulClients makes a client for each configured address.
func consulClients(c config.Config) ([]*api.Client, error) {
	configs, err := c.Consul.ClientConfigs()
	if err != nil {
		return nil, err
	}
	var clients []*api.Client
	for _, config := range configs {
		client, err := api.NewClient(config)
		if err != nil {
			return nil, fmt.Errorf("consul %s: %w", config.Address, err)
		}
		clients = append(clients, client)
	}
	return clients, nil
}

// attempt runs one bounded request and moves on to the next Consul address when
// this one gives no answer.
func attempt[T any](parent context.Context, pool *consulPool, request func(context.Context, *api.Client) (T, error)) (T, error) {
	ctx, client, number, end := pool.use(parent)
	defer end()
	ctx, cancel := context.WithTimeout(ctx, requestBound)
	defer cancel()
	result, err := request(ctx, client)
	if err != nil && parent.Err() == nil && noAnswer(err) {
		pool.fail(number)
	}
	return result, err
}

// errNoLeader: the answer came from a Consul that has no leader.
var errNoLeader = errors.New("consul has no leader")

// led makes an answer without a leader an error.
func led(meta *api.QueryMeta, err error) error {
	if err == nil && !meta.KnownLeader {
		return errNoLeader
	}
	return err
}
