package simulation

import (
	"fmt"
	"reflect"
	"slices"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// consulState is how Consul fares as a whole.
type consulState int

const (
	consulUp       consulState = iota
	consulHangs                // takes requests in, answers nobody
	consulElecting             // has no leader for a moment
	consulDown                 // refuses connections
)

// kv is one key.
type kv struct {
	value   any
	session string
	index   uint64
}

// consulSession is one session: it ends between once and twice its TTL after it
// was renewed last, and its keys with it (behavior delete).
type consulSession struct {
	id      string
	owner   int
	ttl     time.Duration
	renewed int // how often, so that an old timer means nothing
}

// consul is one linearizable store. Blocking queries alone may get what is not true
// any more.
type consul struct {
	w        *world
	state    consulState
	keys     map[string]kv
	index    uint64
	changed  uint64 // the index of the last change
	sessions []*consulSession
	made     int
	waiting  []waiter
	backlog  []func()
	snapshot *cluster.Snapshot // as of the index changed; nil: nobody has asked for it
	// A leader that was elected after an outage shows an old state until it has
	// applied its log. applied is what the next one begins with.
	behind, applied *cluster.Snapshot
	behindUntil     instant
}

// waiter is a blocking query.
type waiter struct {
	index  uint64
	answer func()
	broken func()
}

// The keys of the shard.
const (
	keyInitialize = "initialize"
	keyRebuild    = "rebuild"
	keyConfig     = "config"
	keyLeader     = "leader"
	keyStatus     = "status"
	keySync       = "sync"
	keyFailover   = "failover"
	keyFailsafe   = "failsafe"
	keyHistory    = "history"
	keyMembers    = "members/"
)

type verb int

const (
	checkSession verb = iota
	checkIndex
	checkNotExists
	set
	lock
	unlock
	del
	deleteCAS
)

// op is one operation of a transaction, as agent/consul/write.go sends them.
type op struct {
	verb    verb
	key     string
	session string
	index   uint64
	value   any
}

func expect(key string, index uint64) op {
	if index == 0 {
		return op{verb: checkNotExists, key: key}
	}
	return op{verb: checkIndex, key: key, index: index}
}

// commit runs a transaction: all of it, or nothing when an operation fails.
func (c *consul) commit(ops []op) bool {
	changes := make(map[string]*kv, len(ops))
	at := func(key string) *kv {
		if e, touched := changes[key]; touched {
			return e
		}
		if e, found := c.keys[key]; found {
			return &e
		}
		return nil
	}
	next := c.index + 1
	moved := false
	for _, o := range ops {
		e := at(o.key)
		switch o.verb {
		case checkSession:
			if e == nil || e.session != o.session {
				return false
			}
		case checkIndex:
			if e == nil || e.index != o.index {
				return false
			}
		case checkNotExists:
			if e != nil {
				return false
			}
		case set:
			if e != nil && reflect.DeepEqual(e.value, o.value) {
				continue // the index stays (Consul, kvsSetTxn)
			}
			held := ""
			if e != nil {
				held = e.session
			}
			changes[o.key], moved = &kv{value: o.value, session: held, index: next}, true
		case lock:
			if c.session(o.session) == nil || e != nil && e.session != "" && e.session != o.session {
				return false
			}
			changes[o.key], moved = &kv{value: o.value, session: o.session, index: next}, true
		case unlock:
			if e == nil || e.session != o.session {
				return false
			}
			changes[o.key], moved = &kv{value: o.value, index: next}, true
		case del:
			changes[o.key], moved = nil, moved || e != nil
		case deleteCAS:
			if e != nil && e.index != o.index {
				return false
			}
			changes[o.key], moved = nil, moved || e != nil
		}
	}
	if !moved {
		return true
	}
	c.index = next
	late := c.positions(changes) && c.w.chance(0.9)
	for key, e := range changes {
		if e == nil {
			delete(c.keys, key)
		} else {
			c.keys[key] = *e
		}
	}
	if late {
		c.changed, c.snapshot = c.index, nil
	} else {
		c.moved()
	}
	return true
}

// positions reports whether a member tells of its progress in the WAL and of nothing else.
// That is most of what is written. Answers to blocking queries may come as late as they like:
// mostly these come with the next one that tells more, or every run would take twice as long.
func (c *consul) positions(changes map[string]*kv) bool {
	for key, e := range changes {
		if e == nil {
			return false
		}
		now, is := e.value.(cluster.Member)
		before, was := c.keys[key].value.(cluster.Member)
		if !is || !was || c.keys[key].session != e.session || !now.EqualButPositions(before) {
			return false
		}
	}
	return true
}

// moved answers the blocking queries.
func (c *consul) moved() {
	c.changed, c.snapshot = c.index, nil
	kept := c.waiting[:0]
	for _, q := range c.waiting {
		if q.index < c.changed {
			q.answer()
		} else {
			kept = append(kept, q)
		}
	}
	c.waiting = kept
}

func (c *consul) session(id string) *consulSession {
	for _, s := range c.sessions {
		if s.id == id {
			return s
		}
	}
	return nil
}

func (c *consul) createSession(owner int, ttl time.Duration) string {
	c.made++
	c.index++
	s := &consulSession{id: fmt.Sprintf("session-%d", c.made), owner: owner, ttl: ttl}
	c.sessions = append(c.sessions, s)
	c.renew(s)
	return s.id
}

func (c *consul) renew(s *consulSession) {
	s.renewed++
	renewed := s.renewed
	c.w.after(c.w.between(s.ttl, 2*s.ttl), func() {
		if s.renewed == renewed && c.state == consulUp {
			c.end(s)
		}
	})
}

// end ends a session: its keys are deleted.
func (c *consul) end(s *consulSession) {
	i := slices.Index(c.sessions, s)
	if i < 0 {
		return
	}
	c.sessions = slices.Delete(c.sessions, i, i+1)
	c.index++
	moved := false
	for key, e := range c.keys {
		if e.session == s.id {
			delete(c.keys, key)
			moved = true
		}
	}
	c.w.say("consul: %s of %s ends", s.id, c.w.hosts[s.owner].name)
	if moved {
		c.moved()
	}
}

// arrive takes a request in; fail, if there is one, hears that Consul has no leader.
func (c *consul) arrive(do, fail func()) {
	switch c.state {
	case consulUp:
		do()
	case consulHangs:
		if c.w.chance(0.7) {
			c.backlog = append(c.backlog, do)
		}
	case consulElecting:
		if fail == nil || c.w.chance(0.5) {
			c.backlog = append(c.backlog, do)
		} else {
			fail()
		}
	case consulDown:
	}
}

// become changes how Consul fares. What was taken in meanwhile takes effect late,
// in any order, and the TTLs of all sessions start anew.
func (c *consul) become(s consulState) {
	c.state = s
	switch s {
	case consulUp:
		if c.behind = c.applied; c.behind == nil {
			c.behind = &cluster.Snapshot{}
		}
		c.behindUntil = c.w.now + c.w.between(0, 300*time.Millisecond)
		c.applied = c.read()
		backlog := c.backlog
		c.backlog = nil
		for _, do := range backlog {
			c.w.after(c.w.between(0, time.Second), func() { c.arrive(do, nil) })
		}
		for _, s := range c.sessions {
			c.renew(s)
		}
	case consulDown:
		c.backlog = nil
		for _, q := range c.waiting {
			q.broken()
		}
		c.waiting = nil
	case consulHangs, consulElecting:
	}
}

// watched is what a blocking query is answered.
func (c *consul) watched() *cluster.Snapshot {
	if c.w.now < c.behindUntil {
		return c.behind
	}
	return c.read()
}

// read is the shard as it stands. Nobody changes what is in a snapshot.
func (c *consul) read() *cluster.Snapshot {
	if c.snapshot != nil {
		return c.snapshot
	}
	s := &cluster.Snapshot{
		Index:      max(c.changed, 1),
		Initialize: entryOf[string](c, keyInitialize),
		Config:     entryOf[[]byte](c, keyConfig),
		Leader:     entryOf[string](c, keyLeader),
		Status:     entryOf[cluster.Status](c, keyStatus),
		Sync:       entryOf[cluster.Sync](c, keySync),
		Failover:   entryOf[cluster.Failover](c, keyFailover),
		Failsafe:   entryOf[map[string]string](c, keyFailsafe),
		History:    entryOf[cluster.History](c, keyHistory),
		Route:      entryOf[cluster.Route](c, keys().Route()),
		Rebuild:    entryOf[string](c, keyRebuild),
	}
	for _, h := range c.w.hosts { // sorted by name
		if e := entryOf[cluster.Member](c, keyMembers+h.name); e.Exists() {
			s.Members = append(s.Members, e)
		}
	}
	c.snapshot = s
	return s
}

func entryOf[T any](c *consul, key string) cluster.Entry[T] {
	e, found := c.keys[key]
	if !found {
		return cluster.Entry[T]{}
	}
	return cluster.Entry[T]{Value: e.value.(T), Session: e.session, ModifyIndex: e.index}
}

// leaderNamed is who holds the lock, for the judge.
func (c *consul) leaderNamed() string {
	e, found := c.keys[keyLeader]
	if !found || e.session == "" {
		return ""
	}
	return e.value.(string)
}

// put is an operator's write: no check, no session.
func (c *consul) put(key string, value any) {
	c.commit([]op{{verb: set, key: key, value: value}})
}
