package member

import (
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/pg"
)

// commitWait is whom this primary's commits wait for, as this agent has set it.
type commitWait struct {
	*Shard
	local    *Local
	postgres Postgres
	watches  Watches

	names []string
	any   int
	since int64
	value string // what PostgreSQL must show for these to hold
	// set: they were, successfully, in this life of PostgreSQL; setting: they are being set. ever: names, any and value are those
	// that were set last, in whichever life.
	set, setting, ever bool
}

// apply makes commits wait for standbys, then reads how far the WAL is: a
// standby that has more than that holds everything acknowledged before. What was
// in force is not known for certain from the beginning of the attempt on.
func (c *commitWait) apply(s ha.SetSync) {
	if c.setting {
		return
	}
	c.setting, c.set = true, false
	c.postgres.SetSynchronous(c.Dynamic.RetryTimeout, s, func(set pg.SyncInForce, err error) {
		c.setting = false
		if err != nil {
			c.Log.Warn().Err(err).Msg("setting synchronous_standby_names failed")
			return
		}
		c.names, c.any, c.since, c.value, c.set, c.ever = s.Standbys, s.Any, set.Since, set.Value, true, true
		c.local.PG.Observed.SyncNames = set.Value // an older observation does not make it unsure again
		c.Log.Info().Strs("standbys", s.Standbys).Int("any", s.Any).Msg("commits wait for these standbys")
		c.watches.KickPostgres()
	})
}

// shown reports whether PostgreSQL shows that commits wait for these. It does, too, where it was started with what its
// configuration file says, of an earlier life: where Consul is away, nothing may be set anew.
func (c *commitWait) shown() bool {
	o := &c.local.PG.Observed
	return c.ever && !c.setting && o.Accepting && o.SyncNames == c.value
}

// unsure reports whether PostgreSQL may wait for others than these.
func (c *commitWait) unsure() bool {
	o := &c.local.PG.Observed
	return !c.set || c.setting || o.Accepting && o.SyncNames != c.value
}
