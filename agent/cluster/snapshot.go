package cluster

import (
	"encoding/json"
	"fmt"
	"sort"
	"strings"

	"github.com/lictor-ha/lictor/agent/printable"
)

// KV is one key as Consul returned it.
type KV struct {
	Key         string
	Value       []byte
	Session     string
	ModifyIndex uint64
}

// Entry is a key that was read, with what is needed to write it again safely.
// A key that does not exist has ModifyIndex 0 (Consul's indexes begin at 1).
type Entry[T any] struct {
	Value       T
	Session     string
	ModifyIndex uint64
	// Err says why the value could not be understood; Value is then zero.
	Err error
}

// Exists reports whether the key was there.
func (e Entry[T]) Exists() bool { return e.ModifyIndex != 0 }

// OK reports whether the key was there and was understood.
func (e Entry[T]) OK() bool { return e.Exists() && e.Err == nil }

// Snapshot is a shard as it stood in Consul at one index. A value that makes
// no sense is reported in its entry and harms nothing else.
type Snapshot struct {
	Index      uint64
	Initialize Entry[string]
	// Config is the raw dynamic configuration; ParseDynamic reads it.
	Config   Entry[[]byte]
	Leader   Entry[string]
	Status   Entry[Status]
	Sync     Entry[Sync]
	Failover Entry[Failover]
	Failsafe Entry[map[string]string]
	History  Entry[History]
	Route    Entry[Route]
	// Rebuild names the member whose data are made anew by policy.
	Rebuild Entry[string]
	Members []Entry[Member] // sorted by name
}

// Lag is how many bytes of WAL a replica's position, one of those under its key, is
// behind the leader's; not known where one of the two is not. The leader's position in
// the key status is of another moment: it may be newer by the WAL of some seconds, or by
// a whole segment that was switched. So what counts is the one that the replica knew of
// before it looked. A member of Patroni's says nothing of that.
func (s Snapshot) Lag(m Member, position int64) (bytes int64, known bool) {
	leader := s.Status.Value.OpTime
	if m.Lictor != nil {
		leader = min(leader, m.Lictor.LeaderLSN)
	}
	if position <= 0 || leader <= 0 || !s.Status.OK() {
		return 0, false
	}
	return max(0, leader-position), true
}

// ParseSnapshot sorts the keys of one shard into a snapshot. Keys that are not
// the shard's are passed over.
func ParseSnapshot(keys Keys, kvs []KV, index uint64) Snapshot {
	s := Snapshot{Index: index}
	for _, kv := range kvs {
		switch {
		case kv.Key == keys.Initialize():
			s.Initialize = text(kv)
		case kv.Key == keys.Leader():
			s.Leader = text(kv)
		case kv.Key == keys.Rebuild():
			s.Rebuild = text(kv)
		case kv.Key == keys.Config():
			s.Config = Entry[[]byte]{Value: kv.Value, ModifyIndex: kv.ModifyIndex}
		case kv.Key == keys.Status():
			s.Status = decode[Status](kv)
		case kv.Key == keys.Sync():
			s.Sync = decode[Sync](kv)
		case kv.Key == keys.Failover():
			s.Failover = decode[Failover](kv)
		case kv.Key == keys.Failsafe():
			s.Failsafe = decode[map[string]string](kv)
		case kv.Key == keys.History():
			s.History = decode[History](kv)
		case kv.Key == keys.Route():
			s.Route = decode[Route](kv)
			if s.Route.OK() {
				if s.Route.Err = s.Route.Value.Validate(); s.Route.Err != nil {
					s.Route.Value = Route{}
				}
			}
		case strings.HasPrefix(kv.Key, keys.Members()):
			name := strings.TrimPrefix(kv.Key, keys.Members())
			if name == "" || strings.Contains(name, "/") {
				continue // a folder, as Consul's own UI makes them, or below one
			}
			m := decode[Member](kv)
			m.Value.Name = name
			if err := m.Value.check(); err != nil && m.Err == nil {
				m = Entry[Member]{Value: Member{Name: name}, Session: m.Session, ModifyIndex: m.ModifyIndex, Err: err}
			}
			s.Members = append(s.Members, m)
		}
	}
	sort.Slice(s.Members, func(i, j int) bool { return s.Members[i].Value.Name < s.Members[j].Value.Name })
	return s
}

// ReadOfShard reports whether ParseSnapshot reads a key of a shard's, by what follows the shard's prefix.
func ReadOfShard(rest string) bool {
	switch rest {
	case "initialize", "leader", "rebuild", "config", "status", "sync", "failover", "failsafe", "history":
		return true
	}
	name, member := strings.CutPrefix(rest, "members/")
	return member && name != "" && !strings.Contains(name, "/")
}

// Member returns the member of that name, if its key exists.
func (s Snapshot) Member(name string) (Entry[Member], bool) {
	for i := range s.Members { // a member's entry is too large to be copied for a look at its name
		if s.Members[i].Value.Name == name {
			return s.Members[i], true
		}
	}
	return Entry[Member]{}, false
}

// Upstream is whom the named member, with these tags, streams from: the member that its tag
// replicatefrom names if that follows the leader, else the leader. Members that are to
// stream from each other follow the leader: none of them would get any WAL.
func (s Snapshot) Upstream(name string, tags map[string]any, leader string) string {
	from, _ := tags["replicatefrom"].(string)
	if m, found := s.Member(from); found && from != name && s.follows(m, leader) && !s.InRing(name) {
		return from
	}
	return leader
}

// InRing reports whether a member is to stream from itself, by way of others.
func (s Snapshot) InRing(name string) bool {
	at := name
	for range s.Members {
		m, _ := s.Member(at)
		switch at, _ = m.Value.Tags["replicatefrom"].(string); at {
		case "":
			return false
		case name:
			return true
		}
	}
	return false
}

// CloneSource is whom the named member copies its data from: a member with the tag
// clonefrom that follows the leader, else the leader. What is copied from one that cannot go on
// could not either.
func (s Snapshot) CloneSource(name, leader string) string {
	for _, m := range s.Members {
		if m.OK() && m.Value.Name != name && m.Value.Tag("clonefrom") && !m.Value.Stranded() && s.follows(m, leader) {
			return m.Value.Name
		}
	}
	return leader
}

// follows reports whether a member is seen to be a replica of the leader that runs. One
// that says that it is a primary, or stands on another timeline than the leader, may be an
// earlier leader whom nobody has fenced yet: whoever streamed from it would acknowledge
// its commits.
func (s Snapshot) follows(m Entry[Member], leader string) bool {
	led, _ := s.Member(leader)
	return m.OK() && m.Value.Name != leader && m.Value.State == StateRunning && m.Value.Role == RoleReplica && m.Value.Timeline == led.Value.Timeline
}

// LeaderName is the holder of the lock, empty when nobody holds it. A leader
// key without a session is nobody's: it cannot expire, and no agent writes one.
func (s Snapshot) LeaderName() string {
	if !s.Leader.Exists() || s.Leader.Session == "" {
		return ""
	}
	return s.Leader.Value
}

// Problems lists the values that could not be understood, one error per key, and
// members that cannot be in one shard.
func (s Snapshot) Problems() []error {
	var errs []error
	add := func(key string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("key %s: %w", printable.Short(key, printable.MaxValue), err))
		}
	}
	add("status", s.Status.Err)
	add("sync", s.Sync.Err)
	add("failover", s.Failover.Err)
	add("failsafe", s.Failsafe.Err)
	add("history", s.History.Err)
	add("route", s.Route.Err)
	for i := range s.Members {
		name, err := s.Members[i].Value.Name, s.Members[i].Err
		if err != nil {
			add("members/"+name, err)
		}
		if other := s.Namesake(name); other > name {
			add("members/"+name, namesakeError(name, other))
		}
	}
	if s.Leader.Exists() && s.Leader.Session != "" {
		if _, found := s.Member(s.Leader.Value); !found {
			add("leader", fmt.Errorf("names %s, which is not a member", printable.Quote(s.Leader.Value)))
		}
	}
	return errs
}

func text(kv KV) Entry[string] {
	return Entry[string]{Value: string(kv.Value), Session: kv.Session, ModifyIndex: kv.ModifyIndex}
}

func decode[T any](kv KV) Entry[T] {
	e := Entry[T]{Session: kv.Session, ModifyIndex: kv.ModifyIndex}
	if len(kv.Value) == 0 {
		return e
	}
	if err := json.Unmarshal(kv.Value, &e.Value); err != nil {
		var zero T
		e.Value = zero
		e.Err = fmt.Errorf("is not JSON of the expected shape: %w", printable.Error(err))
	}
	return e
}
