package bouncer

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lictor-ha/lictor/agent/printable"
	"github.com/lictor-ha/lictor/bouncer/config"
)

// OperatorPause says that the clients of a shard wait because an operator wants it, until
// the operator ends it.
type OperatorPause struct {
	// By is who, as the command says: the user and the host.
	By    string    `json:"by"`
	Since time.Time `json:"since"`
	// Databases are the shard's in PgBouncer: they stay paused also where its entry in bouncer.yml cannot be
	// followed any more.
	Databases []string `json:"databases,omitempty"`
}

// maxBy is the longest name of whoever pauses.
const maxBy = 128

// operatorPauses are what operators have asked for: pauses, which are kept over a restart
// before anything waits, and releases of what is held. They know nothing of each other: a
// hold of the bouncer's own begins and ends beside a pause.
type operatorPauses struct {
	// keep writes all pauses down at once; after an error those before stay written. No pass waits for it.
	keep func(map[config.ShardID]OperatorPause) error
	// remember has them written as soon as that can be.
	remember func(map[config.ShardID]OperatorPause)
	// changed is called after a change.
	changed func()

	// setting: one change after another, which is written down before it counts.
	setting sync.Mutex

	mu     sync.Mutex
	pauses map[config.ShardID]OperatorPause
	// releases are those that each process of PgBouncer has not seen yet.
	releases [][]config.ShardID
}

// all are the pauses now.
func (p *operatorPauses) all() map[config.ShardID]OperatorPause {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.pauses)
}

// unwrittenError says that a pause has ended, and that the state file does not say so yet.
type unwrittenError struct {
	id    config.ShardID
	cause error
}

func (e unwrittenError) Error() string {
	return fmt.Sprintf("the pause has ended, but a restart or reload of the bouncer would bring it back until the state file can be written, which is tried again and again: shard %s: %v", e.id, e.cause)
}

func (e unwrittenError) Unwrap() error { return e.cause }

// set pauses a shard, or ends its pause with nil. A pause that is there already stays as
// it is. One that cannot be written down does not begin, but it ends: with unwrittenError.
func (p *operatorPauses) set(id config.ShardID, pause *OperatorPause) error {
	p.setting.Lock()
	defer p.setting.Unlock()
	next := p.all()
	if _, paused := next[id]; paused == (pause != nil) {
		return nil
	}
	if next == nil {
		next = map[config.ShardID]OperatorPause{}
	}
	if pause != nil {
		next[id] = *pause
	} else {
		delete(next, id)
	}
	err := p.keep(next)
	switch {
	case err != nil && pause != nil:
		return fmt.Errorf("the pause of shard %s would not survive a restart of the bouncer, so nothing was changed: %w", id, err)
	case err != nil:
		p.remember(next)
		err = unwrittenError{id, err}
	}
	p.mu.Lock()
	p.pauses = next
	p.mu.Unlock()
	p.changed()
	return err
}

// release has the bouncer's own hold of a shard end.
func (p *operatorPauses) release(id config.ShardID) {
	p.mu.Lock()
	for i := range p.releases {
		p.releases[i] = append(p.releases[i], id)
	}
	p.mu.Unlock()
	p.changed()
}

// takeReleases are those that were asked for since the last call for process number i.
func (p *operatorPauses) takeReleases(i int) []config.ShardID {
	p.mu.Lock()
	defer p.mu.Unlock()
	ids := p.releases[i]
	p.releases[i] = nil
	return ids
}

// endWanted ends the holds that an operator wants to end, as hold_timeout would, and takes in what
// is paused by nobody who is known, so that it is resumed.
func (c *reconciler) endWanted(views []*shard) {
	ids := c.operators.takeReleases(c.number)
	for _, v := range views {
		if !slices.Contains(ids, v.ID) {
			continue
		}
		if h := c.holds[v.ID]; h != nil && !h.expired {
			h.expired = true
			c.log.Warn().Str("shard", string(v.ID)).Dur("held", time.Since(h.since)).Msg("releasing clients, an operator wants it")
		}
		for _, name := range c.offered(v) {
			if _, ours := c.ours[name]; !ours && c.standing[name].Paused {
				c.ours[name] = time.Time{}
			}
		}
	}
}

// shardNamed is the shard that an operator means: by namespace/scope, or by a scope that
// only one has.
func (a *listenerAPI) shardNamed(name string) (config.ShardID, error) {
	var found []config.ShardID
	known := slices.AppendSeq(slices.Collect(maps.Keys(a.processes.shards())), maps.Keys(a.operators.all()))
	for _, id := range known {
		if _, scope := id.Split(); string(id) == name || scope == name {
			found = append(found, id)
		}
	}
	slices.Sort(found)
	found = slices.Compact(found)
	switch {
	case slices.Contains(found, config.ShardID(name)):
		return config.ShardID(name), nil
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return "", fmt.Errorf("shard %q is not unique, say one of %v", name, found)
	}
	return "", fmt.Errorf("no shard %q is offered here", name)
}

// PauseAnswer is the body of /pause, /resume and /release.
type PauseAnswer struct {
	Shard config.ShardID `json:"shard"`
	// Paused is the operator's pause as it is now; absent: there is none.
	Paused *OperatorPause `json:"paused,omitempty"`
	// Held: the bouncer holds the clients by itself.
	Held bool `json:"held,omitempty"`
	// Warning is what the operator should know of what was done.
	Warning string `json:"warning,omitempty"`
}

// pausing answers a request to pause, resume or release a shard.
func (a *listenerAPI) pausing(act func(id config.ShardID, by string) error) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, r *http.Request) {
		id, err := a.shardNamed(r.FormValue("shard"))
		if err != nil {
			reply(w, http.StatusNotFound, map[string]string{"error": err.Error()})
			return
		}
		by := cmp.Or(strings.TrimSpace(printable.Text(r.FormValue("by"))), "unknown")
		if len(by) > maxBy {
			reply(w, http.StatusBadRequest, map[string]string{"error": fmt.Sprintf("by must not be longer than %d bytes", maxBy)})
			return
		}
		var late unwrittenError
		err = act(id, by)
		if err != nil && !errors.As(err, &late) {
			code := http.StatusInternalServerError
			if errors.Is(err, errNotHeld) {
				code = http.StatusConflict
			}
			reply(w, code, map[string]string{"error": err.Error()})
			return
		}
		answer := PauseAnswer{Shard: id, Held: a.processes.shards()[id].Held}
		if p, paused := a.operators.all()[id]; paused {
			answer.Paused = &p
		}
		if err != nil {
			a.log.Error().Err(err).Msg("an ended pause is not written down yet")
			answer.Warning = err.Error()
		}
		reply(w, http.StatusOK, answer)
	}
}

// errNotHeld says that there is nothing to end.
var errNotHeld = errors.New("the shard's clients do not wait")

func (a *listenerAPI) pause(id config.ShardID, by string) error {
	a.log.Warn().Str("shard", string(id)).Str("by", by).Msg("an operator pauses a shard")
	return a.operators.set(id, &OperatorPause{By: by, Since: time.Now().UTC().Round(0), Databases: a.processes.shards()[id].Databases})
}

func (a *listenerAPI) resume(id config.ShardID, by string) error {
	if _, paused := a.operators.all()[id]; !paused {
		return fmt.Errorf("shard %s: %w for an operator: nobody has paused it by this command", id, errNotHeld)
	}
	a.log.Warn().Str("shard", string(id)).Str("by", by).Msg("an operator ends the pause of a shard")
	return a.operators.set(id, nil)
}

func (a *listenerAPI) release(id config.ShardID, by string) error {
	_, paused := a.operators.all()[id]
	s := a.processes.shards()[id]
	if !s.Held && (paused || !a.processes.anyPaused(s.Databases)) {
		return fmt.Errorf("shard %s: %w for a hold of the bouncer, or for a PAUSE of the console; a pause by command is ended by resume", id, errNotHeld)
	}
	a.log.Warn().Str("shard", string(id)).Str("by", by).Msg("an operator releases the clients of a shard")
	a.operators.release(id)
	return nil
}
