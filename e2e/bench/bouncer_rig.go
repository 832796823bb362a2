package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/consul/api"
	"golang.org/x/sync/errgroup"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
	"github.com/lictor-ha/lictor/e2e/lab"
)

// rig is one real PgBouncer, what keeps its routes right, and three real Consul
// servers. There are no databases behind it: leaders change by writing routes.
type rig struct {
	lab     *lab.Lab
	bouncer *lab.Bouncer
	keeper  *lab.Process // the bouncer, or consul-template
	lictor  bool
	admin   *pgbouncer.Conn
	routes  []cluster.Route
	// requests counts what passes the counting proxies.
	requests atomic.Int64
	proxies  []*httptest.Server
}

// newRig builds it with as many routes. Their leaders listen nowhere.
func newRig(ctx context.Context, shards int, software lab.PoolerSoftware) (*rig, error) {
	l, err := unstarted(ctx, lab.Options{Members: 1, Bouncers: 1, Pooler: software})
	if err != nil {
		return nil, err
	}
	r := &rig{lab: l, bouncer: l.BouncerHosts()[0]}
	if err := r.start(ctx, shards); err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

func (r *rig) start(ctx context.Context, shards int) error {
	if err := r.lab.StartConsul(ctx); err != nil {
		return err
	}
	for i := range shards {
		r.routes = append(r.routes, cluster.Route{
			Version: cluster.RouteVersion, SystemIdentifier: "7000000000000000001", State: cluster.RouteOpen, Timeline: 1,
			Leader:   routeMember(i, 1),
			Replicas: []cluster.RouteMember{routeMember(i, 2), routeMember(i, 3)},
			Since:    time.Now().UTC().Truncate(time.Millisecond),
		})
	}
	for some := range slices.Chunk(all(shards), mostOps) {
		if _, err := r.put(ctx, some); err != nil {
			return err
		}
	}
	if err := r.bouncer.Start(ctx); err != nil {
		return err
	}
	for _, p := range r.bouncer.Processes() {
		if p.Name != "pgbouncer" {
			r.keeper, r.lictor = p, p.Name == "bouncer"
		}
	}
	if err := r.connect(ctx); err != nil {
		return err
	}
	_, err := r.awaitShown(ctx, 50*time.Millisecond, all(shards)...)
	return err
}

func (r *rig) connect(ctx context.Context) error {
	address, err := pgbouncer.ParseAddress(r.bouncer.PgBouncer)
	if err != nil {
		return err
	}
	r.admin, err = pgbouncer.Connect(ctx, pgbouncer.Options{Address: address, User: lab.PoolerRole, Password: r.lab.Secrets.Pooler})
	return err
}

func (r *rig) close() {
	if r.admin != nil {
		r.admin.Close()
	}
	closeLab(r.lab)
	for _, p := range r.proxies {
		p.CloseClientConnections()
		p.Close()
	}
}

func routeMember(shard, member int) cluster.RouteMember {
	return cluster.RouteMember{
		Name: fmt.Sprintf("%s-db%d", shardName(shard), member), Host: fmt.Sprintf("127.%d.%d.%d", member, shard/250, shard%250+1), Port: 5432,
	}
}

func shardName(i int) string { return fmt.Sprintf("bench%04d", i) }

func all(n int) []int {
	list := make([]int, n)
	for i := range list {
		list[i] = i
	}
	return list
}

// change gives shards another leader, pokes as their agents do where that helps, and returns
// when that was begun.
func (r *rig) change(ctx context.Context, shards ...int) (time.Time, error) {
	return r.lead(ctx, r.lictor, shards)
}

// lead is change, with or without pokes.
func (r *rig) lead(ctx context.Context, poked bool, shards []int) (time.Time, error) {
	for _, i := range shards {
		route := &r.routes[i]
		route.Leader, route.Replicas[0] = route.Replicas[0], route.Leader
		route.Timeline++
		route.Since = time.Now().UTC().Truncate(time.Millisecond)
	}
	begun := time.Now()
	writes, ctx := errgroup.WithContext(ctx)
	for some := range slices.Chunk(shards, mostOps) {
		writes.Go(func() error {
			indexes, err := r.put(ctx, some)
			if err != nil || !poked {
				return err
			}
			for n, i := range some {
				if err := r.poke(ctx, i, indexes[n]); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return begun, writes.Wait()
}

// poke tells the bouncer of a route, as the shard's agent does.
func (r *rig) poke(ctx context.Context, shard int, index uint64) error {
	body, err := json.Marshal(cluster.Poke{Namespace: "service", Scope: shardName(shard), Index: index, Route: &r.routes[shard]})
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+r.bouncer.API+"/poke", bytes.NewReader(body))
	if err != nil {
		return err
	}
	response, err := r.lab.HTTP().Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		return err
	}
	if response.StatusCode != http.StatusAccepted {
		return fmt.Errorf("POST /poke: %s", response.Status)
	}
	return nil
}

// mostOps is how many writes Consul takes in one transaction.
const mostOps = 64

// put writes routes in one transaction, and returns the indexes that they have got.
func (r *rig) put(ctx context.Context, shards []int) (indexes []uint64, err error) {
	var ops api.TxnOps
	for _, i := range shards {
		value, err := json.Marshal(r.routes[i])
		if err != nil {
			return nil, err
		}
		ops = append(ops, &api.TxnOp{KV: &api.KVTxnOp{Verb: api.KVSet, Key: cluster.NewKeys("", shardName(i), "").Route(), Value: value}})
	}
	err = r.lab.Consul(ctx, func(ctx context.Context, c *api.Client) error {
		ok, answer, _, err := c.Txn().Txn(ops, new(api.QueryOptions).WithContext(ctx))
		switch {
		case err != nil:
			return err
		case !ok || len(answer.Results) != len(ops):
			return errors.New("the routes were not written")
		}
		for _, result := range answer.Results {
			indexes = append(indexes, result.KV.ModifyIndex)
		}
		return nil
	})
	return indexes, err
}

// awaitShown waits until PgBouncer shows the leaders of shards, looking once a pace,
// and returns when it was seen.
func (r *rig) awaitShown(ctx context.Context, pace time.Duration, shards ...int) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		databases, err := r.admin.Databases(ctx)
		if err != nil {
			return time.Time{}, err
		}
		wrong := 0
		for _, i := range shards {
			if d := databases[shardName(i)]; d.Host != r.routes[i].Leader.Host {
				wrong++
			}
		}
		if wrong == 0 {
			return time.Now(), nil
		}
		if err := sleep(ctx, pace); err != nil {
			return time.Time{}, fmt.Errorf("PgBouncer has the wrong leader of %d shards: %w", wrong, err)
		}
	}
}

// awaitVerified waits until the bouncer says that PgBouncer leads where it should,
// asking once a pace, and returns when that was verified.
func (r *rig) awaitVerified(ctx context.Context, pace time.Duration, shards ...int) (last time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		if err := sleep(ctx, pace); err != nil {
			return time.Time{}, fmt.Errorf("the bouncer does not verify the routes: %w", err)
		}
		status, err := bouncerStatus(ctx, r.lab, r.bouncer)
		if err != nil {
			return time.Time{}, err
		}
		verified := 0
		for _, i := range shards {
			s := status.Shards["service/"+shardName(i)]
			if s.VerifiedAt != nil && s.Timeline == r.routes[i].Timeline && s.Leader == r.routes[i].Leader.Name {
				verified++
				if s.VerifiedAt.After(last) {
					last = *s.VerifiedAt
				}
			}
		}
		if verified == len(shards) {
			return last, nil
		}
	}
}

// shardStatus is what a bouncer's GET /status says of a shard.
type shardStatus struct {
	Leader     string     `json:"leader"`
	Timeline   int        `json:"timeline"`
	VerifiedAt *time.Time `json:"verified_at"`
	Held       bool       `json:"held"`
	Paused     bool       `json:"paused"`
}

type statusOfBouncer struct {
	Shards map[string]shardStatus `json:"shards"`
}

func bouncerStatus(ctx context.Context, l *lab.Lab, b *lab.Bouncer) (status statusOfBouncer, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+b.API+"/status", nil)
	if err != nil {
		return status, err
	}
	response, err := l.HTTP().Do(request)
	if err != nil {
		return status, err
	}
	defer response.Body.Close()
	if err := json.NewDecoder(response.Body).Decode(&status); err != nil {
		return status, fmt.Errorf("status of %s: %w", b.Name, err)
	}
	return status, nil
}

// countRequests starts the keeper anew with proxies before Consul that count.
func (r *rig) countRequests(ctx context.Context) error {
	if err := r.keeper.Kill(ctx); err != nil {
		return err
	}
	replace := func(text string) string {
		for _, host := range r.lab.ConsulHosts() {
			target := &url.URL{Scheme: "http", Host: host}
			forward := httputil.NewSingleHostReverseProxy(target)
			forward.ErrorLog = log.New(io.Discard, "", 0) // a keeper that ends gives its queries up
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
				r.requests.Add(1)
				forward.ServeHTTP(w, q)
			}))
			r.proxies = append(r.proxies, server)
			text = strings.ReplaceAll(text, host, strings.TrimPrefix(server.URL, "http://"))
		}
		return text
	}
	if !r.lictor {
		r.keeper.Args = strings.Split(replace(strings.Join(r.keeper.Args, "\x00")), "\x00")
		return r.keeper.Start()
	}
	path := filepath.Join(r.bouncer.Dir, "bouncer.yml")
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, []byte(replace(string(content))), 0o644); err != nil {
		return err
	}
	return r.keeper.Start()
}
