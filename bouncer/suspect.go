package bouncer

import (
	"context"
	"errors"
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
	suspectLeast   = 200 * time.Millisecond
	suspectMost    = time.Second
	suspectPerPool = 500 * time.Microsecond
	// sickPace is how often a primary that does not answer is tried again.
	sickPace   = 200 * time.Millisecond
	probeBound = time.Second
	// probeAtOnce limits the probes that run together.
	probeAtOnce = 16
	// cannotConnectNow is PostgreSQL's answer while it starts, recovers or stops.
	cannotConnectNow = "57P03"
	// probeUser need not exist: PostgreSQL refuses it only once it serves.
	probeUser = "lictor_probe"
)

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

	mu   sync.Mutex
	sick map[shardID]string // the address that does not answer
	// seen is what the last look at the pools found; nil: it failed.
	seen *poolsSeen
}

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
	return s.sick[v.id] != "" && s.sick[v.id] == addressOf(v)
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
	current := map[shardID]string{}
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
			if !s.ill(v) {
				s.log.Warn().Err(err).Str("shard", string(v.id)).Str("leader", v.route.Leader.Name).
					Msg("the primary does not answer, and PgBouncer has no connection to it")
			}
			mu.Lock()
			current[v.id] = addressOf(v)
			mu.Unlock()
		})
	}
	probes.Wait()
	if ctx.Err() != nil {
		return
	}
	s.mu.Lock()
	changed := len(current) != len(s.sick)
	for id, address := range current {
		changed = changed || s.sick[id] != address
	}
	s.sick = current
	s.mu.Unlock()
	if changed {
		s.notify()
	}
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
	config, err := pgconn.ParseConfig("sslmode=disable user=" + probeUser + " dbname=" + probeUser)
	if err != nil {
		return err
	}
	config.Host, config.Port, config.Password = v.route.Leader.Host, uint16(v.route.Leader.Port), ""
	config.RuntimeParams, config.Fallbacks = map[string]string{}, nil
	conn, err := pgconn.ConnectConfig(ctx, config)
	if err == nil {
		return conn.Close(ctx)
	}
	var refused *pgconn.PgError
	if errors.As(err, &refused) && refused.Code != cannotConnectNow {
		return nil // it serves, though not us
	}
	return err
}
