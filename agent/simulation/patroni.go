package simulation

import (
	"slices"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/pg"
)

// patroni is a member that runs Patroni (design 5.23): it takes a lock at once that is free,
// knows of no lease, and answers nobody who asks for more than Patroni tells. Its loop is
// Patroni's in short: one request to Consul, and what follows from the answer.
type patroni struct {
	host    *host
	dead    bool
	session string
	until   instant // by then it must have heard of its lock again
	busy    bool    // PostgreSQL is being started, stopped, promoted or made
	shown   *branch // on which its member key said last that it is a primary
}

// How often Patroni looks, and how long a request may take.
const (
	patroniEvery  = 2 * time.Second
	patroniWithin = 2 * time.Second
)

func (s Schedule) runsPatroni(member int) bool { return slices.Contains(s.Patroni, member) }

func (h *host) startPatroni() {
	if h.patroni == nil && h.up {
		h.patroni = &patroni{host: h}
		h.w.say("%s: Patroni starts", h.name)
		h.patroni.look()
	}
}

// endPatroni kills it; its PostgreSQL runs on.
func (h *host) endPatroni() {
	if h.patroni != nil {
		h.patroni.dead = true
		h.patroni = nil
	}
}

func (p *patroni) do(f func()) {
	p.host.process(func() {
		if !p.dead {
			f()
		}
	})
}

// look asks Consul and acts on the answer, again and again.
func (p *patroni) look() {
	w, me := p.host.w, p.host.id
	sent, answered := w.now, false
	finish := func(act func()) {
		if !answered {
			answered = true
			act()
			w.after(patroniEvery, func() { p.do(p.look) })
		}
	}
	w.net.send(me, len(w.hosts), func() {
		w.consul.arrive(func() {
			if refused, _ := w.refuses(me); refused {
				return
			}
			leader := p.ask(&w.consul)
			w.net.send(len(w.hosts), me, func() { p.do(func() { finish(func() { p.heard(leader, sent) }) }) })
		}, nil)
	})
	w.after(patroniWithin, func() { p.do(func() { finish(p.unheard) }) })
}

// onFailsafeList reports whether the key failsafe lets it into the race for the lock
// (Patroni 3.0.2, Ha.is_healthiest_node): it names it, or nobody, or is not looked at.
func (p *patroni) onFailsafeList(c *consul) bool {
	members := entryOf[map[string]string](c, keyFailsafe).Value
	_, named := members[p.host.name]
	on, _ := p.host.w.config["failsafe_mode"].(bool) // its default is off
	return named || len(members) == 0 || !on
}

// ask renews the session, tells of the member, takes the lock if it is free and tells of its
// position and history if it is the member's own. It returns who holds it.
func (p *patroni) ask(c *consul) (leader string) {
	pg, ttl := &p.host.pg, sessionTTL(p.host.w.ttl())
	s := c.session(p.session)
	if s == nil {
		p.session = c.createSession(p.host.id, ttl)
		s = c.session(p.session)
	}
	c.renew(s)
	role, state := cluster.RoleReplica, cluster.StateRunning
	if pg.primary && pg.writable {
		role = cluster.RolePrimary
	}
	if !pg.ready {
		state = cluster.StateStopped
	}
	c.commit([]op{{verb: lock, key: keyMembers + p.host.name, session: p.session, value: cluster.Member{
		Name: p.host.name, ConnURL: "postgres://" + p.host.name + ":5432/postgres", APIURL: "http://" + p.host.name,
		State: state, Role: role, XLogLocation: pg.at.lsn, Timeline: pg.at.branch.timeline,
	}}})
	leader = c.leaderNamed()
	if leader == p.host.name && (pg.empty || c.keys[keyLeader].session != p.session) {
		// Without data it gives the lock up; one of an earlier session it makes anew.
		c.commit([]op{{verb: del, key: keyLeader}})
		leader = ""
	}
	if leader == "" && pg.ready && !cluster.NoFailover(p.host.tags) && p.onFailsafeList(c) && c.commit([]op{{verb: lock, key: keyLeader, session: p.session, value: p.host.name}}) {
		p.host.w.say("%s: Patroni takes the lock", p.host.name)
		p.host.w.judge.patroniLeads(p.host)
		leader = p.host.name
	}
	if leader == p.host.name && c.keys[keyLeader].session == p.session && pg.writable {
		c.put(keyStatus, cluster.Status{OpTime: pg.at.lsn})
		p.host.w.judge.status = cluster.Status{OpTime: pg.at.lsn}
		p.tellHistory(c)
	}
	return leader
}

// tellHistory writes the key history a loop after the member key has told of the promotion, and
// not at all if the key ends with the timeline before this one, whoever wrote that
// (Ha.update_cluster_history).
func (p *patroni) tellHistory(c *consul) {
	at := p.host.pg.at
	if p.shown != at.branch {
		p.shown = at.branch
		return
	}
	told, _ := c.keys[keyHistory].value.(cluster.History)
	if last := len(told) - 1; last < 0 || told[last].Timeline != at.branch.timeline-1 {
		if history := at.history(); len(history) > 0 || len(told) > 0 {
			c.put(keyHistory, history)
		}
	}
}

// ttl is the one that is configured.
func (w *world) ttl() time.Duration {
	d, _, err := cluster.ParseDynamic(w.config)
	if err != nil {
		panic("simulation: " + err.Error())
	}
	return d.TTL
}

// heard acts on who holds the lock.
func (p *patroni) heard(leader string, sent instant) {
	pg, up := &p.host.pg, p.host.w.hostNamed(leader)
	if leader == p.host.name {
		p.until = sent + p.host.w.ttl()
	}
	if pg.ready { // on replicas, too: others replicate from them
		pg.syncSlots(p.otherSlots(), false)
	}
	switch {
	case p.busy:
	case leader == p.host.name && !pg.running:
		p.begin(func(done func(error)) { pg.start(pg.primary, "", nil, done) })
	case leader == p.host.name && pg.ready && !pg.primary:
		p.begin(func(done func(error)) { pg.promote(0, func(then func(error)) { then(nil) }, done) })
	case leader == "" && !pg.running: // it sees how far its WAL goes (Ha.recover)
		p.begin(p.startAlone)
	case leader == p.host.name || leader == "":
	case pg.running && pg.primary:
		p.begin(pg.stop)
	case pg.empty || pg.made == workUnfinished:
		p.begin(func(done func(error)) { pg.clone(up, func(err error) { p.made(err); done(err) }) })
	case !pg.running, pg.aim != leader, !pg.streaming && up.pg.writable && !up.pg.at.holds(pg.at):
		p.begin(func(done func(error)) { p.follow(up, done) })
	}
}

// others are all other members.
func (p *patroni) others() (names []string) {
	for _, h := range p.host.w.hosts {
		if h != p.host {
			names = append(names, h.name)
		}
	}
	return names
}

// otherSlots are slots for all other members.
func (p *patroni) otherSlots() (wanted []pg.WantedSlot) {
	for _, name := range p.others() {
		wanted = append(wanted, pg.WantedSlot{Slot: cluster.Slot{Name: name, Type: cluster.SlotPhysical}})
	}
	return wanted
}

func (p *patroni) made(err error) {
	if err == nil {
		p.host.pg.made = workNone
	}
}

// empty empties the data directory, which is cloned anew then.
func (p *patroni) empty(done func(error)) {
	p.host.pg.stop(func(err error) {
		if err == nil {
			p.host.pg.discard()
		}
		done(err)
	})
}

// begin begins a piece of work; Patroni looks on meanwhile, and begins nothing else.
func (p *patroni) begin(work func(done func(error))) {
	p.busy = true
	work(func(error) { p.do(func() { p.busy = false }) })
}

// follow makes the member follow another one, with PostgreSQL stopped if need be.
func (p *patroni) follow(up *host, done func(error)) {
	pg := &p.host.pg
	if pg.running && up.pg.at.holds(pg.at) {
		pg.follow(up.name, done)
		return
	}
	pg.stop(func(err error) {
		if err != nil {
			done(err)
			return
		}
		rewinding{up: up, allowed: true, cut: func() bool { return false }, done: func(err error) {
			switch {
			case pg.ruined: // as it is configured there
				p.do(func() { p.empty(done) })
				return
			case err != nil:
				done(err)
				return
			}
			p.do(func() { pg.start(false, up.name, nil, done) })
		}}.begin(pg)
	})
}

// startAlone starts PostgreSQL as a replica of nobody.
func (p *patroni) startAlone(done func(error)) { p.host.pg.start(false, "", nil, done) }

// unheard: a primary of Patroni's that has not heard of its lock for a ttl is demoted, and goes
// on as a replica of nobody (Ha.demote, offline).
func (p *patroni) unheard() {
	if pg := &p.host.pg; !p.busy && pg.running && pg.primary && p.host.w.now > p.until {
		p.begin(func(done func(error)) {
			pg.stop(func(err error) {
				if err != nil {
					done(err)
					return
				}
				p.do(func() { p.startAlone(done) })
			})
		})
	}
}

// patroniLeads: whoever accepts commits while Patroni holds the lock does so no longer than
// its own lease, whatever it hears of.
func (j *judge) patroniLeads(h *host) {
	j.clean = nil
	session := j.w.consul.keys[keyLeader].session
	j.w.after(longestLease, func() {
		if j.w.consul.keys[keyLeader].session != session {
			return
		}
		for _, other := range j.w.hosts {
			if other.pg.writable && other.up && !other.exempt() {
				j.fail("I1", "%s accepts commits, and %s of Patroni has held the lock for %s", other.name, h.name, longestLease)
			}
		}
	})
}
