package bouncer

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"
	"golang.org/x/sync/errgroup"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/printable"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/consul"
)

// RouteRow is one shard as one bouncer has it.
type RouteRow struct {
	Shard string `json:"shard"`
	// Bouncer is empty when none has the shard.
	Bouncer string `json:"bouncer,omitempty"`
	// Answers: this is what the bouncer says now; else it is what its key in
	// Consul had, and Problem says why it could not be asked.
	Answers  bool               `json:"answers"`
	Leader   string             `json:"leader"`
	Address  string             `json:"address,omitempty"`
	Timeline int                `json:"timeline"`
	State    cluster.RouteState `json:"state"`
	// Since is when the leader took the lock.
	Since time.Time `json:"since,omitzero"`
	// VerifiedAt is when PgBouncer was first seen to lead there; absent: it does
	// not, as far as is known.
	VerifiedAt *time.Time `json:"verified_at,omitempty"`
	Paused     bool       `json:"paused"`
	// ClientsWaiting is the number of clients that wait for a server connection.
	ClientsWaiting int `json:"clients_waiting"`
	// Behind: the route in Consul names another leader, timeline or state.
	Behind  bool   `json:"behind,omitempty"`
	Problem string `json:"problem,omitempty"`
}

const (
	// overviewBound bounds a question to one bouncer, listBound one to Consul.
	overviewBound = 3 * time.Second
	listBound     = 5 * time.Second
	// bouncersAtOnce is how many of them are asked at the same time: each may say megabytes.
	bouncersAtOnce = 16
)

// Overview asks Consul for all routes and bouncers, and every bouncer what it has
// made of them. c need not be the configuration of one of them.
func Overview(ctx context.Context, c config.Config) ([]RouteRow, error) {
	clients, err := consul.NewClients(c)
	if err != nil {
		return nil, err
	}
	pool, err := consul.NewPool(clients)
	if err != nil {
		return nil, err
	}
	defer pool.Close()
	list := func(prefix string) (api.KVPairs, error) {
		ctx, cancel := context.WithTimeout(ctx, listBound)
		defer cancel()
		pairs, err := consul.Hedged(ctx, pool, func(ctx context.Context, c *api.Client) (api.KVPairs, error) {
			pairs, meta, err := c.KV().List(prefix, (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx))
			return pairs, consul.Led(meta, err)
		})
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", prefix, err)
		}
		return pairs, nil
	}
	keys := c.Keys()
	routes, err := list(keys.Routes())
	if err != nil {
		return nil, err
	}
	bouncers, err := list(keys.Bouncers())
	if err != nil {
		return nil, err
	}
	applied, err := list(keys.BouncersApplied())
	if err != nil {
		return nil, err
	}
	client, err := clientFor(c, "")
	if err != nil {
		return nil, err
	}
	return overview(keys, routes, askAll(ctx, client, keys, bouncers, applied)), nil
}

// asked is what is known of one bouncer.
type asked struct {
	key    cluster.Bouncer
	status *Status
	err    error
}

func askAll(ctx context.Context, client *http.Client, keys cluster.Keys, pairs, applied api.KVPairs) []asked {
	said := map[string][]byte{}
	for _, p := range applied {
		said[strings.TrimPrefix(p.Key, keys.BouncersApplied())] = p.Value
	}
	all := make([]asked, len(pairs))
	var asking errgroup.Group
	asking.SetLimit(bouncersAtOnce)
	for i, p := range pairs {
		name := strings.TrimPrefix(p.Key, keys.Bouncers())
		if all[i].key, all[i].err = cluster.ParseBouncer(name, p.Value); all[i].err != nil {
			all[i].key.Name = name
			continue
		}
		all[i].key = all[i].key.WithApplied(said[all[i].key.Name])
		asking.Go(func() error {
			all[i].status, all[i].err = askStatus(ctx, client, all[i].key.URL)
			return nil
		})
	}
	_ = asking.Wait() // each has its own error
	return all
}

func askStatus(ctx context.Context, client *http.Client, url string) (*Status, error) {
	var s Status
	if err := request(ctx, client, http.MethodGet, url+"/status", config.Credentials{}, &s); err != nil {
		return nil, err
	}
	return &s, nil
}

// request makes one bounded request of a bouncer's listener.
func request(ctx context.Context, client *http.Client, method, target string, user config.Credentials, into any) error {
	at := target
	if u, err := url.Parse(target); err == nil {
		at = u.Scheme + "://" + u.Host // the path says no more than the command
	}
	ctx, cancel := context.WithTimeout(ctx, overviewBound)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, target, nil)
	if err != nil {
		return fmt.Errorf("bouncer at %s: %w", at, err)
	}
	if user.Username != "" {
		r.SetBasicAuth(user.Username, user.Password)
	}
	response, err := client.Do(r)
	if err != nil {
		return fmt.Errorf("bouncer at %s: %w", at, unanswered(err))
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, 1<<24))
	if err != nil {
		return fmt.Errorf("bouncer at %s: %w", at, err)
	}
	var refused struct {
		Error string `json:"error"`
	}
	if response.StatusCode != http.StatusOK {
		if err := json.Unmarshal(text, &refused); err != nil || refused.Error == "" {
			refused.Error = response.Status
		}
		if response.StatusCode == http.StatusConflict {
			return fmt.Errorf("bouncer at %s: %w: %s", at, ErrRefused, printable.Text(refused.Error))
		}
		if response.StatusCode == http.StatusUnauthorized && user.Username == "" {
			return fmt.Errorf("bouncer at %s: %w", at, errLoginWanted)
		}
		return fmt.Errorf("bouncer at %s: %s", at, printable.Text(refused.Error))
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("bouncer at %s: its answer is not understood: %w", at, printable.Error(err))
	}
	return nil
}

// ErrRefused says that a bouncer has changed nothing, as what was asked for does not fit.
var ErrRefused = errors.New("refused")

// unanswered is why a bouncer gave no answer, without the request, which has been told.
func unanswered(err error) error {
	var request *url.Error
	if errors.As(err, &request) {
		err = request.Err
	}
	var dial *net.OpError
	if errors.As(err, &dial) && dial.Op == "dial" {
		return fmt.Errorf("%w; see that it runs, and that it can be reached from here (listen and connect_address of its configuration)", err)
	}
	return err
}

// overview puts together what the routes and the bouncers say.
func overview(keys cluster.Keys, pairs api.KVPairs, bouncers []asked) []RouteRow {
	routes, problems := map[string]cluster.Route{}, map[string]string{}
	shards := map[string]bool{}
	for _, p := range pairs {
		namespace, scope, err := keys.SplitRoute(p.Key)
		if err != nil {
			continue // no shard's
		}
		id := namespace + "/" + scope
		shards[id] = true
		if r, err := cluster.ParseRoute(p.Value); err != nil {
			problems[id] = err.Error()
		} else {
			routes[id] = r
		}
	}
	var rows []RouteRow
	served := map[string]bool{}
	for _, b := range bouncers {
		for _, row := range b.rows() {
			served[row.Shard] = true
			if r, found := routes[row.Shard]; found {
				row.Behind = row.Leader != r.Leader.Name || row.Timeline != r.Timeline || row.State != r.State
			}
			row.Problem = cmp.Or(row.Problem, problems[row.Shard])
			rows = append(rows, row)
		}
		for id := range shards { // what it does not offer, and why
			if b.status == nil || b.status.Problems[id] == "" {
				continue
			}
			if _, offered := b.status.Shards[config.ShardID(id)]; !offered {
				r := routes[id]
				rows = append(rows, RouteRow{
					Shard: id, Bouncer: b.key.Name, Answers: true, Leader: r.Leader.Name, Timeline: r.Timeline, State: r.State,
					Since: r.Since, Problem: b.status.Problems[id],
				})
				served[id] = true
			}
		}
		if b.status == nil {
			continue
		}
		for _, name := range b.status.Refused {
			if _, offered := b.status.Shards[config.ShardID(name)]; !offered && !shards[name] {
				rows = append(rows, RouteRow{Shard: name, Bouncer: b.key.Name, Answers: true, Problem: b.status.Problems[name]})
			}
		}
	}
	for id := range shards {
		if served[id] {
			continue
		}
		r, problem := routes[id], cmp.Or(problems[id], "no bouncer has it")
		row := RouteRow{Shard: id, Leader: r.Leader.Name, Timeline: r.Timeline, State: r.State, Since: r.Since, Problem: problem}
		if r.Leader.Host != "" {
			row.Address = address(r.Leader.Host, r.Leader.Port)
		}
		rows = append(rows, row)
	}
	slices.SortFunc(rows, func(a, b RouteRow) int {
		return cmp.Or(cmp.Compare(a.Shard, b.Shard), cmp.Compare(a.Bouncer, b.Bouncer))
	})
	return rows
}

func (b asked) rows() (rows []RouteRow) {
	if b.status == nil {
		for _, id := range slices.Sorted(maps.Keys(b.key.Applied)) {
			s := b.key.Applied[id]
			rows = append(rows, RouteRow{
				Shard: id, Bouncer: b.key.Name, Leader: s.Leader, Timeline: s.Timeline, State: s.State,
				VerifiedAt: s.VerifiedAt, Paused: s.Held, Problem: b.err.Error(),
			})
		}
		return rows
	}
	for _, id := range slices.Sorted(maps.Keys(b.status.Shards)) {
		s := b.status.Shards[id]
		rows = append(rows, RouteRow{
			Shard: string(id), Bouncer: b.key.Name, Answers: true, Leader: s.Leader, Address: address(s.Host, s.Port), Timeline: s.Timeline,
			State: s.State, Since: s.Since, VerifiedAt: s.VerifiedAt, Paused: s.Paused, ClientsWaiting: s.ClientsWaiting, Problem: s.Error,
		})
	}
	return rows
}

// address is host:port, with brackets around an IPv6 address.
func address(host string, port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }
