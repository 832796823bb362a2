package operator

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/drill"
	"github.com/lictor-ha/lictor/agent/events"
)

// drillTable is the report of a drill: a line for each shard, and for programs all of it.
func drillTable(r drill.Report) Table {
	t := Table{Columns: []Column{
		{Name: "Shard", Key: "shard"},
		{Name: "Kind", Key: "kind", Programs: true},
		{Name: "State", Key: "state"},
		{Name: "From", Key: "from"},
		{Name: "To", Key: "to"},
		{Name: "Host", Key: "host"},
		{Name: "Longest wait", Key: "gap_ms", Right: true},
		{Name: "Errors", Key: "errors", Right: true},
		{Name: "Lost", Key: "lost", Right: true},
		{Name: "Took", Key: "took_ms", Right: true},
		{Name: "Why", Key: "reason", Prose: true},
		{Name: "What to do", Key: "do", Programs: true},
		{Name: "Slow", Key: "slow", Programs: true},
		{Name: "Began", Key: "began", Programs: true},
		{Name: "Steps", Key: "steps", Programs: true},
		{Name: "Client", Key: "probe", Programs: true},
		{Name: "Events", Key: "events", Programs: true},
		{Name: "Notes", Key: "notes", Programs: true},
	}}
	for _, s := range r.Shards {
		row := []Cell{
			text(s.Name), text(r.Kind), drillState(s.State), text(s.From), text(s.To), text(s.Host),
			{},
			{},
			{},
			tookCell(s.Took), text(s.What), text(s.Do),
			text(s.Slow),
			{},
			{},
			{},
			{},
			{},
		}
		if !s.Began.IsZero() {
			row[13] = text(s.Began.UTC().Format(time.RFC3339Nano))
		}
		if p := s.Probe; p != nil {
			row[6], row[7] = Cell{Text: Duration(p.Gap()), Value: p.GapMS}, number(p.Errors)
			if p.Mode == drill.Writes && p.Unchecked == "" {
				row[8] = number(p.Lost)
			}
			row[15].Value = plain(p)
		}
		if len(s.Steps) > 0 {
			row[14].Value = plain(s.Steps)
		}
		if len(s.Events) > 0 {
			row[16].Value = plain(s.Events)
		}
		if len(s.Notes) > 0 {
			row[17].Value = plain(s.Notes)
		}
		t.Rows = append(t.Rows, row)
		t.Notes = append(t.Notes, drillNotes(s)...)
	}
	if len(t.Notes) > 0 {
		t.Notes = append([]string{""}, t.Notes...)
	}
	return t
}

// plain is a value as maps and lists, with the names that it has in JSON: so every format has them.
func plain(value any) any {
	encoded, err := json.Marshal(value)
	if err != nil {
		return nil
	}
	decoder := json.NewDecoder(bytes.NewReader(encoded))
	decoder.UseNumber()
	var generic any
	if err := decoder.Decode(&generic); err != nil {
		return nil
	}
	return whole(generic)
}

// whole puts whole numbers into what JSON was read into.
func whole(value any) any {
	switch v := value.(type) {
	case map[string]any:
		for key := range v {
			v[key] = whole(v[key])
		}
	case []any:
		for i := range v {
			v[i] = whole(v[i])
		}
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		return v.String()
	}
	return value
}

// drillNotes are what people get of one shard below the table.
func drillNotes(s drill.Shard) []string {
	var notes []string
	if len(s.Steps) > 0 {
		steps := make([]string, len(s.Steps))
		for i, step := range s.Steps {
			steps[i] = step.Name + " " + Duration(step.Took())
		}
		notes = append(notes, fmt.Sprintf("%s: %s", s.Name, strings.Join(steps, ", ")))
	}
	if s.Slow != "" {
		notes = append(notes, fmt.Sprintf("%s: %s", s.Name, s.Slow))
	}
	if p := s.Probe; p != nil {
		line := fmt.Sprintf("%s: a client had %d of %d %s answered", s.Name, p.Acked, p.Attempts, p.Mode)
		if p.Why != "" {
			line += "; " + p.Why
		}
		if len(p.Failures) > 0 {
			line += "; its first error: " + p.Failures[0].Text
		}
		notes = append(notes, line)
	}
	for _, note := range s.Notes {
		notes = append(notes, s.Name+": "+note)
	}
	if s.Do != "" {
		notes = append(notes, fmt.Sprintf("%s: what to do: %s", s.Name, s.Do))
	}
	return notes
}

func drillState(s drill.State) Cell {
	return styled(string(s), map[drill.State]Style{drill.Passed: Good, drill.Surprised: Bad, drill.Interrupted: Warning}[s])
}

// slowest says which part of a change of leader took longest, and why that is.
func slowest(e events.Event) string {
	if e.Kind != events.Failover && e.Kind != events.Switchover {
		return ""
	}
	handover := e.Kind == events.Switchover
	why := map[string]string{
		events.Noticed:    "the lease of the old leader had to run out (ttl)",
		events.Elected:    "the candidates compared their WAL, and one took the lock in Consul",
		events.Promoted:   "PostgreSQL replayed what it had received, and ended its recovery",
		events.Routed:     "the route was written to Consul",
		events.FirstWrite: "poolers and clients found the new primary; or no client wrote sooner",
	}
	if handover {
		why[events.Noticed] = "the poolers held the clients, transactions that ran were waited for, and the old leader stopped PostgreSQL, with a checkpoint"
	}
	longest, took, before := "", time.Duration(0), time.Duration(0)
	for _, name := range phaseColumns() {
		at, reached := e.Phase(name)
		if !reached {
			continue
		}
		if at-before > took {
			longest, took = name, at-before
		}
		before = max(before, at)
	}
	if longest == "" {
		return ""
	}
	return fmt.Sprintf("of the %s of %s, to the phase %q took longest, %s: %s", e.Kind, Duration(max(e.Took(), before)), longest, Duration(took), why[longest])
}
