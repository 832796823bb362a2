package operator

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/printable"
)

// ListOptions say what list and topology show.
type ListOptions struct {
	// Extended shows all columns, also those in which nothing is remarkable.
	Extended bool
	// Timestamp shows when the shard was read.
	Timestamp bool
	// Topology shows who replicates from whom.
	Topology bool
}

// List shows the members of shards: those named, else the configured one, else
// all.
func List(ctx context.Context, c *Console, site *Site, scopes []string, o ListOptions) error {
	if len(scopes) == 0 && site.Scope != "" {
		scopes = []string{site.Scope}
	}
	shards, err := site.readShards(ctx, scopes)
	if err != nil {
		return err
	}
	if c.Format == Pretty && o.Timestamp {
		c.Say("%s", time.Now().Format(time.RFC3339))
	}
	var all Table
	fleet{shards: shards}.warnUnread(c)
	for i, s := range shards {
		t := listTable(s.scope, s.snapshot, o)
		switch {
		case c.Format == Pretty:
			if err := c.Show(t); err != nil {
				return err
			}
		case i == 0:
			all = t
		default:
			all.Rows = append(all.Rows, t.Rows...)
		}
	}
	if c.Format == Pretty {
		return nil
	}
	return c.Show(all)
}

// readShards reads the named shards one by one, or all at once.
func (s *Site) readShards(ctx context.Context, scopes []string) ([]fleetShard, error) {
	if len(scopes) == 0 {
		f, err := s.readFleet(ctx)
		return f.shards, err
	}
	var shards []fleetShard
	for _, scope := range scopes {
		shard, err := s.open(scope)
		if err != nil {
			return nil, err
		}
		snapshot, err := shard.Read(ctx)
		shard.Close()
		if err != nil {
			return nil, err
		}
		shards = append(shards, fleetShard{scope: scope, snapshot: snapshot})
	}
	return shards, nil
}

// listTable makes the table of one shard. Programs get all columns, people those
// in which something stands.
func listTable(scope string, s cluster.Snapshot, o ListOptions) Table {
	view := api.NewClusterView(scope, s)
	t := Table{
		Framed: true, Title: fmt.Sprintf("Cluster: %s (%s)", scope, systemName(s)),
		Columns: []Column{
			{Name: "Cluster", Programs: true},
			{Name: "Member"},
			{Name: "Host"},
			{Name: "Role"},
			{Name: "State"},
			{Name: "TL", Right: true},
			{Name: "Lag in MB", Right: true},
		},
	}
	pending := o.shown(view, func(m api.MemberView) bool { return m.PendingRestart })
	scheduled := o.shown(view, func(m api.MemberView) bool { return len(m.ScheduledRestart) > 0 })
	standing := o.shown(view, func(m api.MemberView) bool { return m.ReplayStandsStill != "" })
	tags := o.shown(view, func(m api.MemberView) bool { return len(m.Tags) > 0 })
	t.Columns = append(
		t.Columns, Column{Name: "Pending restart", Programs: !pending}, Column{Name: "Pending restart reason", Programs: !o.Extended},
		Column{Name: "Scheduled restart", Programs: !scheduled}, Column{Name: "Tags", Programs: !tags},
		Column{Name: "Receive LSN", Programs: !o.Extended}, Column{Name: "Replay LSN", Programs: !o.Extended},
		Column{Name: "Replay stands still", Programs: !standing},
	)
	withPort := portsMatter(view.Members)
	names := map[string]string{}
	if o.Topology {
		view.Members, names = topology(view.Members)
	}
	for _, m := range view.Members {
		row := []Cell{
			text(scope), text(m.Name), text(address(m, withPort)), roleCell(m.Role), stateCell(m.State),
			{},
			{},
			{},
			lines(pendingReason(m.PendingRestartReason)), text(scheduleText(m.ScheduledRestart)), tagsCell(m.Tags),
			{},
			{},
			styled(m.ReplayStandsStill, Warning),
		}
		if indented := names[m.Name]; indented != "" {
			row[1] = text(indented)
			row[1].Value = m.Name
		}
		if m.Timeline != 0 {
			row[5] = number(m.Timeline)
		}
		if m.Lags != nil {
			row[6] = lagCell(m.Lag)
			row[11], row[12] = lsnCell(m.ReceiveLSN), lsnCell(m.ReplayLSN)
		}
		if m.PendingRestart {
			row[7] = styled("*", Warning)
		}
		t.Rows = append(t.Rows, row)
	}
	for _, m := range s.Members {
		if m.OK() && m.Value.Lictor != nil && m.Value.Lictor.Problems > 0 {
			t.Notes = append(t.Notes, fmt.Sprintf(" %s reports %s: see lictor doctor", m.Value.Name, count(m.Value.Lictor.Problems, "problem")))
		}
		if m.OK() {
			t.Notes = append(t.Notes, strandedNotes(m.Value)...)
		}
		if m.OK() && m.Value.Lictor != nil && m.Value.Lictor.Copying != "" {
			t.Notes = append(t.Notes, fmt.Sprintf(" %s is being copied by %s", m.Value.Name, printable.Text(m.Value.Lictor.Copying)))
		}
		if unheard(s, m) {
			t.Notes = append(t.Notes, fmt.Sprintf(" %s led before and has not been heard of since %s took over", m.Value.Name, s.LeaderName()))
		}
	}
	for _, slot := range gone(s) {
		t.Notes = append(t.Notes, fmt.Sprintf(" A member is missing: nobody is here who uses the slot %s, which is kept for it", printable.Text(slot)))
	}
	if view.Pause {
		t.Notes = append(t.Notes, " Maintenance mode: on")
	}
	if next := view.ScheduledSwitchover; next != nil {
		t.Notes = append(t.Notes, " Switchover scheduled at: "+next.At)
		for _, line := range [][2]string{{"from", next.From}, {"to", next.To}} {
			if line[1] != "" {
				t.Notes = append(t.Notes, fmt.Sprintf("%24s: %s", line[0], line[1]))
			}
		}
	}
	return t
}

func (o ListOptions) shown(view api.ClusterView, has func(api.MemberView) bool) bool {
	return o.Extended || slices.ContainsFunc(view.Members, has)
}

// topology puts members below those that they replicate from, by the tag
// replicatefrom, and indents their names.
func topology(members []api.MemberView) (ordered []api.MemberView, names map[string]string) {
	below := map[string][]api.MemberView{}
	exists := func(name string) bool {
		return slices.ContainsFunc(members, func(m api.MemberView) bool { return m.Name == name })
	}
	leader := ""
	for _, m := range members {
		if m.Role == "leader" || m.Role == "standby_leader" {
			leader = m.Name
		}
	}
	for _, m := range members {
		from, _ := m.Tags["replicatefrom"].(string)
		switch {
		case m.Name == leader:
			from = ""
		case from == "" || from == m.Name || !exists(from):
			from = leader
		}
		below[from] = append(below[from], m)
	}
	names = map[string]string{}
	var walk func(from string, depth int)
	walk = func(from string, depth int) {
		children := below[from]
		delete(below, from) // members that replicate from each other end here
		for _, m := range children {
			names[m.Name] = m.Name
			if depth > 0 {
				names[m.Name] = strings.Repeat("  ", depth-1) + "+ " + m.Name
			}
			ordered = append(ordered, m)
			if m.Name != "" {
				walk(m.Name, depth+1)
			}
		}
	}
	walk("", 0)
	for _, m := range members { // members of a ring
		if names[m.Name] == "" {
			names[m.Name] = "+ " + m.Name
			ordered = append(ordered, m)
		}
	}
	return ordered, names
}

// systemName is the shard's system identifier, or a word when it has none yet.
func systemName(s cluster.Snapshot) string {
	switch {
	case !s.Initialize.Exists():
		return "uninitialized"
	case s.Initialize.Value == "":
		return "initializing"
	}
	return s.Initialize.Value
}

func address(m api.MemberView, withPort bool) string {
	if withPort && m.Host != "" && m.Port != 0 {
		return fmt.Sprintf("%s:%d", m.Host, m.Port)
	}
	return m.Host
}

// portsMatter reports whether hosts alone do not say where members are: one has
// another port than PostgreSQL's own, or two share a host.
func portsMatter(members []api.MemberView) bool {
	seen := map[string]bool{}
	for _, m := range members {
		if m.Host == "" {
			continue
		}
		if m.Port != 0 && m.Port != 5432 || seen[m.Host] {
			return true
		}
		seen[m.Host] = true
	}
	return false
}

// roleCell turns sync_standby into Sync Standby.
func roleCell(role string) Cell {
	words := strings.Split(role, "_")
	for i, w := range words {
		if w != "" {
			words[i] = strings.ToUpper(w[:1]) + w[1:]
		}
	}
	c := text(strings.Join(words, " "))
	switch role {
	case "leader", "standby_leader":
		c.Style = Strong
	case "sync_standby", "quorum_standby":
		c.Style = Good
	}
	return c
}

func stateCell(state string) Cell {
	switch state {
	case cluster.StateRunning, "streaming":
		return styled(state, Good)
	case cluster.StateStarting, cluster.StateStopping, cluster.StateRestarting, cluster.StateInitializing, cluster.StateCreating, "in archive recovery":
		return styled(state, Warning)
	}
	return styled(state, Bad)
}

// remarkableLag is from where on a lag is worth a colour.
const remarkableLag = 16 << 20

// lagCell shows a lag in whole megabytes, as patronictl does.
func lagCell(lag any) Cell {
	n, known := lag.(int64)
	if !known {
		return styled(fmt.Sprint(lag), Warning)
	}
	c := number(int64(math.RoundToEven(float64(n) / (1 << 20))))
	if n >= remarkableLag {
		c.Style = Warning
	}
	return c
}

func lsnCell(lsn any) Cell { return text(fmt.Sprint(lsn)) }

func scheduleText(restart map[string]any) string {
	if len(restart) == 0 {
		return ""
	}
	text := fmt.Sprint(restart["schedule"])
	if version, set := restart["postgres_version"]; set {
		text += fmt.Sprintf(" if version < %v", version)
	}
	return text
}

func pendingReason(changes map[string]cluster.PendingChange) string {
	var lines []string
	for name, change := range changes {
		lines = append(lines, printable.Short(fmt.Sprintf("%s: %s->%s", name, change.OldValue, change.NewValue), maxCell))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// tagsCell writes tags as YAML, one to a line.
func tagsCell(tags map[string]any) Cell {
	if len(tags) == 0 {
		return Cell{}
	}
	out, err := yamlText(tags)
	if err != nil {
		return text(fmt.Sprint(tags))
	}
	cell := lines(printable.Cut(strings.TrimSpace(string(out)), maxCell))
	cell.Value = tags
	return cell
}

// strandedNotes say that a member cannot go on with its data, and what becomes of it by policy.
func strandedNotes(m cluster.Member) []string {
	l := m.Lictor
	switch {
	case l == nil, l.Stranded == "" && l.Rebuild == "":
		return nil
	case l.Stranded == "":
		return []string{fmt.Sprintf(" %s is made anew by policy", m.Name)}
	case l.Rebuild == "":
		return []string{fmt.Sprintf(" %s cannot go on: %s", m.Name, printable.Text(l.Stranded))}
	}
	return []string{fmt.Sprintf(" %s cannot go on: %s; rebuild: %s", m.Name, printable.Text(l.Stranded), printable.Text(l.Rebuild))}
}
