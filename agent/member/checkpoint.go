package member

// firstCheckpoint makes a new timeline's first checkpoint, before which nobody can rewind to
// it.
type firstCheckpoint struct {
	*Shard
	local    *Local
	postgres Postgres

	promotedTo int // the timeline that this run has promoted to
	made       int // the timeline whose first checkpoint was made
	making     bool
}

// missing reports whether the primary's timeline has no checkpoint yet.
func (c *firstCheckpoint) missing() bool {
	o := &c.local.PG.Observed
	return o.Accepting && !o.InRecovery && c.promotedTo == o.Timeline && c.made != o.Timeline
}

func (c *firstCheckpoint) make() {
	if c.making || !c.missing() {
		return
	}
	c.making = true
	timeline := c.promotedTo
	c.postgres.Checkpoint(nil, func(err error) {
		c.making = false
		if err != nil {
			c.Log.Warn().Err(err).Msg("the checkpoint after the promotion failed")
			return
		}
		c.made = timeline
	})
}
