package ha

// crashLoop is how many unexpected ends of PostgreSQL within minutes make a
// leader give up if another member can lead.
const crashLoop = 3

// leading: this member holds the lease. It beats, whatever else happens, and
// makes PostgreSQL be the primary.
//
//	PostgreSQL                              decision
//	primary, accepting                      handover if asked for; synchronous replication
//	replica, accepting                      promote
//	running, not accepting                  wait for it, up to primary_start_timeout
//	down                                    restart it in place
//	down, primary_start_timeout over or 0,
//	  or in a crash loop, and another
//	  member can lead                       give the lease up
func leading(v View) (Decision, bool) {
	if v.Lease.Until.IsZero() {
		return Decision{}, false
	}
	d := duty(v)
	beat := renew(v)
	d.Actions = append(beat.Actions, d.Actions...)
	d = d.by(beat.Wake).by(v.fenceNext())
	if d.Reason == "" {
		d.Reason = beat.Reason
	}
	return d, true
}

// renew keeps lease and lock. A lock that vanished with its session, while the
// lease runs, is taken again; nobody else may take it (rule 3).
func renew(v View) Decision {
	due := v.Lease.BeatSent.Add(v.Config.BeatInterval())
	mine := v.Cluster.Leader.Exists() && v.Session != "" && v.Cluster.Leader.Session == v.Session
	switch {
	case v.Lease.InFlight:
		return wait("the leader, with the lock")
	case !mine && v.Session != "":
		return do("the leader; its lock went with its session and is taken again", v.takeOver())
	case !v.Now.Before(due):
		return do("the leader, with the lock", Beat{})
	default:
		return wait("the leader, with the lock").by(due)
	}
}

func duty(v View) Decision {
	pg := v.Postgres
	switch {
	case v.Task != TaskNone:
		return wait("the leader, busy: " + string(v.Task))
	case !pg.Running:
		return restartInPlace(v)
	case !pg.Accepting:
		if timeout := v.Config.PrimaryStartTimeout; !pg.DownSince.IsZero() && !v.Now.Before(pg.DownSince.Add(timeout)) {
			return giveUpOr(v, "PostgreSQL did not come up within primary_start_timeout", Decision{})
		}
		return wait("the leader; PostgreSQL is starting")
	case v.Config.Pause:
		return handover(v)
	case !pg.Primary:
		promote := v.unlessFailing(do("the leader", Promote{}))
		if v.Attempt.Kind == TaskPromote && v.Attempt.Failures >= crashLoop {
			return giveUpOr(v, "the promotion fails again and again", promote)
		}
		return promote
	default:
		if d := handover(v); d.Reason != "" || len(d.Actions) > 0 {
			return d
		}
		return synchronous(v)
	}
}

// restartInPlace: the leader's PostgreSQL is down. Starting it here is the
// safest way back, as nothing acknowledged can be missing, but not for ever.
func restartInPlace(v View) Decision {
	pg := v.Postgres
	if v.Config.Pause {
		return wait("the leader; PostgreSQL is down and the shard is paused")
	}
	start := do("the leader; PostgreSQL is down and is started again", StartPrimary{})
	if !pg.Primary {
		start = do("the leader; PostgreSQL is down and is started again before its promotion", StartReplica{})
	}
	start = v.unlessFailing(start)
	timeout := v.Config.PrimaryStartTimeout
	switch {
	case timeout == 0:
		return giveUpOr(v, "PostgreSQL is down and primary_start_timeout is 0", start)
	case !pg.DownSince.IsZero() && !v.Now.Before(pg.DownSince.Add(timeout)):
		return giveUpOr(v, "PostgreSQL did not come up within primary_start_timeout", start)
	case pg.Crashes >= crashLoop || v.Attempt.Kind == TaskStart && v.Attempt.Failures >= crashLoop:
		return giveUpOr(v, "PostgreSQL fails again and again", start)
	}
	return start
}

// giveUpOr gives the lease up if another member says that it can lead, and
// does the other thing if there is none.
func giveUpOr(v View, reason string, otherwise Decision) Decision {
	if !v.peersFresh() {
		otherwise.Actions = append(otherwise.Actions[:len(otherwise.Actions):len(otherwise.Actions)], AskPeers{})
		return otherwise
	}
	if !v.PeersDone {
		return otherwise
	}
	best := Peer{}
	for _, p := range v.Peers {
		if v.electable(p) == "" && (best.Name == "" || v.better(p, best)) {
			best = p
		}
	}
	if best.Name == "" {
		return otherwise
	}
	// Named, so that this member, whose WAL may well be ahead, does not take the
	// lease back at once.
	return do(reason+"; "+best.Name+" can lead", GiveUp{Successor: best.Name})
}
