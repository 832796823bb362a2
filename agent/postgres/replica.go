package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/lictor-ha/lictor/agent/pg"
	"github.com/lictor-ha/lictor/agent/printable"
)

// cloner makes replicas.
type cloner struct {
	*installation
	*confFiles
	*dataDirectory
	*upstreams
	*processes
	*customMethods
}

// basebackup is the method that is built in.
const basebackup = "basebackup"

// replicaMethods are those of postgresql.create_replica_methods, in their order, or of
// standby_cluster.create_replica_methods for a copy of a remote primary.
func (p *cloner) replicaMethods(remote bool) ([]method, error) {
	local := p.local.Load()
	names := local.CreateReplica
	if of := p.standbyCluster().CreateReplicaMethods; remote && len(of) > 0 {
		names = of
	}
	if len(names) == 0 {
		return []method{{name: basebackup}}, nil
	}
	methods := make([]method, 0, len(names))
	for _, name := range names {
		if name == basebackup {
			methods = append(methods, method{name: basebackup})
			continue
		}
		m, err := customMethod(name, local.Methods[name])
		if err != nil {
			return nil, fmt.Errorf("postgresql.create_replica_methods: %w", err)
		}
		methods = append(methods, m)
	}
	return methods, nil
}

// ClonesWithoutLeader tells whether a replica can be made though nobody leads.
func (p *cloner) ClonesWithoutLeader() bool {
	methods, err := p.replicaMethods(false)
	return err == nil && slices.ContainsFunc(methods, func(m method) bool { return m.noLeader })
}

// KeepsData tells whether a method makes a replica out of what is in the data
// directory: then it is not emptied before.
func (p *cloner) KeepsData() bool {
	methods, err := p.replicaMethods(false)
	return err == nil && len(methods) > 0 && methods[0].keepData
}

// MakeReplica fills the data directory with the first of the configured methods
// that succeeds: pg_basebackup from an upstream, or the operator's commands.
// Without an upstream only those run that need none. systemIdentifier is the
// shard's; what another cluster's backup has left is cleared away again. progress, if set, is
// told how far it is, and by which method.
func (p *cloner) MakeReplica(ctx context.Context, u *Upstream, systemIdentifier string, progress func(pg.Copying)) error {
	if progress == nil {
		progress = func(pg.Copying) {}
	}
	methods, err := p.replicaMethods(u != nil && u.Remote)
	if err != nil {
		return err
	}
	if u != nil && u.Remote {
		if u, err = p.remoteSource(ctx, *u); err != nil {
			return err
		}
	}
	if err := p.isOfShard(ctx, u, systemIdentifier); err != nil {
		return err
	}
	if err := p.killMethods(ctx); err != nil { // of an agent that was killed
		return err
	}
	var errs []error
	for _, m := range methods {
		if u == nil && !m.noLeader {
			continue
		}
		now := pg.Copying{Method: m.name, Failed: gist(errs)}
		progress(now)
		sized := func(done, total int64) {
			sized := now
			sized.Done, sized.Total = done, total
			progress(sized)
		}
		if m.name == basebackup {
			if err = p.emptyAgain(ctx); err == nil {
				err = p.BaseBackup(ctx, *u, sized)
			}
		} else {
			m.percent = func(percent float64) {
				told := now
				told.Percent = percent
				progress(told)
			}
			err = p.customReplica(ctx, m, u, systemIdentifier)
		}
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
		p.log.Warn().Err(err).Str("method", m.name).Msg("a method of create_replica_methods has failed; the next one is tried")
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		return errors.New("no leader to clone from, and postgresql.create_replica_methods has none that works without (no_leader)")
	}
	return errors.Join(errs...)
}

// remoteSource is the primary among a remote shard's hosts; nil: its archive alone is known.
func (p *cloner) remoteSource(ctx context.Context, u Upstream) (*Upstream, error) {
	if u.Host == "" {
		return nil, nil //nolint:nilnil // no source is none of the errors
	}
	u, err := p.primaryAmong(ctx, u, false)
	return &u, err
}

// gist is what is told of methods that have failed beside the log, which has all: of what a
// program has printed the last line with an error, as pgBackRest and barman print it.
func gist(errs []error) string {
	parts := make([]string, 0, len(errs))
	for _, err := range errs {
		text := err.Error()
		if method, _, named := strings.Cut(text, ":"); named {
			for line := range strings.Lines(text) {
				if _, said, found := strings.Cut(line, "ERROR: "); found {
					text = method + ": " + said
				}
			}
		}
		parts = append(parts, printable.Short(strings.Join(strings.Fields(text), " "), gistLimit))
	}
	return strings.Join(parts, "; ")
}

// gistLimit is how many bytes are told of each failure.
const gistLimit = 200

// isOfShard returns an error where another cluster answers in the place of a member. One that does
// not answer may be done without by a method.
func (p *cloner) isOfShard(ctx context.Context, u *Upstream, systemIdentifier string) error {
	if u == nil || u.Remote || systemIdentifier == "" {
		return nil
	}
	if id, err := p.identify(ctx, *u); err == nil && id != systemIdentifier {
		return fmt.Errorf("nothing is copied from %s: another cluster answers there (system identifier %s, the shard's is %s)", u.Name, id, systemIdentifier)
	}
	return nil
}

// customReplica runs one of the operator's methods.
func (p *cloner) customReplica(ctx context.Context, m method, u *Upstream, systemIdentifier string) error {
	var (
		connstring string
		env        []string
	)
	if u != nil {
		id, err := p.identify(ctx, *u)
		if err != nil {
			return fmt.Errorf("method %s: %w", m.name, err)
		}
		systemIdentifier = id
		if err := p.writePgpass(*u); err != nil {
			return err
		}
		if connstring, env, err = p.programConninfo(*u, p.local.Load().Authentication.Replication, "", cloning); err != nil {
			return err
		}
	}
	if m.keepData {
		if err := p.killWriters(ctx); err != nil {
			return err
		}
	} else if err := p.emptyAgain(ctx); err != nil {
		return err
	}
	err := p.fill(ctx, "method", m, m.arguments(map[string]string{
		"scope": p.scope, "role": string(Replica), "datadir": p.dataDir, "connstring": connstring,
	}), marker{Kind: markClone, SystemIdentifier: systemIdentifier}, env...)
	if err != nil {
		return errors.Join(err, p.afterFailure(ctx, m)) // which names the method
	}
	control, err := p.restored(ctx)
	if err == nil && systemIdentifier != "" && control.SystemIdentifier != systemIdentifier {
		err = fmt.Errorf("it has restored another cluster (system identifier %s) than the shard's (%s)", control.SystemIdentifier, systemIdentifier)
	}
	if err == nil {
		err = p.refuseBorrowed()
	}
	if err != nil { // what is there is ours, and of no use to anybody
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanWithin)
		defer cancel()
		return fmt.Errorf("method %s: %w", m.name, errors.Join(err, p.emptyAgain(clean)))
	}
	return p.copied()
}

// copied ends the making of a copy. It is a standby's from the first moment on in which it counts as data: without a
// signal file an old backup would pass for what the last leader has, and be started as a primary.
func (p *cloner) copied() error {
	if err := p.makeStandby(); err != nil {
		return err
	}
	return p.unmark()
}

// afterFailure clears away what a method that failed has left. What one that keeps data has
// worked on stays, under its marker: it is no data directory any more, but the next try goes
// on with it. (Another method begins with an empty directory.)
func (p *cloner) afterFailure(ctx context.Context, m method) error {
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanWithin)
	defer cancel()
	if err := p.killMethods(clean); err != nil {
		return err
	}
	if m.keepData {
		switch _, _, err := p.unfinished(clean); {
		case err == nil:
			return nil
		case !errors.Is(err, errNotOurs): // another cluster's is of no use to the next try
			return err
		}
	}
	return p.emptyAgain(clean)
}

// emptyAgain clears away what an earlier method has left; it does nothing where
// there is no marker that says so.
func (p *cloner) emptyAgain(ctx context.Context) error {
	marked, err := p.marked()
	if err != nil || marked == nil || marked.Kind != markClone {
		return err
	}
	if err := p.killWriters(ctx); err != nil {
		return err
	}
	if err := p.empty(marked.SystemIdentifier, marked.owns); err != nil {
		return err
	}
	return p.unmark()
}
