package bouncer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/bouncer/pgbouncer"
)

const (
	// suspectLeast and suspectMost limit how often PgBouncer's pools are looked
	// at; between them it is suspectPerPool for each pool, which bounds the cost.
	suspectLeast   = 400 * time.Millisecond
	suspectMost    = time.Second
	suspectPerPool = 500 * time.Microsecond
	// sickPace is how often a primary that does not answer is tried again.
	sickPace   = 200 * time.Millisecond
	probeBound = time.Second
	// probeAtOnce limits the probes that run together.
	probeAtOnce = 16
	// cannotConnectNow is PostgreSQL's answer while it starts, recovers or stops.
	cannotConnectNow = "57P03"
	// inHotStandby is reported at login from PostgreSQL 14 on.
	inHotStandby = "in_hot_standby"
)

// errReplica says that what was a primary is one no more.
var errReplica = errors.New("PostgreSQL answers as a replica")

// suspector finds primaries that do not answer before Consul can know of it, from
// what PgBouncer itself meets: a pool that has lost all its server connections is
// a reason to knock at the primary. New queries of a shard whose primary does not
// answer wait from then on, instead of failing until the lease has run out and
// another member has taken over.
type suspector struct {
	config Config
	log    zerolog.Logger
	link   *link
	book   *book
	notify func()
	// refresh reads the routes from Consul.
	refresh func(context.Context) error

	mu   sync.Mutex
	sick map[shardID]sickness
	// seen is what the last look at the pools found; nil: it failed.
	seen *poolsSeen
}

// sickness is why a primary cannot be used.
type sickness struct{ address, reason string }

// poolsSeen counts clients.
type poolsSeen struct {
	clients int
	waiting map[string]int // by database
}

// clients returns how many clients are connected and, by database, wait; nil when
// that is not known.
func (s *suspector) clients() *poolsSeen {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen
}

func (s *suspector) see(seen *poolsSeen) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = seen
}

// ill tells whether the primary of a shard is known not to answer.
func (s *suspector) ill(v *ShardView) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sick[v.id].address == addressOf(v)
}

func (s *suspector) sickness(id shardID) sickness {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sick[id]
}

func (s *suspector) anybodyIll() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sick) > 0
}

// ownersOf finds the shards of those databases that lead to a primary.
func ownersOf(c Config, known map[shardID]known) map[string]*ShardView {
	views, _ := view(c, known)
	owners := make(map[string]*ShardView, len(views))
	for _, v := range views {
		for _, name := range v.written() {
			owners[name] = v
		}
	}
	return owners
}

func addressOf(v *ShardView) string {
	return net.JoinHostPort(v.route.Leader.Host, strconv.Itoa(v.route.Leader.Port))
}

// run looks until ctx is done.
func (s *suspector) run(ctx context.Context) {
	console := &console{config: s.config}
	defer console.close()
	working := map[string]int{} // server connections at the last look, by database
	var (
		owners  map[string]*ShardView // by database that leads to a primary
		changes uint64
	)
	pace := time.NewTimer(suspectLeast)
	defer pace.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-pace.C:
		}
		if !s.link.now().Up {
			s.see(nil)
		} else {
			if changes != s.book.version() {
				var known map[shardID]known
				known, changes = s.book.known()
				owners = ownersOf(s.config, known)
			}
			s.probe(ctx, s.suspects(ctx, console, owners, working))
		}
		s.mu.Lock()
		next := min(max(suspectLeast, time.Duration(len(working))*suspectPerPool), suspectMost)
		switch {
		case len(s.sick) > 0:
			next = sickPace
		case len(working) == 0:
			next = suspectMost // no client has asked for anything yet
		}
		s.mu.Unlock()
		pace.Reset(next)
	}
}

// suspects lists the shards whose primary is to be probed: those of pools that
// have no working connection, but had some or need some; and all that are sick.
func (s *suspector) suspects(ctx context.Context, console *console, owners map[string]*ShardView, working map[string]int) (list []*ShardView) {
	var pools []pgbouncer.Pool
	conn, err := console.use(ctx)
	if err == nil {
		pools, err = bounded(ctx, conn.Pools)
	}
	if err != nil {
		s.log.Debug().Err(err).Msg("PgBouncer's pools cannot be looked at")
		s.see(nil)
		return nil
	}
	now, wanted := map[string]int{}, map[string]bool{}
	seen := &poolsSeen{waiting: map[string]int{}}
	defer s.see(seen)
	for _, p := range pools {
		seen.clients += p.ClientsActive + p.ClientsWaiting
		if p.ClientsWaiting > 0 {
			seen.waiting[p.Database] += p.ClientsWaiting
		}
		now[p.Database] += p.ServersActive + p.ServersIdle + p.ServersUsed + p.ServersTested
		wanted[p.Database] = wanted[p.Database] || p.ClientsWaiting > 0 || p.ServersIn > 0
	}
	suspected := map[*ShardView]bool{}
	for _, names := range []map[string]int{now, working} {
		for name := range names {
			if v := owners[name]; v != nil && now[name] == 0 && (wanted[name] || working[name] > 0) {
				suspected[v] = true
			}
		}
	}
	if s.anybodyIll() {
		for _, v := range owners {
			if s.ill(v) {
				suspected[v] = true
			}
		}
	}
	list = slices.Collect(maps.Keys(suspected))
	clear(working)
	for name, n := range now {
		working[name] = n
	}
	return list
}

// probe knocks at the primaries of shards and remembers which do not answer.
func (s *suspector) probe(ctx context.Context, views []*ShardView) {
	current := map[shardID]sickness{}
	slots := make(chan struct{}, probeAtOnce)
	var (
		mu     sync.Mutex
		probes sync.WaitGroup
	)
	for _, v := range views {
		slots <- struct{}{}
		probes.Go(func() {
			defer func() { <-slots }()
			err := s.knock(ctx, v)
			if err == nil || ctx.Err() != nil {
				return
			}
			switch before := s.sickness(v.id); {
			case !s.ill(v):
				s.log.Warn().Err(err).Str("shard", string(v.id)).Str("leader", v.route.Leader.Name).
					Msg("the primary does not answer, and PgBouncer has no connection to it")
			case errors.Is(err, errReplica) && before.reason != err.Error():
				s.log.Warn().Err(err).Str("shard", string(v.id)).Str("leader", v.route.Leader.Name).
					Msg("the primary is back, but as a replica; its clients wait for the new one")
			}
			mu.Lock()
			current[v.id] = sickness{addressOf(v), err.Error()}
			mu.Unlock()
		})
	}
	probes.Wait()
	if ctx.Err() != nil {
		return
	}
	s.mu.Lock()
	recovered := slices.ContainsFunc(slices.Collect(maps.Keys(s.sick)), func(id shardID) bool { return current[id].address == "" })
	s.mu.Unlock()
	// What answers again may have been deposed meanwhile, and serve as a replica:
	// clients are sent to it only when Consul still says that it leads.
	if recovered && s.refresh(ctx) != nil {
		return
	}
	s.mu.Lock()
	changed := len(current) != len(s.sick)
	for id, one := range current {
		changed = changed || s.sick[id].address != one.address
	}
	s.sick = current
	s.mu.Unlock()
	if changed {
		s.notify()
	}
}

// login is how a primary that was found sick is tried again: as the user of
// PgBouncer's console. It need not exist there, as PostgreSQL refuses a user only
// once it serves; where it exists, PostgreSQL also says whether it is a primary.
func (s *suspector) login(v *ShardView) (*pgconn.Config, error) {
	config, err := pgconn.ParseConfig("sslmode=disable")
	if err != nil {
		return nil, err
	}
	options, err := s.config.admin()
	if err != nil {
		return nil, err
	}
	config.Host, config.Port = v.route.Leader.Host, uint16(v.route.Leader.Port)
	config.User, config.Password, config.Database = options.User, options.Password, v.Databases[0].DBName
	config.RuntimeParams, config.Fallbacks = map[string]string{}, nil
	return config, nil
}

// knock tells why a primary cannot be used. Whether a suspect is there takes no
// more than a connection, of which PostgreSQL's log says nothing; one that was
// found sick must also be past its start.
func (s *suspector) knock(ctx context.Context, v *ShardView) error {
	ctx, cancel := context.WithTimeout(ctx, probeBound)
	defer cancel()
	if !s.ill(v) {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addressOf(v))
		if err == nil {
			err = conn.Close()
		}
		return err
	}
	config, err := s.login(v)
	if err != nil {
		return err
	}
	conn, err := pgconn.ConnectConfig(ctx, config)
	if err == nil {
		recovering := conn.ParameterStatus(inHotStandby) == "on"
		if err := conn.Close(ctx); err != nil || !recovering {
			return err
		}
		return fmt.Errorf("%s: %w", addressOf(v), errReplica)
	}
	var refused *pgconn.PgError
	if errors.As(err, &refused) && refused.Code != cannotConnectNow {
		return nil // it serves, though not us
	}
	return err
}
