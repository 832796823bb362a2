package postgres

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// This file is what a takeover by quorum rests on: it finds out what commits are acknowledged by, and holds back what the
// configuration would weaken of that while another member may take over on the strength of it.

// Parameters that a takeover by quorum rests on.
const (
	synchronousCommit = "synchronous_commit"
	fsyncParameter    = "fsync"
)

// heldParameters are those that may be held back.
func heldParameters() []string { return []string{synchronousCommit, fsyncParameter} }

// keeps reports whether commits are on the disks of the standbys, with that value, before they are acknowledged.
func keeps(name, value string) bool {
	if name == fsyncParameter {
		return isOn(value)
	}
	return slices.Contains([]string{"on", "true", "yes", "1", "remote_apply"}, strings.ToLower(value))
}

// held is what is held back. The settings' lock guards it.
type held struct {
	hold bool
	// back: the files that were written last have another value than the configuration asks for.
	back bool
	// included are the values of the file that the agent's own includes, as they were read last.
	included map[string]string
}

// configured is the value that the files are to have for one of the parameters that may be held back.
func (h *held) configured(parameters map[string]string, name string) string {
	value, set := parameters[name]
	if !set {
		value, set = h.included[name]
	}
	if !set {
		return "on"
	}
	return value
}

// replace replaces those of the parameters that would weaken what a primary's files say now, and notes what the included file says. It
// returns the names of what it holds back.
func (h *held) replace(role Role, parameters map[string]string, included, now []confSetting) (names []string) {
	h.included = map[string]string{}
	for _, name := range heldParameters() {
		if line, set := lastOf(included, name); set {
			h.included[name] = line.Value
		}
		is := "on"
		if line, set := lastOf(now, name); set {
			is = line.Value
		}
		if h.hold && role == Primary && keeps(name, is) && !keeps(name, h.configured(parameters, name)) {
			parameters[name] = is
			names = append(names, name)
		}
	}
	h.back = len(names) > 0
	return names
}

// HoldCommits has what is written into the files of a primary, until it is told otherwise, leave synchronous_commit and fsync as
// they stand there rather than weaken them.
func (p *confFiles) HoldCommits(hold bool) {
	p.settings.Lock()
	defer p.settings.Unlock()
	p.held.hold = hold
}

// LetGo reports, once, whether the files are to be written anew, as what they hold back need not be held back any more.
func (p *confFiles) LetGo() bool {
	p.settings.Lock()
	defer p.settings.Unlock()
	if !p.held.back || p.held.hold {
		return false
	}
	p.held.back = false
	return true
}

// SynchronousCommit is the parameter synchronous_commit as it is configured.
func (p *confFiles) SynchronousCommit() string {
	p.settings.Lock()
	defer p.settings.Unlock()
	return plainCommit(p.held.configured(p.parameters(), synchronousCommit))
}

// plainCommit is a synchronous_commit in the word that PostgreSQL shows.
func plainCommit(value string) string {
	value = strings.ToLower(value)
	if value != "remote_apply" && keeps(synchronousCommit, value) {
		return "on"
	}
	return value
}

// Fsync is the parameter fsync as it is configured.
func (p *confFiles) Fsync() bool {
	p.settings.Lock()
	defer p.settings.Unlock()
	return keeps(fsyncParameter, p.held.configured(p.parameters(), fsyncParameter))
}

// givenToClients is the synchronous_commit that a client's session begins with, as far as neither its role nor its database has one
// of its own: the server's, or a weaker one that ALTER ROLE ALL has set. The kept session shows another one where its own role
// or database has. Then a WAL sender's is asked, which has neither; empty: it does not answer.
func (p *observer) givenToClients(ctx context.Context, shown, everybodys string) string {
	if p.ownCommit && p.takeoverByQuorum() {
		shown = p.shownToWALSender(ctx)
	}
	if everybodys != "" && keeps(synchronousCommit, shown) && !keeps(synchronousCommit, everybodys) {
		return plainCommit(everybodys)
	}
	return shown
}

func (p *observer) shownToWALSender(ctx context.Context) string {
	conn, err := p.replicationConn(ctx, Upstream{Name: p.name, Host: p.address(), Port: p.port})
	if err != nil {
		p.log.Debug().Err(err).Msg("the server's synchronous_commit is not known: the agent's role or database has one of its own")
		return ""
	}
	defer hangUpOn(conn)
	row, err := queryRow(ctx, conn, "SHOW "+synchronousCommit)
	if err != nil || len(row) == 0 {
		return ""
	}
	return string(row[0])
}

func (p *observer) takeoverByQuorum() bool {
	p.settings.Lock()
	defer p.settings.Unlock()
	return p.dynamic.Takeover == cluster.TakeoverQuorum
}

// weaker is what sessions may still commit by: a session takes new settings in between two statements.
type weaker struct {
	start time.Time // of this postmaster
	is    bool      // weaker settings were seen last
	until time.Time // statements that began before may be under these
}

// still is the synchronous_commit of a look, or empty if a statement may be at work that has a weaker one. loaded is when the files were
// read last, oldest when the oldest statement began that is at work; nil: there is none.
func (w *weaker) still(s State, loaded, now time.Time, oldest *time.Time) string {
	if !s.StartTime.Equal(w.start) {
		*w = weaker{start: s.StartTime, until: loaded} // what they said before is not known
	}
	switch weak := !keeps(synchronousCommit, s.SynchronousCommit) || !s.Fsync; {
	case weak:
		w.is = true
		return s.SynchronousCommit
	case w.is:
		w.is, w.until = false, now
	}
	if oldest != nil && oldest.Before(w.until) {
		return ""
	}
	return s.SynchronousCommit
}
