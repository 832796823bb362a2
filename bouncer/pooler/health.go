package pooler

import (
	"context"
	"errors"
	"iter"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

const (
	// suspectLeast and suspectMost limit how often PgBouncer's pools are looked
	// at; between them it is suspectPerPool for each pool, which bounds the cost.
	suspectLeast   = 400 * time.Millisecond
	suspectMost    = time.Second
	suspectPerPool = 500 * time.Microsecond
	// suspectAtOnce is how soon they are looked at again when the end of a
	// connection is a reason to. Connections may end all the time: a look takes no more
	// than one suspectShare-th of PgBouncer's time.
	suspectAtOnce = 10 * time.Millisecond
	suspectShare  = 4
	// suspectWait is how long a client may wait for a server connection before
	// the primary is looked for, though PgBouncer has connections to it: it
	// cannot tell those of a host that fell silent from those at work.
	suspectWait = 500 * time.Millisecond
	// unhealthyPace is how often a primary that does not answer is tried again.
	unhealthyPace = 200 * time.Millisecond
	// probeBound and unhealthyBound are how long a primary may take to answer: a suspect,
	// and one that was found not to answer, which may be busy once it is back.
	probeBound     = time.Second
	unhealthyBound = 3 * time.Second
	// probeAtOnce limits the probes that run together, of new suspects and of others; those of hosts
	// that are silent take their time.
	probeAtOnce = 512
	// cannotConnectNow is PostgreSQL's answer while it starts, recovers or stops.
	cannotConnectNow = "57P03"
	// inHotStandby is reported at login from PostgreSQL 14 on.
	inHotStandby = "in_hot_standby"
)

// errReplica says that what was a primary is one no more.
var errReplica = errors.New("PostgreSQL answers as a replica")

// HealthProber finds primaries that do not answer before Consul can know of it, from
// what PgBouncer itself meets: a pool that has lost all its server connections is
// a reason to knock at the primary. New queries of a shard whose primary does not
// answer wait from then on, instead of failing until the lease has run out and
// another member has taken over.
type HealthProber struct {
	config config.Config
	log    zerolog.Logger
	link   *Link
	Notify func()
	// Primaries are those of all shards; changes is another number when they have changed.
	Primaries func() []Primary
	Changes   func() uint64
	// Refresh reads the routes from Consul; connected reports whether it is thought
	// to answer.
	Refresh   func(context.Context) error
	Connected func() bool
	// hurry asks for a look at once.
	hurry chan struct{}

	mu        sync.Mutex
	unhealthy map[config.ShardID]failure
	// ports are those on which primaries listen; nil: they are not known yet.
	ports map[int]bool
	// seen is what the last look at the pools found; nil: it failed.
	seen *ClientCounts
}

func NewHealthProber(c config.Config, log zerolog.Logger, l *Link) *HealthProber {
	return &HealthProber{config: c, log: log, link: l, hurry: make(chan struct{}, 1), unhealthy: map[config.ShardID]failure{}}
}

// failure is why a primary cannot be used.
type failure struct {
	address, reason string
	// doubted: it has not been asked yet.
	doubted bool
	// since is the number of the primaries (Changes) at which it became known without a look: those of before say nothing of it.
	since uint64
}

// GoOn takes over what was found under the configuration before.
func (s *HealthProber) GoOn(before *HealthProber) {
	before.mu.Lock()
	defer before.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, one := range before.unhealthy {
		one.since = 1 // none are known yet
		s.unhealthy[id] = one
	}
}

// Doubt takes the primary of a shard for unhealthy until it was asked: an earlier bouncer has left clients
// waiting for it, perhaps as it does not answer. changes is the number of the primaries that it is one of.
func (s *HealthProber) Doubt(id config.ShardID, leader cluster.RouteMember, changes uint64) {
	s.mu.Lock()
	address := addressOf(leader)
	if s.unhealthy[id].address != address {
		s.unhealthy[id] = failure{address: address, doubted: true, since: changes}
	}
	s.mu.Unlock()
	select {
	case s.hurry <- struct{}{}:
	default:
	}
}

// ClientCounts counts clients.
type ClientCounts struct {
	Clients int
	Waiting map[string]int // by database
}

// Clients returns how many clients are connected and, by database, wait; nil when
// that is not known.
func (s *HealthProber) Clients() *ClientCounts {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen
}

func (s *HealthProber) see(seen *ClientCounts) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = seen
}

// Unhealthy reports whether the primary of a shard is known not to answer.
func (s *HealthProber) Unhealthy(id config.ShardID, leader cluster.RouteMember) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	one, found := s.unhealthy[id]
	return found && one.address == addressOf(leader)
}

// ended is told of a connection that has ended. When it may have been one to a
// primary the pools are looked at; a zero remote may have been anything.
func (s *HealthProber) ended(remote netip.AddrPort) {
	s.mu.Lock()
	of := !remote.IsValid() || s.ports == nil || s.ports[int(remote.Port())]
	s.mu.Unlock()
	if of {
		select {
		case s.hurry <- struct{}{}:
		default:
		}
	}
}

// Primary is where the writers of a shard go.
type Primary struct {
	ID     config.ShardID
	Leader cluster.RouteMember
	// DBName is a database there, Databases are PgBouncer's that lead there, of those Offered
	// for the shard.
	DBName             string
	Databases, Offered []string
	// Writers are the databases that always lead there.
	Writers []config.Database
	// Fallback: databases that are no shard's lead there.
	Fallback bool
}

func (p *Primary) address() string { return addressOf(p.Leader) }

// owners finds primaries by the databases that lead to them.
type owners struct {
	byName   map[string]*Primary // nil: a shard's that leads elsewhere, to replicas
	fallback *Primary            // of all other names, nil: they have none
}

func ownersOf(primaries []Primary) owners {
	o := owners{byName: make(map[string]*Primary, 2*len(primaries))}
	for i, p := range primaries {
		for _, name := range p.Offered {
			o.byName[name] = nil
		}
		for _, name := range p.Databases {
			o.byName[name] = &primaries[i]
		}
		if p.Fallback {
			o.fallback = &primaries[i]
		}
	}
	return o
}

// of is the primary that a database leads to, nil: none that is known.
func (o owners) of(database string) *Primary {
	if v, known := o.byName[database]; known {
		return v
	}
	return o.fallback
}

// all are the primaries.
func (o owners) all() iter.Seq[*Primary] {
	return func(yield func(*Primary) bool) {
		for _, v := range o.byName {
			if v != nil && !yield(v) {
				return
			}
		}
	}
}

// listensOn notes where primaries listen.
func (s *HealthProber) listensOn(o owners) {
	ports := map[int]bool{}
	for v := range o.all() {
		ports[v.Leader.Port] = true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ports = ports
}

func addressOf(m cluster.RouteMember) string { return net.JoinHostPort(m.Host, strconv.Itoa(m.Port)) }

// Run looks until ctx is done.
func (s *HealthProber) Run(ctx context.Context) {
	console := NewConsole(s.config)
	defer console.Close()
	probes := newProber(s)
	defer probes.running.Wait()
	probes.running.Go(func() { (&endings{log: s.log, ended: s.ended}).run(ctx) })
	probes.running.Go(func() { probes.confirm(ctx) })
	working := map[string]int{} // server connections at the last look, by database
	var (
		known   owners
		changes uint64
	)
	pace := time.NewTimer(suspectLeast)
	defer pace.Stop()
	hurry := rate.NewLimiter(rate.Every(suspectAtOnce), 1)
	for {
		select {
		case <-ctx.Done():
			return
		case <-pace.C:
		case <-s.hurry:
			if hurry.Wait(ctx) != nil {
				return
			}
		}
		if !s.link.Now().Up {
			s.see(nil)
			console.Close()
		} else {
			if now := s.Changes(); changes != now {
				known, changes = ownersOf(s.Primaries()), now
				s.listensOn(known)
			}
			begun := time.Now()
			list := s.suspects(ctx, console, known, changes, working)
			hurry.SetLimit(rate.Every(atOnce(time.Since(begun))))
			probes.start(ctx, list)
		}
		s.mu.Lock()
		next := min(max(suspectLeast, time.Duration(len(working))*suspectPerPool), suspectMost)
		switch {
		case len(s.unhealthy) > 0:
			next = unhealthyPace
		case len(working) == 0:
			next = suspectMost // no client has asked for anything yet
		}
		s.mu.Unlock()
		pace.Reset(next)
	}
}

// atOnce is how soon the pools may be looked at again when the last look took so long.
func atOnce(took time.Duration) time.Duration {
	return min(max(suspectAtOnce, suspectShare*took), suspectLeast)
}

// suspect is a shard whose primary is to be probed.
type suspect struct {
	*Primary
	// working: PgBouncer has connections to it.
	working bool
}

// suspects lists the shards whose primary is to be probed: those of pools that
// have no working connection, but had some or need some; those whose clients wait
// though there are connections; and all that are unhealthy.
func (s *HealthProber) suspects(ctx context.Context, console *Console, o owners, changes uint64, working map[string]int) (list []suspect) {
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
	now, wanted, slow := map[string]int{}, map[string]bool{}, map[string]bool{}
	seen := &ClientCounts{Waiting: map[string]int{}}
	defer s.see(seen)
	for _, p := range pools {
		seen.Clients += p.ClientsActive + p.ClientsWaiting
		if p.ClientsWaiting > 0 {
			seen.Waiting[p.Database] += p.ClientsWaiting
		}
		now[p.Database] += p.ServersActive + p.ServersIdle + p.ServersUsed + p.ServersTested
		wanted[p.Database] = wanted[p.Database] || p.ClientsWaiting > 0 || p.ServersIn > 0
		slow[p.Database] = slow[p.Database] || p.MaxWait >= suspectWait
	}
	suspected := map[*Primary]bool{} // and whether there are connections
	for _, names := range []map[string]int{now, working} {
		for name := range names {
			v := o.of(name)
			switch {
			case v == nil:
			case now[name] == 0 && (wanted[name] || working[name] > 0):
				suspected[v] = false
			case now[name] > 0 && slow[name]:
				if _, already := suspected[v]; !already {
					suspected[v] = true
				}
			}
		}
	}
	for _, v := range s.keepUnhealthy(o, changes) {
		suspected[v] = false
	}
	for v, has := range suspected {
		list = append(list, suspect{v, has})
	}
	clear(working)
	for name, n := range now {
		working[name] = n
	}
	return list
}

// keepUnhealthy lists the shards whose primary is unhealthy, and forgets primaries that are
// none any more. changes is the number of the primaries.
func (s *HealthProber) keepUnhealthy(o owners, changes uint64) (list []*Primary) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.unhealthy) == 0 {
		return nil
	}
	keep := map[config.ShardID]failure{}
	for id, one := range s.unhealthy {
		if one.since > changes {
			keep[id] = one
		}
	}
	for v := range o.all() {
		if one := s.unhealthy[v.ID]; one.address == v.address() {
			keep[v.ID] = one
			list = append(list, v)
		}
	}
	s.unhealthy = keep
	return list
}
