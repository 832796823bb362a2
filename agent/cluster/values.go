package cluster

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/printable"
)

// Member is the value of a member's key: where it is and how it fares, in
// Patroni's format.
type Member struct {
	// Name is the last part of the key, not in the JSON.
	Name    string `json:"-"`
	ConnURL string `json:"conn_url"`
	APIURL  string `json:"api_url"`
	State   string `json:"state"`
	Role    string `json:"role"`
	// Version is the agent's, of the form X.Y.Z: patronictl refuses others.
	Version                string                   `json:"version"`
	ProxyURL               string                   `json:"proxy_url,omitempty"`
	Tags                   map[string]any           `json:"tags,omitempty"`
	CheckpointAfterPromote *bool                    `json:"checkpoint_after_promote,omitempty"`
	PendingRestart         bool                     `json:"pending_restart,omitempty"`
	PendingRestartReason   map[string]PendingChange `json:"pending_restart_reason,omitempty"`
	// XLogLocation is the write position of a primary, the received or
	// replayed one of a replica, in bytes.
	XLogLocation     int64          `json:"xlog_location,omitempty"`
	ReplayLSN        int64          `json:"replay_lsn,omitempty"`
	ReceiveLSN       int64          `json:"receive_lsn,omitempty"`
	Timeline         int            `json:"timeline,omitempty"`
	ReplicationState string         `json:"replication_state,omitempty"`
	ScheduledRestart map[string]any `json:"scheduled_restart,omitempty"`
	Pause            bool           `json:"pause,omitempty"`
	// ReplayStandsStill says why a replica's replay is paused or delayed: it serves no
	// readers then. Patroni has no such field.
	ReplayStandsStill string `json:"replay_stands_still,omitempty"`
	// Lictor is absent in the key of a member of Patroni's.
	Lictor *MemberLictor `json:"lictor,omitempty"`
}

// Equal reports whether two members say the same. (Every step of an agent asks, and
// reflect.DeepEqual is a tenth of what a step costs.)
func (m Member) Equal(o Member) bool {
	return m.Name == o.Name && m.ConnURL == o.ConnURL && m.APIURL == o.APIURL && m.State == o.State && m.Role == o.Role &&
		m.Version == o.Version && m.ProxyURL == o.ProxyURL && m.PendingRestart == o.PendingRestart &&
		m.XLogLocation == o.XLogLocation && m.ReplayLSN == o.ReplayLSN && m.ReceiveLSN == o.ReceiveLSN && m.Timeline == o.Timeline &&
		m.ReplicationState == o.ReplicationState && m.Pause == o.Pause && m.ReplayStandsStill == o.ReplayStandsStill &&
		equalPointers(m.CheckpointAfterPromote, o.CheckpointAfterPromote) && equalPointers(m.Lictor, o.Lictor) &&
		maps.Equal(m.PendingRestartReason, o.PendingRestartReason) && equalMaps(m.Tags, o.Tags) && equalMaps(m.ScheduledRestart, o.ScheduledRestart)
}

// EqualButPositions reports whether they differ in nothing but how far their WAL is, or a
// copy that is being made.
func (m Member) EqualButPositions(o Member) bool {
	m.XLogLocation, m.ReceiveLSN, m.ReplayLSN = o.XLogLocation, o.ReceiveLSN, o.ReplayLSN
	if m.Lictor != nil && o.Lictor != nil {
		lictor := *m.Lictor
		lictor.LeaderLSN, lictor.Copying = o.Lictor.LeaderLSN, o.Lictor.Copying
		m.Lictor = &lictor
	}
	return m.Equal(o)
}

// SaysPaused reports whether a member says that the shard is paused, or is not, by the
// configuration at index or a later one. A key that was written before, in an earlier pause
// say, tells nothing of this one.
func (m Member) SaysPaused(on bool, index uint64) bool {
	return m.Pause == on && (m.Lictor == nil || m.Lictor.Config == 0 || m.Lictor.Config >= index)
}

func equalPointers[T comparable](a, b *T) bool { return a == b || a != nil && b != nil && *a == *b }

// equalMaps compares what JSON may hold.
func equalMaps(a, b map[string]any) bool {
	return len(a) == 0 && len(b) == 0 || reflect.DeepEqual(a, b)
}

// MemberLictor is what a member of Lictor's says beyond Patroni's format.
type MemberLictor struct {
	// LeaderLSN is the leader's position that a replica knew of before it looked at its
	// own ones: what it had not reached then is its lag. Zero: it has not looked since
	// it knew of one.
	LeaderLSN int64 `json:"leader_lsn,omitempty"`
	// Problems is how many problems it tells of that somebody has to mend.
	Problems int `json:"problems,omitempty"`
	// Config is the ModifyIndex of the key config that the member acts on: what it says was
	// said under an earlier one may be about to change. Zero: it has read none, or is of a
	// version that does not tell.
	Config uint64 `json:"config,omitempty"`
	// Copying says how far its data directory is while it is made, and by which method.
	Copying string `json:"copying,omitempty"`
	// Made says when its data directory was made last, how, and which methods had failed
	// before: a time, a blank, and words.
	Made string `json:"made,omitempty"`
	// Stranded says why it cannot go on with its data, and must be made anew.
	Stranded string `json:"stranded,omitempty"`
	// Rebuild says what a member that is to be made anew by policy waits for, or that it has its turn.
	Rebuild string `json:"rebuild,omitempty"`
	// SyncedSlots are the permanent logical slots that PostgreSQL itself keeps on this replica, and
	// whose readers could go on here, with commas between them.
	SyncedSlots string `json:"synced_slots,omitempty"`
	// QuorumTakeover: it is of a version that knows the setting takeover (design 5.30).
	QuorumTakeover bool `json:"quorum_takeover,omitempty"`
	// Succession: as the leader it carries on what its route succeeds, and with data that the route succeeds
	// it does not lead. Versions of Lictor that do not tell know of no major upgrade.
	Succession bool `json:"succession,omitempty"`
	// Postgres is the major version of PostgreSQL whose programs it runs.
	Postgres int `json:"postgres,omitempty"`
}

// KeepsSynced reports whether a member says that PostgreSQL itself keeps a logical slot there.
func (m Member) KeepsSynced(slot string) bool {
	return m.Lictor != nil && slices.Contains(strings.Split(m.Lictor.SyncedSlots, ","), slot)
}

// Stranded reports whether a member says that it cannot go on with its data.
func (m Member) Stranded() bool { return m.Lictor != nil && m.Lictor.Stranded != "" }

// PendingChange is a parameter that takes effect with the next restart.
type PendingChange struct {
	OldValue string `json:"old_value"`
	NewValue string `json:"new_value"`
}

// States of a member's PostgreSQL, in Patroni's words.
const (
	StateRunning      = "running"
	StateStarting     = "starting"
	StateStopping     = "stopping"
	StateStopped      = "stopped"
	StateCrashed      = "crashed"
	StateRestarting   = "restarting"
	StateStartFailed  = "start failed"
	StateInitializing = "initializing new cluster"
	StateInitFailed   = "initdb failed"
	StateCreating     = "creating replica"
)

// Roles of a member, in Patroni 4's words. Patroni 3 writes "master".
const (
	RolePrimary       = "primary"
	RoleMaster        = "master"
	RoleReplica       = "replica"
	RoleDemoted       = "demoted"
	RolePromoted      = "promoted"
	RoleUninitialized = "uninitialized"
	// RoleStandbyLeader is that of the leader of a standby cluster.
	RoleStandbyLeader = "standby_leader"
)

// IsPrimary reports whether a role is that of a primary, in Patroni 4's word or in 3's.
func IsPrimary(role string) bool { return role == RolePrimary || role == RoleMaster }

// Address is where the member's PostgreSQL listens, by its conn_url; without a port
// there it is PostgreSQL's default.
func (m Member) Address() (host string, port int, err error) {
	if host, port, err = splitURL(m.ConnURL, "postgres", "postgresql"); err != nil {
		return "", 0, fmt.Errorf("member %s: conn_url %s %w", printable.Text(m.Name), printable.Quote(m.ConnURL), err)
	}
	if port == 0 {
		port = 5432
	}
	return host, port, nil
}

// APIAddress is where the member's REST API listens, by its api_url; without a port there
// it is that of the scheme.
func (m Member) APIAddress() (host string, port int, err error) {
	if host, port, err = splitURL(m.APIURL, "http", "https"); err != nil {
		return "", 0, fmt.Errorf("member %s: api_url %s %w", printable.Text(m.Name), printable.Quote(m.APIURL), err)
	}
	switch {
	case port != 0:
	case strings.HasPrefix(m.APIURL, "https"):
		port = 443
	default:
		port = 80
	}
	return host, port, nil
}

// check returns what keeps the key of a member from being one: a name or an address
// that is none. What it does not say yet is no fault.
func (m Member) check() error {
	if err := CheckName(m.Name); err != nil {
		return fmt.Errorf("the name of the member %w", err)
	}
	if m.ConnURL != "" {
		if _, _, err := m.Address(); err != nil {
			return err
		}
	}
	if m.APIURL != "" {
		if _, _, err := m.APIAddress(); err != nil {
			return err
		}
	}
	return nil
}

// Tag returns a boolean tag; absent means false.
func (m Member) Tag(name string) bool { return boolTag(m.Tags, name) }

// NoFailover reports whether the member must never lead: the tag nofailover, or
// a failover_priority of zero or less.
func NoFailover(tags map[string]any) bool {
	if boolTag(tags, "nofailover") {
		return true
	}
	_, set := tags["failover_priority"]
	return set && FailoverPriority(tags) <= 0
}

// NoStream reports whether the member follows nobody and gets WAL by its
// restore_command alone: the tag nostream.
func NoStream(tags map[string]any) bool { return boolTag(tags, "nostream") }

// FailoverPriority is the tag of that name, 1 when absent; of two equally
// advanced members the one with the higher priority leads.
func FailoverPriority(tags map[string]any) int { return priorityTag(tags, "failover_priority") }

// SyncPriority is the tag of that name, 1 when absent: members with a higher one are
// chosen first as synchronous standbys, those with 0 never.
func SyncPriority(tags map[string]any) int { return priorityTag(tags, "sync_priority") }

// TextTag is a tag whose value is a word or a number; empty: there is none.
func TextTag(tags map[string]any, name string) string {
	switch value := tags[name].(type) {
	case string:
		return strings.TrimSpace(value)
	case int, int64, float64:
		return fmt.Sprint(value)
	}
	return ""
}

func priorityTag(tags map[string]any, name string) int {
	if n, err := ParseInteger(tags[name]); err == nil {
		return int(max(math.MinInt32, min(math.MaxInt32, n)))
	}
	return 1
}

func boolTag(tags map[string]any, name string) bool {
	if on, err := ParseBoolean(tags[name]); err == nil {
		return on
	}
	switch v := tags[name].(type) {
	case int:
		return v != 0
	case float64:
		return v != 0
	}
	return false
}

// Status is the value of the key `status`: the leader's position. Patroni's
// format plus the field lictor, which carries the beat.
type Status struct {
	OpTime      int64            `json:"optime"`
	Slots       map[string]int64 `json:"slots,omitempty"`
	RetainSlots []string         `json:"retain_slots,omitempty"`
	// Lictor is absent when the leader is Patroni: then Patroni's rules hold.
	Lictor *Beat `json:"lictor,omitempty"`
}

// Beat is one renewal of the leader's lease (design 4.2, design 5.1).
type Beat struct {
	// LeaseMS is how long the lease runs from the beat on, in milliseconds.
	LeaseMS int64 `json:"lease_ms"`
	// Number grows by one with every beat of an owner.
	Number int64 `json:"beat"`
	// Owner is the member that holds the lease.
	Owner string `json:"owner"`
	// Released says that the owner gave the lease up after its PostgreSQL had
	// stopped, or that an operator overrode it (lictor failover --force).
	Released bool `json:"released,omitempty"`
	// Complete says that the successor has received all WAL of an owner that was
	// shut down cleanly: it need not look who else has what.
	Complete bool `json:"complete,omitempty"`
	// Paused says that the owner beat in pause: it may run as a primary beyond its
	// lease, so nobody takes that lease on his own.
	Paused bool `json:"paused,omitempty"`
	// Timeline is the highest number of a timeline that a leader of this shard has
	// taken, or may be about to: the next promotion takes a higher one.
	Timeline int `json:"timeline,omitempty"`
	// Discarded: members on a timeline up to this one hold WAL that a restore has discarded,
	// or is about to; DiscardedBefore is the number that stands again when it is undone.
	Discarded       int `json:"discarded,omitempty"`
	DiscardedBefore int `json:"discarded_before,omitempty"`
	// Standby: the owner's PostgreSQL is a standby leader's, as is its position (optime).
	Standby bool `json:"standby,omitempty"`
	// Site is since which timeline this site has led: the one that it began when it was promoted beside,
	// or after, another one; 0: always. Succeeded is the timeline of the other site's primary that has
	// taken over since: nobody here accepts commits; 0: none has.
	Site      int `json:"site,omitempty"`
	Succeeded int `json:"succeeded,omitempty"`
	// FailoverSlots are those of the permanent logical slots that PostgreSQL itself keeps on replicas which ask
	// it for them (sync_replication_slots): of the others agents keep copies there.
	FailoverSlots []string `json:"failover_slots,omitempty"`
	// Takeover is "quorum" where the owner consents to a takeover by quorum (design 5.30).
	Takeover TakeoverPolicy `json:"takeover,omitempty"`
	// Successor alone may take a released lease for the first half of its ttl.
	Successor string `json:"successor,omitempty"`
}

// Lease is LeaseMS as a duration.
func (b Beat) Lease() time.Duration { return time.Duration(b.LeaseMS) * time.Millisecond }

// Consents reports whether the owner consents to a takeover by quorum.
func (b Beat) Consents() bool { return b.Takeover == TakeoverQuorum && !b.Released && !b.Paused }

// Failover is the value of the key `failover`: an operator's request. The
// candidate is stored as "member", as Patroni does.
type Failover struct {
	Leader      string     `json:"leader,omitempty"`
	Candidate   string     `json:"member,omitempty"`
	ScheduledAt *time.Time `json:"scheduled_at,omitempty"`
	// OnBusy is Lictor's: what to do with transactions that still run when the
	// poolers hold the clients; empty is OnBusyCancel. Patroni passes it over.
	OnBusy string `json:"on_busy,omitempty"`
}

// What a switchover does with transactions that still run when the poolers hold
// the shard's clients.
const (
	OnBusyCancel = "cancel" // they get two seconds, then they are broken off
	OnBusyWait   = "wait"   // they get half of the handover's deadline, then it is called off
	OnBusyRefuse = "refuse" // it is called off before anybody waits where one has run for half a second, else after that time
)

// Empty reports whether nothing is asked for.
func (f Failover) Empty() bool {
	return f.Leader == "" && f.Candidate == "" && f.ScheduledAt == nil
}

// Sync is the value of the key `sync`: the members that may lead without losing
// an acknowledged commit.
type Sync struct {
	Leader string `json:"leader"`
	// Quorum is how many of the leader and the standbys, besides itself, a
	// standby must see at or behind its own position before it may lead: 0 when
	// every standby holds every acknowledged commit. Patroni 3 does not write it.
	Quorum      int     `json:"quorum"`
	SyncStandby *string `json:"sync_standby"`
	// After is the ModifyIndex of the value that this one replaced, set when the
	// write had to be a change: Consul moves no index for a value that is equal
	// to the old one, and a write that comes late must fail. Patroni passes over
	// it.
	After uint64 `json:"after,omitempty"`
}

// NewSync makes the value for a leader and its synchronous standbys; names are
// sorted and joined by commas, none is null.
func NewSync(leader string, standbys []string) Sync {
	s := Sync{Leader: leader}
	if len(standbys) > 0 {
		names := strings.Join(slices.Sorted(slices.Values(standbys)), ",")
		s.SyncStandby = &names
	}
	return s
}

// Standbys lists the synchronous standbys.
func (s Sync) Standbys() []string {
	if s.SyncStandby == nil || *s.SyncStandby == "" {
		return nil
	}
	return strings.Split(*s.SyncStandby, ",")
}

// Has reports whether name held every acknowledged commit when the key was
// written: the leader itself or one of its synchronous standbys. Names compare
// without case, as PostgreSQL compares application names.
func (s Sync) Has(name string) bool {
	return strings.EqualFold(s.Leader, name) || slices.ContainsFunc(s.Standbys(), func(n string) bool {
		return strings.EqualFold(n, name)
	})
}

// TimelineSwitch is one line of the key `history`: how a timeline ended.
type TimelineSwitch struct {
	Timeline  int
	LSN       int64
	Reason    string
	Time      string // ISO 8601, may be empty
	NewLeader string // may be empty
}

// MarshalJSON writes Patroni's array of three to five elements.
func (t TimelineSwitch) MarshalJSON() ([]byte, error) {
	line := []any{t.Timeline, t.LSN, t.Reason}
	if t.Time != "" {
		line = append(line, t.Time)
		if t.NewLeader != "" {
			line = append(line, t.NewLeader)
		}
	}
	return json.Marshal(line)
}

// UnmarshalJSON reads Patroni's array of three to five elements.
func (t *TimelineSwitch) UnmarshalJSON(b []byte) error {
	var line []json.RawMessage
	if err := json.Unmarshal(b, &line); err != nil {
		return fmt.Errorf("history line is not an array: %w", err)
	}
	if len(line) < 3 {
		return fmt.Errorf("history line has %d elements, must have at least 3", len(line))
	}
	*t = TimelineSwitch{}
	for i, target := range []any{&t.Timeline, &t.LSN, &t.Reason, &t.Time, &t.NewLeader} {
		if i >= len(line) {
			break
		}
		if err := json.Unmarshal(line[i], target); err != nil {
			return fmt.Errorf("history line, element %d: %w", i, err)
		}
	}
	return nil
}

// History is the value of the key `history`.
type History []TimelineSwitch

// After is the timeline that came after the i-th, in the history of timeline.
func (h History) After(i, timeline int) int {
	if i+1 < len(h) {
		return h[i+1].Timeline
	}
	return timeline
}
