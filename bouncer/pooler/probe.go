package pooler

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/lictor-ha/lictor/agent/cluster/pgauth"
	"github.com/lictor-ha/lictor/bouncer/config"
)

// prober knocks at the primaries of suspects. Each probe runs by itself: a host that
// says nothing holds up no other shard.
type prober struct {
	*HealthProber
	// slots are for new suspects, retries for those that are known not to answer: they take their
	// time, and many of them must not keep a new one from being found.
	slots, retries chan struct{}
	// back are primaries that were unhealthy and answer again.
	back    chan finding
	running sync.WaitGroup
	// probing are the probes that run, guarded by mu.
	probing map[probe]bool
	// asked is when each began last; of the goroutine alone that starts them.
	asked map[probe]time.Time
	// try is knock, resolve addressesOf.
	try     func(context.Context, suspect) (primary bool, err error)
	resolve func(context.Context, string) ([]netip.Addr, error)
}

// probe is one of an address: of a suspect, or of one that is known not to answer (again).
type probe struct {
	address string
	again   bool
}

func newProber(s *HealthProber) *prober {
	p := &prober{
		HealthProber: s, slots: make(chan struct{}, probeAtOnce), retries: make(chan struct{}, probeAtOnce), back: make(chan finding),
		probing: map[probe]bool{}, asked: map[probe]time.Time{}, resolve: addressesOf,
	}
	p.try = p.knock
	return p
}

// Where a primary is says Consul, so anybody may answer a probe: a word of PostgreSQL's has no more than
// probeWord bytes until it lets somebody in, and all of them with a certificate have no more than probeWords.
// Whoever is to be read takes memory for a word once its length was told, up to a gigabyte.
const (
	probeWord  = 64 << 10
	probeWords = 512 << 10
)

// errTalks says that who answers a probe does not speak as PostgreSQL does.
var errTalks = errors.New("it says more than PostgreSQL does at a login")

// briefConn is a connection on which no more than so many bytes are heard.
type briefConn struct {
	net.Conn
	left int
}

func (c *briefConn) Read(b []byte) (int, error) {
	if c.left == 0 {
		return 0, errTalks
	}
	n, err := c.Conn.Read(b[:min(len(b), c.left)])
	c.left -= n
	return n, err
}

// dialBriefly connects to who may say probeWords.
func dialBriefly(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &briefConn{conn, probeWords}, nil
}

// finding is a primary that answers.
type finding struct {
	*Primary
	// is: it has said that it is one.
	is bool
}

// start probes the primaries of shards, each address once, unless that is under way. When too many
// are, those that were asked longest ago come first, and the others with the next look.
func (p *prober) start(ctx context.Context, list []suspect) {
	of := map[probe][]suspect{}
	for _, one := range list {
		which := probe{one.address(), p.Unhealthy(one.ID, one.Leader)}
		of[which] = append(of[which], one)
	}
	maps.DeleteFunc(p.asked, func(which probe, _ time.Time) bool { return of[which] == nil })
	due := slices.SortedFunc(maps.Keys(of), func(a, b probe) int {
		return cmp.Or(p.asked[a].Compare(p.asked[b]), strings.Compare(a.address, b.address))
	})
	for _, which := range due {
		p.startOne(ctx, which, of[which])
	}
}

// startOne probes the primary of shards that have one address.
func (p *prober) startOne(ctx context.Context, which probe, shards []suspect) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.probing[which] {
		return
	}
	slots := p.slots
	if which.again {
		slots = p.retries
	}
	select {
	case slots <- struct{}{}:
	default:
		return
	}
	p.probing[which], p.asked[which] = true, time.Now()
	one := shards[0]
	for _, other := range shards {
		one.working = one.working && other.working
	}
	p.running.Go(func() {
		primary, err := p.try(ctx, one)
		if ctx.Err() == nil {
			for _, of := range shards {
				p.found(ctx, of.Primary, primary, err)
			}
		}
		p.mu.Lock()
		delete(p.probing, which)
		p.mu.Unlock()
		<-slots
	})
}

// found notes what a probe has found.
func (p *prober) found(ctx context.Context, v *Primary, primary bool, err error) {
	p.mu.Lock()
	before := p.unhealthy[v.ID]
	was := before.address == v.address()
	told := was && !before.doubted
	if err != nil {
		p.unhealthy[v.ID] = failure{address: v.address(), reason: err.Error()}
	}
	p.mu.Unlock()
	switch {
	case err == nil && was:
		select {
		case p.back <- finding{v, primary}:
		case <-ctx.Done():
		}
	case err == nil:
	case !told:
		p.log.Warn().Err(err).Str("shard", string(v.ID)).Str("leader", v.Leader.Name).Msg("the primary does not answer")
		p.Notify()
	case errors.Is(err, errReplica) && before.reason != err.Error():
		p.log.Warn().Err(err).Str("shard", string(v.ID)).Str("leader", v.Leader.Name).
			Msg("the primary is back, but as a replica; its clients wait for the new one")
	}
}

// confirm lets those go on that answer again, until ctx is done. They may have been
// deposed meanwhile, and serve as a replica: clients are sent there only when
// Consul still says that it leads; one that was only doubted is asked once. While Consul does not answer, its own word that
// it is a primary will do: members run one only as long as nobody else may.
func (p *prober) confirm(ctx context.Context) {
	for {
		var batch []finding
		select {
		case one := <-p.back:
			batch = append(batch, one)
		case <-ctx.Done():
			return
		}
		for more := true; more; {
			select {
			case one := <-p.back:
				batch = append(batch, one)
			default:
				more = false
			}
		}
		confirmed := p.Connected() && p.Refresh(ctx) == nil
		if ctx.Err() != nil {
			return
		}
		changed := false
		p.mu.Lock()
		for _, one := range batch {
			if was := p.unhealthy[one.ID]; (confirmed || one.is || was.doubted) && was.address == one.address() {
				delete(p.unhealthy, one.ID)
				changed = true
				if !confirmed && !was.doubted {
					p.log.Warn().Str("shard", string(one.ID)).Str("leader", one.Leader.Name).
						Msg("the primary answers again and says that it is one, though Consul cannot be asked")
				}
			}
		}
		p.mu.Unlock()
		if changed {
			p.Notify()
		}
	}
}

// knock tells why a primary cannot be used, and whether it is sure to be one. A
// suspect is asked in a way of which PostgreSQL's log mostly says nothing; one that
// was found unhealthy must also be a primary, as far as it tells.
func (p *prober) knock(ctx context.Context, one suspect) (primary bool, err error) {
	if p.Unhealthy(one.ID, one.Leader) {
		ctx, cancel := context.WithTimeout(ctx, unhealthyBound)
		defer cancel()
		return p.ask(ctx, one.Primary)
	}
	bound, cancel := context.WithTimeout(ctx, probeBound)
	defer cancel()
	if !one.working {
		return false, p.greet(bound, one.Primary)
	}
	err = reach(bound, one.address())
	late, unresolved := net.Error(nil), (*net.DNSError)(nil)
	if (errors.As(err, &unresolved) || errors.As(err, &late) && late.Timeout()) && !p.silent(ctx, one.Primary) {
		return false, nil // busy, or we are; or the resolver is away
	}
	return false, err
}

// silent reports whether the host of a primary leaves something unanswered on the
// connections that there are: its kernel answers also when the host is overloaded. Where its name
// cannot be looked up it may be any host with that port.
func (p *prober) silent(ctx context.Context, v *Primary) bool {
	ctx, cancel := context.WithTimeout(ctx, probeBound)
	defer cancel()
	addresses, err := p.resolve(ctx, v.Leader.Host)
	unresolved := err != nil
	silent, err := anySocket(ctx, func(s tcpSocket) bool {
		return s.state == tcpEstablished && s.unanswered > 0 && int(s.remote.Port()) == v.Leader.Port && (unresolved || slices.Contains(addresses, s.remote.Addr()))
	})
	if err != nil {
		p.log.Debug().Err(err).Msg("connections cannot be looked at")
	}
	return silent || err != nil
}

// reach reports whether a host takes connections, which even a busy one does. Two are
// tried, as one packet may be lost.
func reach(ctx context.Context, address string) error {
	const attempts = 2
	ctx, cancel := context.WithCancel(ctx)
	var dialing sync.WaitGroup
	defer dialing.Wait() // after cancel
	defer cancel()
	results := make(chan error, attempts)
	for range attempts {
		dialing.Go(func() {
			conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
			if err == nil {
				err = conn.Close()
			}
			results <- err
		})
	}
	var err error
	for range attempts {
		if err = <-results; err == nil {
			return nil
		}
	}
	return err
}

// greet begins a login and goes away at PostgreSQL's first word, which is a request
// for a password where it serves: nobody hears of that, clients do it to ask their
// user.
func (p *prober) greet(ctx context.Context, v *Primary) error {
	conn, err := dialBriefly(ctx, "tcp", v.address())
	if err != nil {
		return err
	}
	defer conn.Close()
	if deadline, set := ctx.Deadline(); set {
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
	}
	if serverTLS(p.config) != "disable" {
		// Nothing secret is said, so nothing is verified: who has no right certificate is
		// there all the same.
		if conn, err = encrypt(ctx, conn); err != nil {
			if refusedTLS(err) {
				return nil
			}
			return err
		}
	}
	frontend := pgproto3.NewFrontend(conn, conn)
	frontend.SetMaxBodyLen(probeWord)
	frontend.Send(&pgproto3.StartupMessage{
		ProtocolVersion: pgproto3.ProtocolVersionNumber,
		Parameters:      map[string]string{"user": probeUser(p.config), "database": v.DBName},
	})
	if err := frontend.Flush(); err != nil {
		return err
	}
	said, err := frontend.Receive()
	if err != nil {
		return err
	}
	if refused, is := said.(*pgproto3.ErrorResponse); is && refused.Code == cannotConnectNow {
		return fmt.Errorf("%s: %s", v.address(), refused.Message)
	}
	return nil
}

// encrypt begins TLS where the server has it, as clients of PostgreSQL do.
func encrypt(ctx context.Context, conn net.Conn) (net.Conn, error) {
	request, err := (&pgproto3.SSLRequest{}).Encode(nil)
	if err != nil {
		return conn, err
	}
	if _, err := conn.Write(request); err != nil {
		return conn, err
	}
	var said [1]byte
	if _, err := io.ReadFull(conn, said[:]); err != nil {
		return conn, err
	}
	switch said[0] {
	case 'N':
		return conn, nil
	case 'S':
		encrypted := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}) //nolint:gosec // see greet
		return encrypted, encrypted.HandshakeContext(ctx)
	}
	return conn, fmt.Errorf("%s takes no connection", conn.RemoteAddr())
}

// refusedTLS reports whether a server and we do not agree on TLS, so that it is there: one
// that its keeper cannot start yet says so after the handshake.
func refusedTLS(err error) bool {
	var certificate *tls.CertificateVerificationError
	var alert tls.AlertError
	return errors.As(err, &certificate) || errors.As(err, &alert)
}

// noTLS is in pgx's error when a server has no TLS and the settings ask for it.
const noTLS = "server refused TLS connection"

// ask logs in as the role of probes. It need not exist there, as
// PostgreSQL refuses a user only once it serves; where it exists, PostgreSQL also
// says whether it is a primary. It comes as PgBouncer does: a server that takes TLS only
// would refuse anybody else before it says what it is.
func (p *prober) ask(ctx context.Context, v *Primary) (primary bool, err error) {
	config, err := p.login(v)
	if err != nil {
		return false, err
	}
	conn, err := pgauth.Connect(config, func() (*pgconn.PgConn, error) { return pgconn.ConnectConfig(ctx, config) })
	if err == nil {
		recovering := conn.ParameterStatus(inHotStandby)
		if err := conn.Close(ctx); err != nil {
			return false, err
		}
		if recovering == "on" {
			return false, fmt.Errorf("%s: %w", v.address(), errReplica)
		}
		return recovering == "off", nil
	}
	var refused *pgconn.PgError
	switch {
	// PostgreSQL's own word goes before that of a first try, with TLS, that it has not.
	case errors.As(err, &refused):
		if refused.Code == cannotConnectNow {
			return false, err
		}
	case strings.Contains(err.Error(), notAnswered), errors.Is(err, pgauth.ErrDear), refusedTLS(err):
	case demandsTLS(p.config) && strings.Contains(err.Error(), noTLS):
	default:
		return false, err
	}
	return false, nil // it serves, though not us
}

// notAnswered is in pgx's error when a server asks for what RequireAuth does not allow; a
// server that asks does serve: one that does not yet says so before.
const notAnswered = "require_auth check failed"

func (p *prober) login(v *Primary) (*pgconn.Config, error) {
	password := p.config.PgBouncer.ProbePassword
	leader := v.Leader
	parse := func(tls string) (*pgconn.Config, error) {
		return pgconn.ParseConfig("host=" + quoteDSN(leader.Host) + " port=" + strconv.Itoa(leader.Port) + " " + tls)
	}
	mode := serverTLS(p.config)
	files := " sslcert=" + quoteDSN(p.config.Setting("server_tls_cert_file")) + " sslkey=" + quoteDSN(p.config.Setting("server_tls_key_file"))
	if strings.HasPrefix(mode, "verify-") { // with a file, require would verify, too
		files += " sslrootcert=" + quoteDSN(p.config.Setting("server_tls_ca_file"))
	} else {
		files += " sslrootcert=''"
	}
	config, err := parse("sslmode=" + mode + files)
	if err != nil {
		// PgBouncer may read what we may not: whether somebody is there can be seen all the same.
		p.log.Debug().Err(err).Msg("the settings server_tls_... cannot be used for probes")
		if config, err = parse("sslmode=prefer sslcert='' sslkey='' sslrootcert=''"); err != nil {
			return nil, err
		}
		password = ""
	}
	config.User, config.Password, config.Database = probeUser(p.config), password, v.DBName
	config.RuntimeParams = map[string]string{}
	config.DialFunc, config.MaxProtocolMessageBodyLen = dialBriefly, probeWord
	config.BuildFrontend = pgauth.Frontend
	// The host comes from Consul, and may pass on to whom it likes what it is told, and hand on the answers:
	// what PgBouncer's console or PostgreSQL lets somebody in by is not for it.
	switch {
	case password == "":
		config.RequireAuth = "none"
	case p.config.Setting("auth_type") == "scram-sha-256":
		config.RequireAuth = "!password,!md5"
	default:
		config.RequireAuth = "!password"
	}
	return config, nil
}

// probeUser is the role of probes.
func probeUser(c config.Config) string { return cmp.Or(c.PgBouncer.ProbeUser, c.PgBouncer.User) }

// serverTLS is how PgBouncer connects to PostgreSQL.
func serverTLS(c config.Config) string {
	if mode := c.Setting("server_tls_sslmode"); mode != "" {
		return mode
	}
	return "prefer" // its own default; a template may say more, which is not known here
}

// demandsTLS reports whether PgBouncer connects to servers with TLS alone.
func demandsTLS(c config.Config) bool {
	mode := serverTLS(c)
	return mode == "require" || strings.HasPrefix(mode, "verify-")
}

func quoteDSN(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'"
}
