package operator

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/events"
)

// History shows how the shard's timelines ended, as patronictl does, and what
// Lictor knows of why and how long it took.
func History(ctx context.Context, c *Console, s *Shard) error {
	snapshot, err := s.Read(ctx)
	if err != nil {
		return err
	}
	if snapshot.History.Err != nil {
		return fmt.Errorf("the key %s: %w", s.Keys.History(), snapshot.History.Err)
	}
	log, err := s.events(ctx)
	if err != nil {
		return err
	}
	return c.Show(historyTable(snapshot.History.Value, log))
}

func historyTable(h cluster.History, log events.Log) Table {
	t := Table{Framed: true, Columns: []Column{
		{Name: "TL", Right: true},
		{Name: "LSN", Right: true},
		{Name: "Reason"},
		{Name: "Timestamp"},
		{Name: "New Leader"},
		{Name: "Change"},
		{Name: "Took", Key: "took_ms", Right: true},
		{Name: "Cause"},
	}}
	for _, line := range h {
		row := []Cell{number(line.Timeline), number(line.LSN), text(line.Reason), text(line.Time), text(line.NewLeader), {}, {}, {}}
		// The event that began the next timeline.
		i := slices.IndexFunc(log.Events, func(e events.Event) bool {
			return e.Timeline == line.Timeline+1 && e.To == line.NewLeader && leaderChange(e) && e.Outcome == events.Done
		})
		if i >= 0 {
			e := log.Events[i]
			row[5], row[6], row[7] = text(string(e.Kind)), tookCell(e.Took()), text(e.Cause)
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}

func leaderChange(e events.Event) bool {
	switch e.Kind {
	case events.Failover, events.Switchover, events.Bootstrap, events.Resumed:
		return true
	case events.Crash, events.Paused, events.Unpaused, events.Failsafe, events.MemberLost, events.MemberBack, events.Configured, events.WatcherLost,
		events.ArchiveFails, events.MemberMade, events.MemberStranded, events.BackupsMissing:
	}
	return false
}

func (s *Shard) events(ctx context.Context) (events.Log, error) {
	ctx, cancel := context.WithTimeout(ctx, readLimit)
	defer cancel()
	value, _, err := s.store.Get(ctx, s.Keys.Events())
	if err != nil {
		return events.Log{}, err
	}
	log, err := events.Parse(value)
	if err != nil {
		return events.Log{}, fmt.Errorf("the key %s: %w", s.Keys.Events(), err)
	}
	return log, nil
}

// Events shows what happened to a shard, why, and how long each phase took.
func Events(ctx context.Context, c *Console, s *Shard, last int) error {
	log, err := s.events(ctx)
	if err != nil {
		return err
	}
	if len(log.Events) == 0 { // of a shard that was removed they are kept
		if _, err := s.Read(ctx); err != nil {
			return err
		}
	}
	if last > 0 && len(log.Events) > last {
		log.Events = log.Events[len(log.Events)-last:]
	}
	if len(log.Events) == 0 && c.Format == Pretty {
		c.Say("Nothing is recorded of %s yet (no key %s).", s.Scope, s.Keys.Events())
		return nil
	}
	return c.Show(eventsTable(log))
}

// phaseColumns are the phases of a change of leader, each with its column.
func phaseColumns() []string {
	return []string{events.Noticed, events.Elected, events.Promoted, events.Routed, events.FirstWrite}
}

func eventsTable(log events.Log) Table {
	t := Table{Columns: []Column{
		{Name: "Time", Key: "time"},
		{Name: "What", Key: "kind"},
		{Name: "Who", Key: "who"},
		{Name: "Outcome", Key: "outcome"},
		{Name: "Timeline", Key: "timeline", Right: true},
		{Name: "Took", Key: "took_ms", Right: true},
	}}
	for _, phase := range phaseColumns() {
		t.Columns = append(t.Columns, Column{
			Name: strings.ToUpper(phase[:1]) + phase[1:], Key: strings.ReplaceAll(phase, " ", "_") + "_ms", Right: true,
		})
	}
	t.Columns = append(t.Columns, Column{Name: "Why", Key: "cause", Prose: true}, Column{Name: "Recorded by", Key: "recorded_by", Programs: true})
	changes := false
	for _, e := range log.Events {
		row := []Cell{
			{Text: e.At.Local().Format("2006-01-02 15:04:05.000"), Value: e.At.Format(time.RFC3339Nano)},
			text(string(e.Kind)), text(who(e)), outcomeCell(e.Outcome),
			{},
			tookCell(e.Took()),
		}
		if e.Timeline > 0 {
			row[4] = number(e.Timeline)
		}
		var before time.Duration
		for _, phase := range phaseColumns() {
			at, reached := e.Phase(phase)
			if !reached {
				row = append(row, Cell{})
				continue
			}
			changes = true
			// People get how long each phase took, programs when it was reached.
			row = append(row, Cell{Text: "+" + Duration(max(0, at-before)), Value: at.Milliseconds()})
			before = at
		}
		t.Rows = append(t.Rows, append(row, text(e.Cause), text(e.By)))
	}
	if changes {
		t.Notes = []string{
			"", "Time is when it began: the last sign of life of the old leader, or the operator's request. Each phase is counted from the one before; " +
				"Took ends when the poolers have the new route. First write is the first transaction that wrote, if any was seen.",
		}
	}
	return t
}

func who(e events.Event) string {
	switch {
	case e.From != "" && e.To != "" && e.From != e.To:
		return e.From + " -> " + e.To
	case e.To != "":
		return e.To
	}
	return e.From
}

func outcomeCell(o events.Outcome) Cell {
	return styled(string(o), map[events.Outcome]Style{
		events.Done: Good, events.Refused: Warning, events.RolledBack: Warning, events.UnderWay: Strong,
	}[o])
}

func tookCell(d time.Duration) Cell {
	if d == 0 {
		return Cell{}
	}
	return Cell{Text: Duration(d), Value: d.Milliseconds()}
}

// Duration writes a time as people read it: 350 ms, 8.3 s, 12 min.
func Duration(d time.Duration) string {
	switch {
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < 2*time.Hour:
		return fmt.Sprintf("%.0f min", d.Minutes())
	}
	return fmt.Sprintf("%.0f h", d.Hours())
}
