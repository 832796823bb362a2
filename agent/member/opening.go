package member

import (
	"slices"
	"strings"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// opening is a primary that was started with takeover by quorum, and nobody is led to yet.
type opening struct {
	since cluster.Instant
	end   int64 // of its recovery; zero: it was not looked at since
}

// Opening reports whether nobody is to be led to this primary yet, which was started, or is just being
// started: it may be seen to accept before that is known to have come to its end.
func (l *Local) Opening() bool { return l.opening != nil || l.unopened }

// opener opens a primary that was started (design 5.30). What was committed here and never acknowledged is
// visible after a recovery: whoever leads next must have it.
type opener struct {
	*Shard
	lead    *leadership
	local   *Local
	commits *commitWait
}

// begins notes, before a primary is started, that nobody is led to it until it is opened: an agent that is restarted
// meanwhile is to know that, too.
func (o *opener) begins() { o.local.unopened = o.matters() }

// matters reports whether another member may take over by quorum: as it is configured, or as a status may still stand that
// consents to it.
func (o *opener) matters() bool {
	return o.Dynamic.Takeover == cluster.TakeoverQuorum || o.lead.LeaseState.Consented()
}

// started notes that the primary was started, in place of one that has ended.
func (o *opener) started() {
	if !o.matters() {
		return
	}
	o.local.opening, o.local.unopened = &opening{since: o.Now()}, true
	o.lead.LeaseState.BeatSoon()
}

// mind opens it after a beat that was sent since, or without Consul a round of questions in which all members have
// promised, and when enough standbys have flushed the end of its recovery.
func (o *opener) mind() {
	waits, seen := o.local.opening, &o.local.PG.Observed
	switch {
	case !o.matters():
		o.local.opening, o.local.unopened = nil, false
		return
	case waits == nil && o.local.unopened && o.local.PG.Running && o.local.PG.Primary(): // after one that was not seen to run
		o.local.opening = &opening{since: o.Now()}
		return
	case waits == nil:
		return
	case o.local.PG.ObservedAt <= waits.since: // what is known is the PostgreSQL that has ended
		return
	case !o.local.PG.Running || !o.local.PG.Primary():
		o.local.opening = nil
		return
	case !seen.Accepting:
		return
	}
	if waits.end == 0 {
		waits.end = seen.WriteLSN
	}
	if lease := o.lead.LeaseState.Lease(); max(lease.Renewed, lease.Agreed) <= waits.since || !o.flushed(waits.end) {
		return
	}
	o.local.opening, o.local.unopened = nil, false
	o.Log.Info().Msg("the primary that was started is led to: enough standbys have all that it has recovered")
}

// flushed reports whether a commit up to there would be acknowledged.
func (o *opener) flushed(lsn int64) bool {
	if !o.commits.shown() {
		return false
	}
	names, num := o.commits.names, o.commits.any
	if num == 0 {
		num = len(names)
	}
	var have []string
	for _, s := range o.local.PG.Observed.Standbys {
		named := slices.Contains(names, "*") || slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(n, s.ApplicationName) })
		if named && s.FlushLSN >= lsn && !slices.Contains(have, s.ApplicationName) {
			have = append(have, s.ApplicationName)
		}
	}
	return len(have) >= num
}
