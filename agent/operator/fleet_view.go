package operator

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/events"
	"github.com/lictor-ha/lictor/agent/printable"
)

// This file makes of a fleet what a page shows of it: the tables of `lictor fleet` and `lictor
// list`, and what else an operator asks first. All of it is text, whoever wrote it into Consul.

// FleetView is all shards at a glance.
type FleetView struct {
	Columns []ColumnView `json:"columns"`
	Shards  []ShardRow   `json:"shards"` // worst first
	Poolers Sheet        `json:"poolers"`
}

// ShardRow is one shard in the table of all.
type ShardRow struct {
	Name string `json:"name"`
	// Weight is how bad it stands: the worst come first.
	Weight int    `json:"weight"`
	Level  string `json:"level"`
	// Kinds are those of its alarms.
	Kinds   []string   `json:"kinds"`
	Cells   []CellView `json:"cells"`
	Members []Place    `json:"members"`
	// JSON is all of that, made once however many look.
	JSON json.RawMessage `json:"-"`
}

// Place is where a member runs, and as what.
type Place struct {
	Name  string `json:"name"`
	Host  string `json:"host"`
	Zone  string `json:"zone,omitempty"`
	Role  string `json:"role"`
	State string `json:"state"`
	Leads bool   `json:"leads,omitempty"`
}

// Sheet is a table.
type Sheet struct {
	Title   string       `json:"title"`
	Columns []ColumnView `json:"columns"`
	Rows    [][]CellView `json:"rows"`
}

// ColumnView is the head of a column.
type ColumnView struct {
	Name  string `json:"name"`
	Right bool   `json:"right,omitempty"`
}

// CellView is one value. Style is empty, or one of strong, good, faint, warning, bad.
type CellView struct {
	Text  string `json:"text"`
	Style string `json:"style,omitempty"`
}

// ShardView is one shard with all that Consul tells of it.
type ShardView struct {
	Name  string `json:"name"`
	Level string `json:"level"`
	// Steps are what is wrong and what helps, Look what tells more of any shard.
	Steps  []Step   `json:"steps"`
	Look   []string `json:"look"`
	Facts  []Fact   `json:"facts"`
	Sheets []Sheet  `json:"sheets"`
	// Events are the last ones, the newest first.
	Events []events.Event `json:"events"`
	// Unread says why there are none.
	Unread string `json:"unread,omitempty"`
}

// Step is an alarm and what to do about it.
type Step struct {
	What    string `json:"what"`
	Level   string `json:"level"`
	Do      string `json:"do"`
	Command string `json:"command,omitempty"`
	Runbook string `json:"runbook,omitempty"`
}

// Fact is one line about a shard.
type Fact struct {
	Name  string `json:"name"`
	Text  string `json:"text"`
	Style string `json:"style,omitempty"`
}

// builtShard is a shard as it was read last, and what a page shows of it.
type builtShard struct {
	sum   uint64 // of the keys that it was made of
	shard fleetShard
	row   ShardRow
	// behind is how each of the bouncers that serve it differs from its route.
	behind []string
}

// show makes what a page shows.
func (b *builtShard) show(zoneTag string) {
	b.row, b.behind = b.shard.view(zoneTag), make([]string, len(b.shard.bouncers))
	b.row.JSON, _ = json.Marshal(b.row) // it has nothing that JSON has not
	for i, bouncer := range b.shard.bouncers {
		if b.shard.snapshot.Route.OK() {
			b.behind[i] = b.shard.behind(bouncer)
		}
	}
}

// fleetView makes the page's view of a fleet.
func fleetView(built map[string]*builtShard, bouncers []cluster.Bouncer) FleetView {
	v := FleetView{Shards: make([]ShardRow, 0, len(built)), Poolers: poolers(built, bouncers)}
	for _, c := range fleetTable().Columns {
		v.Columns = append(v.Columns, ColumnView{c.Name, c.Right})
	}
	for _, b := range built {
		v.Shards = append(v.Shards, b.row)
	}
	slices.SortFunc(v.Shards, func(a, b ShardRow) int { return cmp.Or(b.Weight-a.Weight, strings.Compare(a.Name, b.Name)) })
	return v
}

func (s fleetShard) view(zoneTag string) ShardRow {
	alarms := s.alarms()
	row := ShardRow{Name: printable.Text(s.scope), Weight: weight(alarms), Level: worst(alarms).String(), Kinds: []string{}, Cells: cells(s.row(alarms))}
	for _, a := range alarms {
		if !slices.Contains(row.Kinds, a.kind) {
			row.Kinds = append(row.Kinds, a.kind)
		}
	}
	for _, m := range s.snapshot.Members {
		row.Members = append(row.Members, Place{
			Name: printable.Text(m.Value.Name), Host: printable.Text(hostOf(m.Value)), Zone: printable.Text(cluster.TextTag(m.Value.Tags, zoneTag)),
			Role: printable.Text(m.Value.Role), State: printable.Text(cmp.Or(m.Value.State, "silent")), Leads: m.Value.Name == s.snapshot.LeaderName(),
		})
	}
	return row
}

// weight is how bad alarms are together: what may lose data is worse than what nobody can write
// to, and that than anything else.
func weight(alarms []alarm) (sum int) {
	for _, a := range alarms {
		switch {
		case a.kind == twoPrimaries:
			sum += 10_000
		case a.kind == noLeader, a.kind == noPrimary:
			sum += 1_000
		case a.level == Wrong:
			sum += 10
		default:
			sum++
		}
	}
	return sum
}

func worst(alarms []alarm) (level Level) {
	for _, a := range alarms {
		level = max(level, a.level)
	}
	return level
}

// poolers says of each bouncer what it is, and how many shards it leads elsewhere.
func poolers(built map[string]*builtShard, bouncers []cluster.Bouncer) Sheet {
	serves, off, why := map[string]int{}, map[string]int{}, map[string]string{}
	for _, b := range built {
		for i, bouncer := range b.shard.bouncers {
			name := bouncer.Name
			serves[name]++
			if b.behind[i] == "" {
				continue
			}
			off[name]++
			if what := b.shard.scope + ": " + b.behind[i]; why[name] == "" || what < why[name] {
				why[name] = what
			}
		}
	}
	t := Table{Title: "Poolers", Columns: []Column{{Name: "Bouncer"}, {Name: "Address"}, {Name: "Lictor"}, {Name: "PgBouncer"}, {Name: "Shards", Right: true}, {Name: "Off route", Right: true}, {Name: "Such as"}}}
	for _, b := range bouncers {
		elsewhere := number(off[b.Name])
		if off[b.Name] > 0 {
			elsewhere.Style = Bad
		}
		if b.Draining {
			why[b.Name] = strings.TrimSuffix("draining; "+why[b.Name], "; ")
		}
		t.Rows = append(t.Rows, []Cell{styled(b.Name, Strong), text(b.URL), text(b.Version), text(b.PgBouncer), number(serves[b.Name]), elsewhere, text(why[b.Name])})
	}
	slices.SortStableFunc(t.Rows, func(a, b []Cell) int {
		return cmp.Or(off[b[0].Text]-off[a[0].Text], strings.Compare(a[0].Text, b[0].Text))
	})
	return sheet(t)
}

// detail makes the page's view of one shard.
func (s fleetShard) detail(now time.Time) ShardView {
	alarms := s.alarms()
	v := ShardView{
		Name: printable.Text(s.scope), Level: worst(alarms).String(), Steps: []Step{}, Facts: s.facts(), Events: []events.Event{},
		Sheets: []Sheet{s.memberSheet(), s.slotSheet(), s.poolerSheet(now)},
	}
	for _, a := range alarms {
		v.Steps = append(v.Steps, Step{What: printable.Text(a.what), Level: a.level.String(), Do: printable.Text(a.do), Command: a.command, Runbook: a.runbook})
	}
	for _, words := range []string{"doctor", "list", "events", "topology", "switchover"} {
		if line := commandLine(words, s.scope); line != "" {
			v.Look = append(v.Look, line)
		}
	}
	v.Sheets = slices.DeleteFunc(v.Sheets, func(t Sheet) bool { return len(t.Rows) == 0 })
	return v
}

// facts are what stands in no table.
func (s fleetShard) facts() []Fact {
	var facts []Fact
	add := func(name string, c Cell) {
		if c.Text != "" {
			facts = append(facts, Fact{name, printable.Text(c.Text), c.Style.word()})
		}
	}
	row := s.row(nil)
	add("Primary", row[1])
	add("Timeline", row[5])
	add("Lag", row[4])
	if s.dynamic.Pause {
		add("Pause", styled("nothing fails over", Warning))
	}
	if beat := s.snapshot.Status.Value.Lictor; beat != nil {
		lease := Cell{Text: fmt.Sprintf("%s long, beat %d of %s", Duration(beat.Lease()), beat.Number, printable.Text(orNobody(beat.Owner)))}
		if s.lease.known {
			lease.Text = fmt.Sprintf("%s left when %s was asked last; %s", Duration(s.lease.left), printable.Text(s.snapshot.LeaderName()), lease.Text)
		}
		if beat.Released {
			lease.Text, lease.Style = "given up; "+lease.Text, Warning
		}
		add("Lease", lease)
	}
	sync := s.sync()
	if s.dynamic.SynchronousMode.On() {
		sync.Text = strings.ReplaceAll(sync.Text, ",", ", ")
		if quorum := s.snapshot.Sync.Value.Quorum; quorum > 0 {
			sync.Text = fmt.Sprintf("any %d of %s", quorum, sync.Text)
		}
	}
	add("Synchronous", sync)
	if r := s.snapshot.Route; r.OK() {
		add("Route", Cell{
			Text:  fmt.Sprintf("%s, to %s (%s:%d) on timeline %d, since %s", r.Value.State, r.Value.Leader.Name, r.Value.Leader.Host, r.Value.Leader.Port, r.Value.Timeline, moment(r.Value.Since)),
			Style: s.route().Style,
		})
	} else {
		add("Route", s.route())
	}
	if f := s.snapshot.Failover; f.OK() && f.Value.ScheduledAt != nil {
		add("Switchover", Cell{Text: "scheduled for " + moment(*f.Value.ScheduledAt), Style: Warning})
	}
	if b := s.repository; b != nil {
		for _, kind := range slices.Sorted(maps.Keys(b.Last)) {
			add("Last "+printable.Text(kind)+" backup", text(b.Last[kind]))
		}
		add("Backups", Cell{Text: fmt.Sprintf("%d good ones, %s, %d damaged; asked %s ago", b.Count, size(b.Bytes), b.Damaged, Duration(b.Age))})
		add("Backup verified", text(cmp.Or(b.Verified, "none")))
	}
	if a := s.archiver; a != nil {
		add("Archive", Cell{Text: count(a.Waiting, "file") + " waiting"})
	}
	add("System", text(systemName(s.snapshot)))
	return facts
}

// memberSheet is the table of `lictor list`.
func (s fleetShard) memberSheet() Sheet {
	t := listTable(s.scope, s.snapshot, ListOptions{})
	t.Title = "Members"
	return sheet(t)
}

// slotSheet says how far behind the leader each replication slot is.
func (s fleetShard) slotSheet() Sheet {
	t := Table{Title: "Replication slots", Columns: []Column{{Name: "Slot"}, {Name: "Behind", Right: true}, {Name: "Kept"}}}
	status := s.snapshot.Status.Value
	for _, name := range slices.Sorted(maps.Keys(status.Slots)) {
		row := []Cell{text(name), {Text: size(max(0, status.OpTime-status.Slots[name]))}, {}}
		if slices.Contains(status.RetainSlots, name) {
			row[2] = text("for a member that is away")
		}
		t.Rows = append(t.Rows, row)
	}
	return sheet(t)
}

// poolerSheet says where each PgBouncer leads the shard's clients, and since when that is verified.
func (s fleetShard) poolerSheet(now time.Time) Sheet {
	t := Table{Title: "PgBouncers", Columns: []Column{{Name: "Bouncer"}, {Name: "Leads to"}, {Name: "TL", Right: true}, {Name: "Clients"}, {Name: "Verified"}, {Name: "Alarm"}}}
	for _, b := range s.bouncers {
		a, has := b.Applied[s.id]
		row := []Cell{styled(b.Name, Strong), text(orNobody(a.Leader)), {}, {Text: "go there"}, styled("no", Warning), styled(s.behind(b), Bad)}
		switch {
		case !has:
			row[1], row[3] = Cell{Text: "not known", Style: Warning}, Cell{}
		case a.Held || a.Paused != nil:
			row[3] = Cell{Text: "wait", Style: Warning}
		}
		if a.Timeline > 0 {
			row[2] = number(a.Timeline)
		}
		if a.VerifiedAt != nil {
			row[4] = Cell{Text: fmt.Sprintf("since %s, for %s", moment(*a.VerifiedAt), Duration(max(0, now.Sub(*a.VerifiedAt).Truncate(time.Second)))), Style: Good}
		}
		t.Rows = append(t.Rows, row)
	}
	return sheet(t)
}

func moment(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

// sheet is a table as people see it.
func sheet(t Table) Sheet {
	s := Sheet{Title: t.Title, Rows: [][]CellView{}}
	for _, c := range t.Columns {
		if !c.Programs {
			s.Columns = append(s.Columns, ColumnView{c.Name, c.Right})
		}
	}
	for _, row := range t.Rows {
		var shown []Cell
		for i, c := range row {
			if !t.Columns[i].Programs {
				shown = append(shown, c)
			}
		}
		s.Rows = append(s.Rows, cells(shown))
	}
	return s
}

func cells(row []Cell) []CellView {
	out := make([]CellView, len(row))
	for i, c := range row {
		out[i] = CellView{printable.Lines(c.Text), c.Style.word()}
	}
	return out
}

// word is the name of a style.
func (s Style) word() string {
	return [...]string{Plain: "", Strong: "strong", Good: "good", Faint: "faint", Warning: "warning", Bad: "bad"}[s]
}
