package agent

import (
	"context"
	"time"

	"github.com/lictor-ha/lictor/agent/postgres"
)

// probeAtLeast is how often, at the most, the disk is probed.
const probeAtLeast = 3 * time.Second

// watchDisk writes to the data directory's disk again and again while this member
// leads, and goes on while there is trouble: who cannot write must not lead.
func (a *Agent) watchDisk(ctx context.Context) {
	defer func() {
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		a.probe.Close(limit)
	}()
	troubled := false
	for ctx.Err() == nil {
		every := max(a.dynamic.Load().LoopWait, probeAtLeast)
		pause(ctx, every)
		if !a.State().Leader && !troubled {
			continue
		}
		verdict, err := a.probe.Run(ctx, every)
		if err != nil {
			if ctx.Err() == nil {
				a.log.Debug().Err(err).Msg("the disk could not be probed")
			}
			continue
		}
		troubled = !verdict.OK
		a.post(func() { a.sawDisk(verdict) })
	}
}

// sawDisk takes in what a probe has found.
func (a *Agent) sawDisk(v postgres.DiskVerdict) {
	if v.OK {
		a.m.SawDisk("", 0)
		a.m.ClearOnce("disk")
		return
	}
	since := a.clock()
	if v.Hung {
		since = since.Add(-v.Took)
	}
	a.m.SawDisk(v.Problem, since)
	a.m.Once("disk", "the data directory cannot be written", string(v.Trouble))
}
