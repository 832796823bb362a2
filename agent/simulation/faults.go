package simulation

import (
	"maps"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// The kinds of event.
const (
	KillAgent         Kind = "kill-agent" // and start it again after For
	StopAgent         Kind = "stop-agent" // SIGSTOP
	StarveAgent       Kind = "starve-agent"
	EndAgent          Kind = "end-agent" // SIGTERM, started again after For
	KillGuard         Kind = "kill-guard"
	StopGuard         Kind = "stop-guard"
	KillAgentAndGuard Kind = "kill-agent-and-guard"
	KillWatcher       Kind = "kill-watcher" // the guard's parent
	StopWatcher       Kind = "stop-watcher"
	StopBoth          Kind = "stop-guard-and-watcher"
	KillPostmaster    Kind = "kill-postmaster"
	HangPostmaster    Kind = "hang-postmaster" // of a primary for ever, unless it is killed
	SlowPostgres      Kind = "slow-postgres"
	LagReplica        Kind = "lag-replica"
	HostLoss          Kind = "host-loss"
	FreezeHost        Kind = "freeze-host"
	CutOneWay         Kind = "cut-one-way"
	CutBoth           Kind = "cut-both"
	Isolate           Kind = "isolate"          // from members and Consul
	CutFromMembers    Kind = "cut-from-members" // Consul is still there
	SlowNetwork       Kind = "slow-network"     // all ways of a member
	SlowOneWay        Kind = "slow-one-way"
	LateWatch         Kind = "late-watch"           // blocking queries are answered late
	ConsulHang        Kind = "consul-hang"          // everywhere
	ConsulDown        Kind = "consul-down"          // everywhere
	ConsulLeaderLoss  Kind = "consul-leader-loss"   // an election
	SessionLoss       Kind = "session-loss"         // Consul deregisters the node
	Switchover        Kind = "switchover"           // to Member
	Pause             Kind = "pause"                // until For is over
	SetTTL            Kind = "set-ttl"              // to Value seconds
	SetSyncMode       Kind = "set-synchronous-mode" // to Text
	SetFailsafe       Kind = "set-failsafe-mode"    // to Value, 0 or 1
	FailPostgres      Kind = "fail-postgres"        // its starts and promotions
	Reinit            Kind = "reinitialize"
	Restart           Kind = "restart-postgres" // as an operator asks the agent to
	LoseData          Kind = "lose-data"        // all that is on the disk, the agent's own files too
)

// fault is one kind of event: which of an event's fields it reads, and what it does.
// inject returns how it ends, nil when it is over at once.
type fault struct {
	member, other, value bool
	inject               func(w *world, e Event) (heal func())
}

// heal ends a fault, once.
type heal struct {
	do   func()
	done bool
}

func (h *heal) run() {
	if !h.done {
		h.done = true
		h.do()
	}
}

func (w *world) inject(e Event) {
	w.say("-- %s", w.schedule.words(e))
	end := known()[e.Kind].inject(w, e)
	if end == nil {
		return
	}
	h := &heal{do: func() { w.say("-- over: %s", w.schedule.words(e)); end() }}
	w.heals = append(w.heals, h)
	w.after(e.For, h.run)
}

// healAll ends all faults.
func (w *world) healAll() {
	for _, h := range w.heals {
		h.run()
	}
}

// known are all kinds of fault.
func known() map[Kind]fault {
	all := faults()
	for _, more := range []map[Kind]fault{consulFaults(), postgresFaults(), remoteFaults(), sitesFaults(), readerFaults(), takeoverFaults()} {
		maps.Copy(all, more)
	}
	return all
}

func faults() map[Kind]fault {
	return map[Kind]fault{
		KillAgent:   {member: true, inject: killAgent},
		StopAgent:   {member: true, inject: stopAgent},
		StarveAgent: {member: true, inject: starveAgent},
		EndAgent:    {member: true, inject: endAgent},
		KillGuard: {member: true, inject: func(w *world, e Event) func() {
			w.hosts[e.Member].guard.die()
			return nil
		}},
		StopGuard: {member: true, inject: stopGuard},
		KillAgentAndGuard: {member: true, inject: func(w *world, e Event) func() {
			w.hosts[e.Member].guard.die()
			return killAgent(w, e)
		}},
		KillWatcher: {member: true, inject: func(w *world, e Event) func() {
			w.hosts[e.Member].guard.watcher.die()
			return nil
		}},
		StopWatcher: {member: true, inject: func(w *world, e Event) func() {
			return w.hosts[e.Member].guard.watcher.stop()
		}},
		StopBoth: {member: true, inject: func(w *world, e Event) func() {
			guard, watcher := stopGuard(w, e), w.hosts[e.Member].guard.watcher.stop()
			return func() {
				guard()
				if watcher != nil {
					watcher()
				}
			}
		}},
		KillPostmaster: {member: true, inject: func(w *world, e Event) func() {
			w.hosts[e.Member].pg.end()
			return nil
		}},
		HangPostmaster: {member: true, inject: func(w *world, e Event) func() {
			goOn := stopPostmaster(w, e)
			if w.hosts[e.Member].pg.primary && !w.schedule.runsPatroni(e.Member) {
				return nil // it is a leader's to see, if that runs Lictor
			}
			return goOn
		}},
		HangDisk:     {member: true, inject: hangDisk},
		SlowPostgres: {member: true, value: true, inject: slowPostgres},
		LagReplica: {member: true, inject: func(w *world, e Event) func() {
			pg := &w.hosts[e.Member].pg
			pg.lagging++
			return func() { pg.lagging-- }
		}},
		HostLoss:   {member: true, inject: hostLoss},
		FreezeHost: {member: true, inject: freezeHost},
		CutOneWay:  {member: true, other: true, inject: func(w *world, e Event) func() { return w.cut([][2]int{{e.Member, e.Other}}) }},
		CutBoth: {member: true, other: true, inject: func(w *world, e Event) func() {
			return w.cut([][2]int{{e.Member, e.Other}, {e.Other, e.Member}})
		}},
		Isolate:        {member: true, inject: func(w *world, e Event) func() { return w.cut(w.ways(e.Member, true)) }},
		CutFromMembers: {member: true, inject: func(w *world, e Event) func() { return w.cut(w.ways(e.Member, false)) }},
		SlowNetwork:    {member: true, value: true, inject: slowNetwork},
		SlowOneWay: {member: true, other: true, value: true, inject: func(w *world, e Event) func() {
			path := w.net.path(e.Member, e.Other)
			w.net.slow[path] = time.Duration(e.Value) * time.Millisecond
			return func() { w.net.slow[path] = 0 }
		}},
		LateWatch: {member: true, inject: func(w *world, e Event) func() {
			w.net.late[e.Member] = max(time.Duration(e.Value)*time.Millisecond, 3*time.Second)
			return func() { w.net.late[e.Member] = 0 }
		}},
		ConsulHang:       {inject: consulBecomes(consulHangs)},
		ConsulDown:       {inject: consulBecomes(consulDown)},
		ConsulLeaderLoss: {inject: consulBecomes(consulElecting)},
		SessionLoss: {member: true, inject: func(w *world, e Event) func() {
			for i := len(w.consul.sessions) - 1; i >= 0; i-- {
				if s := w.consul.sessions[i]; s.owner == e.Member {
					w.consul.end(s)
				}
			}
			return nil
		}},
		Switchover:  {member: true, inject: switchover},
		Pause:       {inject: pause},
		SetTTL:      {value: true, inject: setTTL},
		SetSyncMode: {inject: setSyncMode},
		FailPostgres: {member: true, inject: func(w *world, e Event) func() {
			pg := &w.hosts[e.Member].pg
			pg.failing++
			return func() { pg.failing-- }
		}},
		ByHand: {member: true, inject: byHand},
		Reinit: {member: true, inject: func(w *world, e Event) func() {
			if a := w.hosts[e.Member].agent; a != nil {
				a.post(func() {
					if a.Reinitialize(false, false) == nil { // it may be refused
						a.host.asked = a.TaskSince()
					}
				})
			}
			return nil
		}},
		Restart: {member: true, inject: func(w *world, e Event) func() {
			if a := w.hosts[e.Member].agent; a != nil {
				a.post(func() {
					if a.MayRestart() == nil { // it may be refused
						a.Restart(func(error) {})
						a.host.asked = a.TaskSince()
					}
				})
			}
			return nil
		}},
		LoseData: {member: true, inject: loseData},
		Upgrade:  {member: true, inject: upgradeShard},
		Restore:  {member: true, value: true, inject: restoreShard},
		SetFailsafe: {value: true, inject: func(w *world, e Event) func() {
			w.reconfigure(map[string]any{"failsafe_mode": e.Value != 0})
			return nil
		}},
	}
}

func killAgent(w *world, e Event) func() {
	h := w.hosts[e.Member]
	if h.agent != nil {
		h.agent.die()
	}
	h.endPatroni()
	h.away++
	return func() {
		h.away--
		h.revive()
	}
}

// revive is systemd: the agent is started again.
func (h *host) revive() {
	if h.away == 0 {
		h.startAgent()
	}
}

func endAgent(w *world, e Event) func() {
	h := w.hosts[e.Member]
	if a := h.agent; a != nil {
		a.do(func() {
			a.BeginStop()
			a.step()
		})
	}
	h.away++
	return func() {
		if h.agent != nil {
			h.agent.die() // it did not end in time
		}
		h.away--
		h.revive()
	}
}

func stopAgent(w *world, e Event) func() {
	a := w.hosts[e.Member].agent
	if a == nil {
		return nil
	}
	a.stopped++
	return func() {
		a.host.changes(func() { a.stopped-- })
		if a.stopped > 0 || a.dead {
			return
		}
		held := a.held
		a.held = nil
		for _, f := range held {
			a.now(f)
		}
	}
}

func starveAgent(w *world, e Event) func() {
	a := w.hosts[e.Member].agent
	if a == nil {
		return nil
	}
	a.starved = 2 * time.Second
	return func() { a.host.changes(func() { a.starved = 0 }) }
}

func stopGuard(w *world, e Event) func() {
	h := w.hosts[e.Member]
	g := &h.guard
	g.stopped++
	return func() {
		h.changes(func() { g.stopped = max(0, g.stopped-1) })
		g.goOn()
	}
}

// goOn runs what came in while the guard was stopped.
func (g *guard) goOn() {
	if g.stopped > 0 {
		return
	}
	held := g.held
	g.held = nil
	for _, f := range held {
		g.run(f)
	}
}

func slowPostgres(w *world, e Event) func() {
	pg := &w.hosts[e.Member].pg
	pg.slow = time.Duration(e.Value) * time.Second
	return func() { pg.slow = 0 }
}

func hostLoss(w *world, e Event) func() {
	h := w.hosts[e.Member]
	if !h.up {
		return nil
	}
	if h.agent != nil {
		h.agent.die()
	}
	h.endPatroni()
	h.up, h.held = false, nil
	h.boot++
	h.pg.end()
	h.guard.watcher.die()
	h.guard = guard{host: h}
	return func() {
		h.up = true
		h.offset -= h.offset + time.Duration(float64(w.now)*h.rate) - time.Second // it has just booted
		w.after(w.between(0, 2*time.Second), h.revive)
	}
}

// loseData replaces a member's disk by an empty one, and boots it, while another member
// leads that has all that was acknowledged: else nobody could make that good.
func loseData(w *world, e Event) func() {
	h, leader := w.hosts[e.Member], w.hostNamed(w.consul.leaderNamed())
	if leader == nil || leader == h || !leader.pg.writable {
		return nil
	}
	if key, found := w.consul.keys[keySync]; found && key.value.(cluster.Sync).Leader != leader.name {
		return nil
	}
	heal := hostLoss(w, e)
	if heal == nil {
		return nil
	}
	h.pg.discard()
	h.pg.loss, h.pg.detachment, h.mark = nil, nil, nil
	return heal
}

func freezeHost(w *world, e Event) func() {
	h := w.hosts[e.Member]
	if h.frozen || !h.up {
		return nil
	}
	h.frozen = true
	return func() {
		h.frozen = false
		h.back()
		held := h.held
		h.held = nil
		for _, f := range held {
			w.after(w.between(0, 5*time.Millisecond), func() { h.process(f) })
		}
	}
}

// ways are all ways of a member, with Consul or without.
func (w *world) ways(member int, consul bool) [][2]int {
	var all [][2]int
	for i := range w.net.nodes {
		if i != member && (consul || i < len(w.hosts)) {
			all = append(all, [2]int{member, i}, [2]int{i, member})
		}
	}
	return all
}

func (w *world) cut(ways [][2]int) func() {
	for _, way := range ways {
		w.net.change(way[0], way[1], 1)
	}
	return func() {
		for _, way := range ways {
			w.net.change(way[0], way[1], -1)
		}
	}
}

func slowNetwork(w *world, e Event) func() {
	by := func(d time.Duration) {
		for _, way := range w.ways(e.Member, true) {
			w.net.slow[w.net.path(way[0], way[1])] = d
		}
	}
	by(time.Duration(e.Value) * time.Millisecond)
	return func() { by(0) }
}

func consulBecomes(s consulState) func(*world, Event) func() {
	return func(w *world, _ Event) func() {
		if w.consul.state != consulUp {
			return nil
		}
		w.consul.become(s)
		return func() { w.consul.become(consulUp) }
	}
}

func switchover(w *world, e Event) func() {
	leader := w.consul.leaderNamed()
	if leader == "" || w.consul.state != consulUp {
		return nil
	}
	w.judge.switched = append(w.judge.switched, w.hostNamed(leader))
	w.consul.put(keyFailover, cluster.Failover{Leader: leader, Candidate: memberName(e.Member)})
	return nil
}

func pause(w *world, _ Event) func() {
	w.judge.switched, w.judge.made = nil, nil
	w.reconfigure(map[string]any{"pause": true})
	return func() { w.resume(w.now + 10*time.Second) }
}

// resume ends the pause when the operator is done with what is done by hand.
func (w *world) resume(latest instant) {
	if !w.judge.settled(w.now < latest) {
		w.after(time.Second, func() { w.resume(latest) })
		return
	}
	w.judge.paused = false
	w.reconfigure(map[string]any{"pause": nil})
}

func setTTL(w *world, e Event) func() {
	w.reconfigure(map[string]any{"ttl": e.Value, "loop_wait": nil, "retry_timeout": nil})
	return nil
}

func setSyncMode(w *world, e Event) func() {
	modes := map[string]any{"on": true, "off": false, "quorum": "quorum"}
	patch := map[string]any{"synchronous_mode": modes[e.Text]}
	if by := w.schedule.Config["takeover"]; by != nil { // it needs a synchronous mode
		if patch["takeover"] = by; e.Text == "off" {
			patch["takeover"] = nil
		}
	}
	w.reconfigure(patch)
	return nil
}
