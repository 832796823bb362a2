package member

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/pg"
)

// Shard is what every part of a member rests on: who it is, the time, and what it knows of
// its shard. Readings of Consul and the member's own writes change it.
type Shard struct {
	Settings
	Clock
	Later
	ha.ClusterView
	ReadWall time.Time // when it was read last
	Session  string
	Dynamic  cluster.Dynamic
	retained []string // the slots of members that went away

	site        ha.SiteView       // what is known of the other site
	barredUntil cluster.Instant   // pre_promote has failed: this member does not want to lead before
	logged      map[string]string // problems that were logged and last, by topic
}

// SawSession hears which Consul session this member has by now.
func (s *Shard) SawSession(id string) { s.Session = id }

// Retag gives this member other tags.
func (s *Shard) Retag(tags map[string]any) { s.Tags = tags }

// retryAfter is how soon a request to Consul that certainly failed is tried again, with
// jitter so that many members do not knock together.
func (s *Shard) retryAfter() time.Duration {
	return s.Jitter(200*time.Millisecond, 400*time.Millisecond)
}

// wakeAfter brings the loop round after d.
func (s *Shard) wakeAfter(d time.Duration) { s.After(d, func() {}) }

// LockIsOurs reports whether Consul shows the lock held by this member's session.
func (s *Shard) LockIsOurs() bool {
	l := s.Snapshot.Leader
	return l.Exists() && s.Session != "" && l.Session == s.Session
}

// asRead is what the decision core may ask about the shard without a clock: its configuration, and
// what was read of Consul last.
func (s *Shard) asRead() ha.Shard { return ha.Shard{Config: s.Dynamic, Cluster: s.Snapshot} }

// standbyLeads reports whether Consul shows this member as the leader of a standby shard.
func (s *Shard) standbyLeads() bool { return s.Dynamic.StandbyCluster.On() && s.LockIsOurs() }

// TagsNow are this member's. One whose pre_promote has failed just now does not want
// to lead for a while, so that another member can.
func (s *Shard) TagsNow() map[string]any {
	if s.barredUntil.IsZero() || !s.Now().Before(s.barredUntil) {
		return s.Tags
	}
	tags := map[string]any{"nofailover": true}
	for name, value := range s.Tags {
		if name != "nofailover" && name != "failover_priority" {
			tags[name] = value
		}
	}
	return tags
}

// Problem logs what is wrong with a topic when that is news, and when it is over: detail is
// empty then.
func (s *Shard) Problem(topic, message, detail string) {
	problem := message + ": " + detail
	was, logged := s.logged[topic]
	switch {
	case detail != "" && was != problem:
		s.logged[topic] = problem
		s.Log.Error().Str("detail", detail).Msg(message)
	case detail == "" && logged:
		delete(s.logged, topic)
		s.Log.Info().Str("topic", topic).Msg("problem resolved")
	}
}

// Failure is Problem for something that has failed, or has not.
func (s *Shard) Failure(topic, message string, err error) {
	detail := ""
	if err != nil {
		detail = err.Error()
	}
	s.Problem(topic, message, detail)
}

// Logged are the problems that were logged and last.
func (s *Shard) Logged() []string { return slices.Collect(maps.Values(s.logged)) }

// upstreamOf is how to reach the PostgreSQL of a member, or of the remote primary.
func (s *Shard) upstreamOf(name string) (pg.Upstream, error) {
	if standby := s.Dynamic.StandbyCluster; cluster.IsRemote(name) {
		if standby.Upstream() != name {
			return pg.Upstream{}, fmt.Errorf("the %s is not the one of standby_cluster any more", name)
		}
		return pg.Upstream{Name: name, Host: standby.Host, Port: standby.Port, Remote: true}, nil
	}
	other, found := s.Snapshot.Member(name)
	if !found || !other.OK() {
		return pg.Upstream{}, fmt.Errorf("member %s: its key in Consul is missing or not understood", name)
	}
	host, port, err := other.Value.Address()
	if err != nil {
		return pg.Upstream{}, err
	}
	return pg.Upstream{Name: name, Host: host, Port: port}, nil
}

// leadingLine is who leads the shard, on which timeline; zero: nobody that is known, or this member.
func (s *Shard) leadingLine() ha.Line {
	name := s.Snapshot.LeaderName()
	m, found := s.Snapshot.Member(name)
	if !found || !m.OK() || name == s.Name {
		return ha.Line{}
	}
	return ha.Line{Leader: name, Timeline: m.Value.Timeline}
}
