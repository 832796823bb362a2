package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"golang.org/x/sync/errgroup"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/e2e/lab"
)

const (
	// lostAtOnce is how many clients connect at the same time, before.
	lostAtOnce = 16
	// lostPatience bounds how long the clients of lost primaries may wait.
	lostPatience = time.Minute
	neverEnds    = "SELECT pg_sleep(3600)"
	// passBucket is the bucket of lictor_bouncer_pass_seconds that counts passes of 100 ms.
	passBucket = "0.1"
)

// lostFigures are of a thousand primaries that are lost at once, each while it owes a client an
// answer: from before the new leaders' routes were written until the clients are told.
type lostFigures struct {
	Primaries int     `json:"primaries"`
	P50       float64 `json:"p50_ms"`
	Last      float64 `json:"last_ms"`
	// Passes of the bouncer from then on, and how many took longer than 100 ms.
	Passes int `json:"passes"`
	Slow   int `json:"passes_over_100_ms"`
}

// lostPrimaries measures how soon clients of lost primaries are free.
func lostPrimaries(ctx context.Context, r *bouncerReport) error {
	g, err := newRig(ctx, stormShards, lab.LictorBouncer{Edit: func(b *lab.Bouncer, config map[string]any) {
		everyRoute(b, config)
		config["pgbouncer"].(map[string]any)["settings"] = map[string]any{"max_client_conn": 2 * stormShards, "auth_type": "trust"}
	}})
	if err != nil {
		return err
	}
	defer g.close()
	primaries, err := g.silentPrimaries(ctx)
	if err != nil {
		return err
	}
	defer primaries.close()
	freed, stop, err := g.askSilent(ctx, primaries)
	defer stop()
	if err != nil {
		return err
	}
	before, err := g.passes(ctx)
	if err != nil {
		return err
	}
	begun, err := g.change(ctx, all(stormShards)...)
	if err != nil {
		return err
	}
	var took []time.Duration
	late := time.NewTimer(lostPatience)
	defer late.Stop()
	for range g.routes {
		select {
		case a := <-freed:
			took = append(took, a.at.Sub(begun))
		case <-late.C:
			return fmt.Errorf("%d of %d clients of lost primaries were freed within %v", len(took), len(g.routes), lostPatience)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := sleep(ctx, time.Second); err != nil { // what comes after counts, too
		return err
	}
	after, err := g.passes(ctx)
	if err != nil {
		return err
	}
	summary := summarize(took)
	r.Lost = &lostFigures{
		Primaries: len(g.routes), P50: summary.P50, Last: summary.Most,
		Passes: after.all - before.all, Slow: (after.all - after.quick) - (before.all - before.quick),
	}
	progress("lost primaries: %+v", *r.Lost)
	return nil
}

// passes counts passes of the bouncer, and those that took no longer than 100 ms.
type passes struct{ all, quick int }

func (r *rig) passes(ctx context.Context) (p passes, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+r.bouncer.API+"/metrics", nil)
	if err != nil {
		return p, err
	}
	response, err := r.lab.HTTP().Do(request)
	if err != nil {
		return p, err
	}
	defer response.Body.Close()
	for lines := bufio.NewScanner(response.Body); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), " ")
		n, _ := strconv.Atoi(value)
		switch {
		case strings.HasPrefix(name, "lictor_bouncer_pass_seconds_count"):
			p.all = n
		case strings.HasPrefix(name, "lictor_bouncer_pass_seconds_bucket") && strings.Contains(name, `le="`+passBucket+`"`):
			p.quick = n
		}
	}
	if p.all == 0 {
		return p, fmt.Errorf("the bouncer has counted no passes")
	}
	return p, nil
}

// silentServers speak PostgreSQL's protocol, and never answer a query.
type silentServers struct {
	listeners []net.Listener
	serving   sync.WaitGroup
	// asked counts queries that get no answer.
	asked atomic.Int64
	mu    sync.Mutex
	conns []net.Conn
}

// silentPrimaries listens where all routes lead, and will lead.
func (r *rig) silentPrimaries(ctx context.Context) (*silentServers, error) {
	s := &silentServers{}
	for _, route := range r.routes {
		for _, m := range []cluster.RouteMember{route.Leader, route.Replicas[0]} {
			if err := s.listen(ctx, m); err != nil {
				s.close()
				return nil, fmt.Errorf("a primary: %w", err)
			}
		}
	}
	return s, nil
}

func (s *silentServers) listen(ctx context.Context, m cluster.RouteMember) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort(m.Host, strconv.Itoa(m.Port)))
	if err != nil {
		return err
	}
	s.listeners = append(s.listeners, l)
	s.serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns = append(s.conns, conn)
			s.mu.Unlock()
			s.serving.Go(func() { s.serve(conn) })
		}
	})
	return nil
}

func (s *silentServers) close() {
	for _, l := range s.listeners {
		_ = l.Close()
	}
	s.mu.Lock()
	for _, c := range s.conns {
		_ = c.Close()
	}
	s.mu.Unlock()
	s.serving.Wait()
}

// serve lets a client in, and answers what PgBouncer asks of its own.
func (s *silentServers) serve(conn net.Conn) {
	backend := pgproto3.NewBackend(conn, conn)
	for {
		said, err := backend.ReceiveStartupMessage()
		if err != nil {
			return
		}
		if _, tls := said.(*pgproto3.SSLRequest); !tls {
			break
		}
		if _, err := conn.Write([]byte("N")); err != nil {
			return
		}
	}
	backend.Send(&pgproto3.AuthenticationOk{})
	for name, value := range map[string]string{"server_version": "15.0", "client_encoding": "UTF8", "DateStyle": "ISO, MDY", "TimeZone": "UTC", "standard_conforming_strings": "on"} {
		backend.Send(&pgproto3.ParameterStatus{Name: name, Value: value})
	}
	backend.Send(&pgproto3.BackendKeyData{ProcessID: 1, SecretKey: []byte{0, 0, 0, 1}})
	backend.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	for backend.Flush() == nil {
		message, err := backend.Receive()
		if err != nil {
			return
		}
		query, is := message.(*pgproto3.Query)
		switch {
		case !is:
			continue
		case query.String == neverEnds:
			s.asked.Add(1)
			continue
		}
		backend.Send(&pgproto3.CommandComplete{CommandTag: []byte("SET")})
		backend.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	}
}

// answer is what a client was told, and when.
type answer struct {
	at  time.Time
	err error
}

// askSilent has one client of each shard ask for what never comes, and returns when each was
// told that its primary is lost. stop ends the clients.
func (r *rig) askSilent(ctx context.Context, primaries *silentServers) (freed <-chan answer, stop func(), err error) {
	told, clients := make(chan answer, len(r.routes)), make([]*pgconn.PgConn, len(r.routes))
	var asking sync.WaitGroup
	stop = func() {
		for _, c := range clients {
			if c != nil {
				_ = c.Conn().Close()
			}
		}
		asking.Wait()
	}
	var logins errgroup.Group
	logins.SetLimit(lostAtOnce)
	for i := range r.routes {
		logins.Go(func() (err error) {
			config, err := pgconn.ParseConfig(fmt.Sprintf("postgres://%s@%s/%s?sslmode=disable", lab.AppRole, r.bouncer.PgBouncer, shardName(i)))
			if err == nil {
				clients[i], err = pgconn.ConnectConfig(ctx, config)
			}
			if err == nil { // so that there is a connection to the primary
				_, err = clients[i].Exec(ctx, "SET application_name = 'bench'").ReadAll()
			}
			return err
		})
	}
	if err := logins.Wait(); err != nil {
		return nil, stop, fmt.Errorf("a client: %w", err)
	}
	for _, c := range clients {
		asking.Go(func() {
			_, err := c.Exec(ctx, neverEnds).ReadAll()
			told <- answer{time.Now(), err}
		})
	}
	for primaries.asked.Load() < int64(len(r.routes)) {
		select {
		case <-time.After(50 * time.Millisecond):
		case early := <-told:
			return nil, stop, fmt.Errorf("a client was answered before its primary was lost: %w", early.err)
		case <-ctx.Done():
			return nil, stop, ctx.Err()
		}
	}
	return told, stop, nil
}
