package member

import (
	"slices"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/pg"
)

// historyWriter writes the history of the timelines for the shard.
type historyWriter struct {
	*Shard
	local    *Local
	lead     *leadership
	keys     *leaderKeys
	postgres Postgres

	written int    // the timeline whose history was; zero: it is to be written anew
	index   uint64 // that Consul gave it: one that shows less has gone back to before it
	// reading: it is being read, or cannot be for now.
	reading bool
}

// write publishes how the timelines before ours ended.
func (w *historyWriter) write() {
	o := &w.local.PG.Observed
	if !o.Accepting || o.InRecovery && !w.standbyLeads() || o.Timeline <= 1 || w.written == o.Timeline && w.Snapshot.History.ModifyIndex >= w.index || w.reading || w.keys.Writing(w.Keys.History()) {
		return
	}
	w.reading = true
	timeline := o.Timeline
	w.postgres.TimelineHistory(timeline, func(lines cluster.History, err error) {
		w.Failure("timeline history", "the history of the timelines cannot be read", err)
		if err != nil {
			w.After(w.retryAfter(), func() { w.reading = false })
			return
		}
		w.reading = false
		w.lead.led = RestoresIn(lines, timeline)
		if w.lead.Leads() && w.local.PG.Observed.Timeline == timeline {
			w.put(timeline, lines)
		}
	})
}

// Restores is what the history of a timeline says of the WAL that restores have discarded.
type Restores struct {
	// Timeline is the one whose history it is; zero: it is not known.
	Timeline int
	ha.Discard
}

// RestoresIn reads that in the history of a timeline: each restore began the timeline after the one
// that it left, with a number above all that there were.
func RestoresIn(history cluster.History, timeline int) Restores {
	var last ha.Discard
	for i, was := range history {
		if _, discards := pg.Discards(was.Reason); !discards {
			continue
		}
		last = ha.Discard{Timeline: history.After(i, timeline) - 1, Before: last.Timeline}
	}
	return Restores{timeline, last}
}

// forget has the history read and written anew.
func (w *historyWriter) forget() {
	w.written, w.lead.led = 0, Restores{}
}

// put writes the key history: what is known of a timeline's end stays.
func (w *historyWriter) put(timeline int, lines cluster.History) {
	known := w.Snapshot.History
	merged := make(cluster.History, 0, len(lines))
	for _, line := range lines {
		i := slices.IndexFunc(known.Value, func(h cluster.TimelineSwitch) bool {
			return h.Timeline == line.Timeline && h.LSN == line.LSN
		})
		switch {
		case i >= 0:
			line = known.Value[i]
		case line.Timeline == timeline-1 && !w.local.PG.Observed.InRecovery: // else another site's primary has ended it
			line.Time = w.Wall().Format("2006-01-02T15:04:05.000000-07:00")
			line.NewLeader = w.Name
		}
		merged = append(merged, line)
	}
	if n := w.Dynamic.MaxTimelinesHistory; n > 0 && len(merged) > n {
		merged = merged[len(merged)-n:]
	}
	w.keys.WriteAsLeader("history", w.Keys.History(), known.ModifyIndex, merged, func(index uint64) {
		w.written, w.index = timeline, index
		w.Snapshot.History = cluster.Entry[cluster.History]{Value: merged, ModifyIndex: index}
	})
}
