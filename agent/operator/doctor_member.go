package operator

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/cluster"
)

func (s *Site) newClient() (*api.Client, error) { return api.NewClient(s.Ctl, s.RestAPI) }

// memberFacts is what is known of one member: from Consul, from its REST API, and
// from its PostgreSQL.
type memberFacts struct {
	scope  string
	member cluster.Member
	leads  bool
	shard  fleetShard

	status    *restStatus
	statusErr error
	sql       *sqlFacts
	sqlErr    error
}

// restStatus is the part of GET /patroni that the doctor judges.
type restStatus struct {
	State          string `json:"state"`
	Failsafe       bool   `json:"failsafe_mode_is_active"`
	WatchdogFailed bool   `json:"watchdog_failed"`
	PendingReason  map[string]struct {
		Old string `json:"old_value"`
		New string `json:"new_value"`
	} `json:"pending_restart_reason"`
	DCSLastSeen int64 `json:"dcs_last_seen"`
	Lictor      *struct {
		LeaseLeftMS *int64 `json:"lease_left_ms"`
		LoopAgeMS   *int64 `json:"loop_age_ms"`
		Reason      string `json:"reason"`
		Guard       struct {
			Running    bool  `json:"running"`
			ArmedForMS int64 `json:"armed_for_ms"`
		} `json:"guard"`
		Watchdog *struct {
			Mode      string `json:"mode"`
			Device    string `json:"device"`
			Working   bool   `json:"working"`
			Active    bool   `json:"active"`
			LastError string `json:"last_error"`
			LastReset string `json:"last_reset"`
		} `json:"watchdog"`
		OtherPrimaries []string `json:"other_primaries"`
	} `json:"lictor"`
}

func (m *memberFacts) look(ctx context.Context, site *Site, client *api.Client) {
	limit, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	answer, err := client.Get(limit, m.member.APIURL, "/patroni")
	switch {
	case err != nil:
		m.statusErr = err
	case answer.Status != http.StatusOK:
		m.statusErr = fmt.Errorf("it answers %d", answer.Status)
	default:
		m.statusErr = json.Unmarshal([]byte(answer.Text), &m.status)
	}
	if m.member.State == cluster.StateRunning {
		m.sql, m.sqlErr = site.lookAtPostgres(limit, m.member)
	}
}

// examineMember judges agent, lease, guard and watchdog of a member.
func examineMember(m memberFacts) []Finding {
	d := diagnosis{area: "agent"}
	who := m.scope + "/" + m.member.Name
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
			duration(time.Duration(*age)*time.Millisecond), duration(loopWait))
	} else {
		d.fine(who, "%s", orElse(s.Lictor.Reason, "its loop goes round"))
	}
	if len(s.Lictor.OtherPrimaries) > 0 {
		d.add(Wrong, who, "stop PostgreSQL there unless it holds the lease, and see what was written to it",
			"other members run as a primary, too: %s", strings.Join(s.Lictor.OtherPrimaries, ", "))
	}
	if s.Failsafe {
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
		d.add(Worth, who, "look at Consul's latency and the host's load", "only %s of its lease of %s are left", duration(time.Duration(*left)*time.Millisecond), duration(ttl))
	default:
		d.fine(who, "%s of its lease are left, the guard is armed for %s", duration(time.Duration(*left)*time.Millisecond), duration(time.Duration(g.ArmedForMS)*time.Millisecond))
	}
}

func (d *diagnosis) watchdog(who string, m memberFacts) {
	w := m.status.Lictor.Watchdog
	switch {
	case w == nil:
		d.add(Worth, who, "set watchdog.mode: automatic or required, with a device or softdog (docs/watchdog.md)",
			"no watchdog: a host that hangs as a whole and comes back is not fenced in between")
	case m.status.WatchdogFailed || m.leads && !w.Working:
		d.add(Wrong, who, "see that the agent may write to "+w.Device+" and that nobody else holds it (wdctl)", "the watchdog does not work: %s", orElse(w.LastError, "no reason known"))
	case w.LastReset != "":
		d.add(Worth, who, "find out why the host hung", "the watchdog has reset the host: %s", w.LastReset)
	default:
		d.fine(who, "watchdog %s, mode %s", w.Device, w.Mode)
	}
}

// examineShard judges what Consul knows of a shard.
func examineShard(s fleetShard, namespace string, bouncers []cluster.Bouncer) []Finding {
	d := diagnosis{area: "shard"}
	if s.problem != nil {
		d.add(Wrong, s.scope, "put it right with lictor edit-config", "the dynamic configuration is not valid: %v", s.problem)
	}
	for _, alarm := range s.alarms(namespace, bouncers) {
		level := Wrong
		if strings.HasSuffix(alarm, waitsForRestart) {
			level = Worth
		}
		d.add(level, s.scope, whatHelps(alarm), "%s", alarm)
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
	if len(s.snapshot.Members) > 1 && (s.dynamic.SynchronousMode == cluster.SyncOff || s.dynamic.SynchronousMode == "") {
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

// whatHelps is what to do about an alarm of the fleet.
func whatHelps(alarm string) string {
	for _, known := range []struct{ part, do string }{
		{"no leader", "lictor list and the agents' logs say why nobody may lead; lictor failover makes a named member lead"},
		{"paused", "lictor resume, when the maintenance is over"},
		{waitsForRestart, "lictor restart --pending"},
		{"a primary, too", "see whether it runs (its key outlives it for a while); if so, stop it at once unless it holds the lease, and see what was written there"},
		{"has not been heard of", "see whether its host and its agent run; its key vanishes with its Consul session, a while after them"},
		{"is on timeline", "see its log; lictor reinit makes it anew"},
		{"does not replicate", "see PostgreSQL's log on both sides: pg_hba, password, slot, network"},
		{"lags", "see pg_stat_replication on the primary, and the replica's disk and long queries"},
		{"no replica", "add a member: without one nothing can take over"},
		{"no synchronous standby", "see that a replica streams and is not tagged nosync"},
		{"no route", "see the leader's log, and what its Consul token may write below lictor/routes/"},
		{"route", "see the leader's log; the key below lictor/routes/ is the leader's to write"},
		{"bouncer", "see that bouncer's log and lictor bouncer status"},
		{" is ", "see the agent's and PostgreSQL's log there"},
	} {
		if strings.Contains(alarm, known.part) {
			return known.do
		}
	}
	return "see the agents' logs"
}

// lookAtBouncers asks the bouncers for their health.
func (s *Site) lookAtBouncers(ctx context.Context, f fleet) []Finding {
	d := diagnosis{area: "bouncer"}
	client := &http.Client{Timeout: askLimit}
	defer client.CloseIdleConnections()
	for _, b := range f.bouncers {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, b.URL+"/health", nil)
		if err != nil {
			d.add(Wrong, b.Name, "see its configuration: listen", "its URL makes no sense: %v", err)
			continue
		}
		response, err := client.Do(request)
		if err != nil {
			d.add(Wrong, b.Name, "see that it runs and that its port can be reached: leaders tell it of handovers there", "it does not answer: %v", err)
			continue
		}
		response.Body.Close()
		if response.StatusCode != http.StatusOK {
			d.add(Worth, b.Name, "undrain it when the maintenance is over, else see its log", "/health answers %d: the load balancer sends it no clients", response.StatusCode)
			continue
		}
		d.fine(b.Name, "healthy")
	}
	served := func(scope string) bool {
		return slices.ContainsFunc(f.bouncers, func(b cluster.Bouncer) bool { return b.Serves(s.Namespace, scope) })
	}
	for _, shard := range f.shards {
		if len(f.bouncers) > 0 && !served(shard.scope) {
			d.add(Worth, shard.scope, "add it to a bouncer's shards, if clients are to come that way", "no bouncer serves this shard")
		}
	}
	return d.findings
}
