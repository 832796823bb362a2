package ha

import (
	"slices"
	"strings"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// synchronous keeps the promise of the key `sync`: every member that it names
// holds every acknowledged commit. So a name is taken out of the key before
// PostgreSQL stops waiting for it, and put in only after PostgreSQL waits for
// it and it has caught up.
//
//	mode  key                          PostgreSQL waits for   decision
//	off   exists                       any                    delete the key
//	off   absent                       somebody               wait for nobody
//	on    not ours, or names one that
//	      should go                    any                    write the key without it
//	on    ours                         not the wanted ones    wait for the wanted ones
//	on    lacks a caught-up one        the wanted ones        write the key with it
func synchronous(v View) Decision {
	pg, key := v.Postgres, v.Cluster.Sync
	if v.Config.SynchronousMode == cluster.SyncOff {
		switch {
		case key.Exists():
			return do("synchronous mode is off", WriteSync{Index: key.ModifyIndex})
		case len(pg.SyncNames) > 0:
			return do("synchronous mode is off", SetSync{})
		}
		return Decision{}
	}
	wanted := syncCandidates(v)
	promised := key.Value.Standbys()
	if !key.OK() || !strings.EqualFold(key.Value.Leader, v.Name) {
		promised = nil
	}
	kept := slices.DeleteFunc(slices.Clone(promised), func(n string) bool { return !containsFold(wanted, n) })
	waitFor := wanted
	if len(wanted) == 0 && v.Config.SynchronousStrict {
		waitFor = []string{"*"}
	}
	switch {
	case !key.OK() || !strings.EqualFold(key.Value.Leader, v.Name) || len(kept) < len(promised):
		return v.writeSync("a synchronous standby is gone", kept)
	case !sameNames(pg.SyncNames, waitFor):
		return do("synchronous standbys are chosen", SetSync{Standbys: waitFor})
	}
	caughtUp := slices.Clone(kept)
	for _, s := range pg.Standbys {
		if s.Streaming && s.Sync && pg.SyncSince > 0 && s.FlushLSN >= pg.SyncSince &&
			containsFold(wanted, s.Name) && !containsFold(caughtUp, s.Name) {
			caughtUp = append(caughtUp, s.Name)
		}
	}
	if len(caughtUp) > len(kept) {
		return v.writeSync("a synchronous standby has caught up", caughtUp)
	}
	return Decision{}
}

func (v View) writeSync(reason string, standbys []string) Decision {
	value := cluster.NewSync(v.Name, standbys)
	return do(reason, WriteSync{Index: v.Cluster.Sync.ModifyIndex, Value: &value})
}

// syncCandidates picks the standbys to wait for: those already promised as long
// as they stream, then the most advanced ones, up to synchronous_node_count.
func syncCandidates(v View) []string {
	promised := v.Cluster.Sync.Value.Standbys()
	var able []Standby
	for _, s := range v.Postgres.Standbys {
		m, found := v.member(s.Name)
		if s.Streaming && found && !m.Tag("nosync") {
			able = append(able, s)
		}
	}
	slices.SortStableFunc(able, func(a, b Standby) int {
		pa, pb := containsFold(promised, a.Name), containsFold(promised, b.Name)
		switch {
		case pa != pb && pa:
			return -1
		case pa != pb:
			return 1
		case a.FlushLSN != b.FlushLSN:
			return int(min(1, max(-1, b.FlushLSN-a.FlushLSN)))
		}
		return strings.Compare(a.Name, b.Name)
	})
	names := []string{}
	for _, s := range able[:min(len(able), max(1, v.Config.SynchronousNodeCount))] {
		names = append(names, s.Name)
	}
	return names
}

// member finds a member by the application_name that it streams under.
func (v View) member(applicationName string) (cluster.Member, bool) {
	for _, m := range v.Cluster.Members {
		if m.OK() && strings.EqualFold(m.Value.Name, applicationName) {
			return m.Value, true
		}
	}
	return cluster.Member{}, false
}

func containsFold(names []string, name string) bool {
	return slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(n, name) })
}

func sameNames(a, b []string) bool {
	if len(a) != len(b) {
		return false
	}
	for _, n := range a {
		if !containsFold(b, n) {
			return false
		}
	}
	return true
}

// syncForbids: while the key sync names a leader, only it and its synchronous
// standbys hold every acknowledged commit (I2). The key counts, not the
// setting: the setting may have changed after the last commit.
func (v View) syncForbids(name string) string {
	key := v.Cluster.Sync
	switch {
	case key.Err != nil:
		return "the sync key is not understood, so nobody is known to hold every commit: correct or delete it"
	case key.Exists() && key.Value.Leader != "" && !key.Value.Has(name):
		return "is not a synchronous standby of " + key.Value.Leader
	}
	return ""
}
