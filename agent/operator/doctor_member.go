package operator

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/printable"
)

// memberFacts is what is known of one member: from Consul, from its REST API, and
// from its PostgreSQL.
type memberFacts struct {
	scope  string
	member cluster.Member
	leads  bool
	shard  fleetShard

	status    memberStatus
	statusErr error
	sql       *sqlFacts
	sqlErr    error
}

func (m *memberFacts) look(ctx context.Context, site *Site, client *api.Client) {
	limit, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	m.status, m.statusErr = askStatus(limit, client.For(m.shard.secret), api.PeerOf(m.member))
	if m.member.State == cluster.StateRunning {
		m.sql, m.sqlErr = site.lookAtPostgres(limit, m.member)
	}
}

// examineProofs tells of shards in which whoever has a member's port is taken for it here.
func examineProofs(f fleet) []Finding {
	d := diagnosis{area: "agent"}
	if scopes, why := f.unproved(); len(scopes) > 0 {
		d.add(Worth, abridged(scopes, 5), "use a token that may read lictor/secrets/NAMESPACE/ (docs/rollout.md, Rights in Consul)",
			"whether it is the members that answer is not known: %v", why)
	}
	return d.findings
}

// examineMember judges agent, lease, guard and watchdog of a member.
func examineMember(m memberFacts) []Finding {
	d := diagnosis{area: "agent"}
	who := m.scope + "/" + m.member.Name
	if impostor := (*api.Unproved)(nil); errors.As(m.statusErr, &impostor) {
		d.add(Wrong, who, ofTheImpostor, "%s", impostor.Who())
		return d.findings
	}
	if m.statusErr != nil {
		d.add(Wrong, who, "see that the agent runs and that its restapi.connect_address can be reached from here and from the other members",
			"its REST API does not answer: %v", m.statusErr)
		return d.findings
	}
	s := m.status
	if s.Lictor == nil {
		d.add(Worth, who, "install Lictor's agent there, too", "it runs Patroni: no lease, no guard, no fencing")
		return d.findings
	}
	loopWait, ttl := m.shard.dynamic.LoopWait, m.shard.dynamic.TTL
	if age := s.Lictor.LoopAgeMS; age != nil && loopWait > 0 && time.Duration(*age)*time.Millisecond > 2*loopWait+time.Second {
		d.add(Wrong, who, "look at the host's load, and at the agent's log", "its loop last came round %s ago (loop_wait %s)",
			Duration(time.Duration(*age)*time.Millisecond), Duration(loopWait))
	} else {
		d.fine(who, "%s", cmp.Or(s.Lictor.Reason, "its loop goes round"))
	}
	if len(s.Lictor.OtherPrimaries) > 0 {
		d.add(Wrong, who, "stop PostgreSQL there unless it holds the lease, and see what was written to it",
			"other members run as a primary, too: %s", strings.Join(s.Lictor.OtherPrimaries, ", "))
	}
	if len(s.Lictor.Secrets) == 0 {
		d.add(Wrong, who, "let its Consul token write the key lictor/secrets/NAMESPACE/SCOPE (docs/security.md); its log says more",
			"it does not know the shard's secret: no member believes it, and when Consul is away writes end")
	}
	for _, p := range s.Lictor.Problems {
		d.add(Wrong, who, "see the agent's log; a setting is put right with lictor edit-config or in the member's file", "%s", p)
	}
	if a := s.Lictor.Archiver; a != nil && !a.Failing && a.Waiting > 0 && time.Duration(a.WaitingMS)*time.Millisecond > longWait {
		d.add(Wrong, who, ofTheArchive, "%s of WAL wait for the archive, the first for %s, and no try has failed: archive_command hangs, or is too slow",
			count(a.Waiting, "file"), Duration(time.Duration(a.WaitingMS)*time.Millisecond))
	}
	if s.Failsafe && m.leads {
		d.add(Worth, who, "see that Consul answers this member's agent", "its lease rests on the other members, not on Consul")
	}
	d.guard(who, m, ttl)
	d.watchdog(who, m)
	return d.findings
}

func (d *diagnosis) guard(who string, m memberFacts, ttl time.Duration) {
	g, s := m.status.Lictor.Guard, m.status
	if !g.Running && s.State == cluster.StateRunning {
		d.add(Wrong, who, "see the agent's log; a PostgreSQL that was adopted is guarded from its next restart on",
			"PostgreSQL runs without a guard: nothing kills it should the agent die and its lease end")
		return
	}
	if !m.leads {
		return
	}
	left := s.Lictor.LeaseLeftMS
	switch {
	case left == nil:
		d.add(Wrong, who, "see the agent's log", "it has the lock and says that it holds no lease")
	case ttl > 0 && time.Duration(*left)*time.Millisecond < ttl/4 && !m.shard.dynamic.Pause:
		d.add(Worth, who, "look at Consul's latency and the host's load", "only %s of its lease of %s are left", Duration(time.Duration(*left)*time.Millisecond), Duration(ttl))
	default:
		d.fine(who, "%s of its lease are left, the guard is armed for %s", Duration(time.Duration(*left)*time.Millisecond), Duration(time.Duration(g.ArmedForMS)*time.Millisecond))
	}
}

func (d *diagnosis) watchdog(who string, m memberFacts) {
	w := m.status.Lictor.Watchdog
	switch {
	case w == nil:
		d.add(Worth, who, "set watchdog.mode: automatic or required, with a device or softdog (docs/watchdog.md)",
			"no watchdog: a host that hangs as a whole and comes back is not fenced in between")
	case m.status.WatchdogFailed || m.leads && !w.Working:
		d.add(Wrong, who, "see that the agent may write to "+w.Device+" and that nobody else holds it (wdctl)", "the watchdog does not work: %s", cmp.Or(w.LastError, "no reason known"))
	case w.LastReset != "":
		d.add(Worth, who, "find out why the host hung", "the watchdog has reset the host: %s", w.LastReset)
	default:
		d.fine(who, "watchdog %s, mode %s", w.Device, w.Mode)
	}
}

// examineShard judges what Consul knows of a shard.
func examineShard(s fleetShard) []Finding {
	d := diagnosis{area: "shard"}
	for _, w := range s.warnings {
		d.add(Worth, s.scope, "change it with lictor edit-config, if it is not meant", "the dynamic configuration: %s", w)
	}
	for _, a := range s.alarms() {
		d.add(a.level, s.scope, a.do, "%s", a.what)
	}
	for _, err := range cluster.CheckHBA("postgresql.pg_hba", s.dynamic.Postgres.PgHBA) {
		d.add(Wrong, s.scope, "put it right with lictor edit-config: PostgreSQL keeps the lines before, and would not start with these", "the dynamic configuration: %v", err)
	}
	candidates := 0
	for _, m := range s.snapshot.Members {
		if m.OK() && m.Value.Name != s.snapshot.LeaderName() && !cluster.NoFailover(m.Value.Tags) {
			candidates++
		}
	}
	if candidates == 0 && len(s.snapshot.Members) > 1 {
		d.add(Wrong, s.scope, "take the tag nofailover from a replica", "no replica may lead: all are tagged nofailover")
	}
	if s.problem == nil && len(s.snapshot.Members) > 1 && !s.dynamic.SynchronousMode.On() && !s.dynamic.StandbyCluster.On() {
		d.add(Worth, s.scope, "set synchronous_mode: true if no acknowledged commit may be lost", "replication is asynchronous: a failover loses what no replica has received yet")
	}
	if m, found := s.snapshot.Member(s.snapshot.LeaderName()); found && s.snapshot.Failsafe.Exists() {
		if _, listed := s.snapshot.Failsafe.Value[m.Value.Name]; !listed {
			d.add(Worth, s.scope, "wait a loop; if it stays so, see the leader's log", "the leader is not in the failsafe list")
		}
	}
	if len(d.findings) == 0 {
		d.fine(s.scope, "led by %s, %d members", s.snapshot.LeaderName(), len(s.snapshot.Members))
	}
	return d.findings
}

// examineFreeing tells what becomes of clients whose primary's host is lost.
func examineFreeing(d *diagnosis, b cluster.Bouncer) {
	switch b.Frees {
	case cluster.FreesByTimeout:
		d.add(Worth, b.Name, "give the bouncer CAP_NET_ADMIN (its systemd unit has it), on PgBouncer's host, or PgBouncer 1.24",
			"it cannot close connections to a lost primary: tcp_user_timeout is 30 s, after which its clients are freed, and one that does not read for so long is cut off")
	case cluster.FreesBySockets, cluster.FreesByKill:
		d.fine(b.Name, "frees the clients of a lost primary by %s", b.Frees)
	}
}

// lookAtBouncers asks the bouncers how they are.
func (s *Site) lookAtBouncers(ctx context.Context, f fleet) []Finding {
	d := diagnosis{area: "bouncer"}
	client, err := api.NewBouncerClient(s.Ctl, s.RestAPI)
	if err != nil {
		d.add(Wrong, "", "see the sections ctl and restapi", "%v", err)
		return d.findings
	}
	defer client.Close()
	for _, b := range f.bouncers {
		ask, cancel := context.WithTimeout(ctx, askLimit)
		status, err := client.Status(ask, b.URL)
		cancel()
		if err != nil {
			d.add(Wrong, b.Name, "see that it runs and that its port can be reached: leaders tell it of handovers there", "it does not tell how it is: %v", err)
			continue
		}
		examineBouncer(&d, b.Name, status)
		examineFreeing(&d, b)
		examinePgBouncer(&d, b)
	}
	for _, shard := range f.shards {
		if len(f.bouncers) > 0 && len(shard.bouncers) == 0 {
			d.add(Worth, shard.scope, "add it to a bouncer's shards, if clients are to come that way", "no bouncer serves this shard")
		}
	}
	return d.findings
}

// problemsShown limits how many problems of one bouncer are findings: a site whose Consul token reads
// nothing has one for each shard, and whoever registers as a bouncer may have a million.
const problemsShown = 20

// examineBouncer tells what a bouncer says of itself.
func examineBouncer(d *diagnosis, name string, s api.BouncerStatus) {
	if s.Health.Healthy && len(s.Health.Warnings)+len(s.Problems) == 0 {
		d.fine(name, "healthy")
		return
	}
	// tell is d.add, for as many as are shown.
	shown := 0
	tell := func(level Level, do, format string, args ...any) {
		switch shown++; {
		case shown <= problemsShown:
			d.add(level, name, do, format, args...)
		case shown == problemsShown+1:
			d.add(Worth, name, "lictor bouncer status, on its host, has all of them", "there are more problems than these %d", problemsShown)
		}
	}
	for _, reason := range s.Health.Reasons {
		do := "correct that: until then its load balancer sends it no clients"
		if reason == "draining" {
			do = "lictor bouncer undrain, on its host, when the maintenance is over: its load balancer sends it no clients"
		}
		tell(Worth, do, "not healthy: %s", printable.Text(reason))
	}
	told := map[string]bool{} // a warning may be a problem as well
	for _, warning := range s.Health.Warnings {
		told[warning] = true
		tell(Worth, "correct that: clients find what they found before, until something changes", "%s", printable.Text(warning))
	}
	for _, what := range slices.Sorted(maps.Keys(s.Problems)) {
		problem := s.Problems[what]
		if told[problem] {
			continue
		}
		tell(Wrong, "correct that: what is meant is not offered as it should be (lictor routes)", "%s: %s", printable.Text(what), printable.Text(problem))
	}
}
