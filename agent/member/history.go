package member

import (
	"slices"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// historyWriter writes the history of the timelines for the shard.
type historyWriter struct {
	*Shard
	local    *Local
	lead     *leadership
	keys     *leaderKeys
	postgres Postgres

	written int // the timeline whose history was; zero: it is to be written anew
	// reading: it is being read, or cannot be for now.
	reading bool
}

// write publishes how the timelines before ours ended.
func (w *historyWriter) write() {
	o := &w.local.PG.Observed
	if !o.Accepting || o.InRecovery && !w.standbyLeads() || o.Timeline <= 1 || w.written == o.Timeline || w.reading || w.keys.Writing(w.Keys.History()) {
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
		if w.lead.Leads() && w.local.PG.Observed.Timeline == timeline {
			w.put(timeline, lines)
		}
	})
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
		w.written = timeline
		w.Snapshot.History = cluster.Entry[cluster.History]{Value: merged, ModifyIndex: index}
	})
}
