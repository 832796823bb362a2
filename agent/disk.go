package agent

import (
	"context"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/fence"
	"github.com/lictor-ha/lictor/agent/member"
	"github.com/lictor-ha/lictor/agent/postgres"
)

// probeAtLeast is how often, at the most, the disk is probed.
const probeAtLeast = 3 * time.Second

// diskWatch finds out whether the data directory can be written.
type diskWatch struct {
	*board
	m     *member.Member
	probe *postgres.DiskProbe
	clock fence.Clock
	log   zerolog.Logger
}

// run writes to the data directory's disk again and again while this member
// leads, and goes on while there is trouble: who cannot write must not lead.
func (d *diskWatch) run(ctx context.Context) {
	defer func() {
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		d.probe.Close(limit)
	}()
	troubled := false
	for ctx.Err() == nil {
		every := max(d.dynamic.Load().LoopWait, probeAtLeast)
		pause(ctx, every)
		if !d.State().Leader && !troubled {
			continue
		}
		verdict, err := d.probe.Run(ctx, every)
		if err != nil {
			if ctx.Err() == nil {
				d.log.Debug().Err(err).Msg("the disk could not be probed")
			}
			continue
		}
		troubled = !verdict.OK
		d.post(func() { d.saw(verdict) })
	}
}

// saw takes in, on the loop, what a probe has found.
func (d *diskWatch) saw(v postgres.DiskVerdict) {
	since := d.clock()
	switch {
	case v.OK:
		v.Problem, v.Trouble, since = "", "", 0
	case v.Hung:
		since = since.Add(-v.Took)
	}
	d.m.SawDisk(v.Problem, since)
	d.m.Problem("disk", "the data directory cannot be written", string(v.Trouble))
}
