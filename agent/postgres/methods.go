package postgres

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/fence"
	"github.com/lictor-ha/lictor/agent/pg"
	"github.com/lictor-ha/lictor/agent/printable"
)

// This file fills a data directory with the operator's own commands: a new shard
// (bootstrap.method) and a new replica (postgresql.create_replica_methods), as
// Patroni's users know them. I7 holds for them as for initdb and pg_basebackup:
// they begin in an empty directory that is marked as ours, and what they leave is
// used only if it is the shard's.

// method is a custom way to fill the data directory.
type method struct {
	name    string
	command string
	// parameters are handed over as --KEY=VALUE, with those of the agent.
	parameters map[string]any
	noParams   bool
	noLeader   bool // works without a leader
	keepData   bool // works on what is there
	percent    func(float64)
}

// customMethod reads the map of a method.
func customMethod(name string, value any) (method, error) {
	m := method{name: name, command: name, parameters: map[string]any{}}
	settings, isMap := value.(map[string]any)
	if value != nil && !isMap {
		return m, fmt.Errorf("method %s: must be a map with a command", name)
	}
	maps.Copy(m.parameters, settings)
	if command, ok := m.parameters["command"].(string); ok && command != "" {
		m.command = command
	}
	delete(m.parameters, "command")
	for key, field := range map[string]*bool{"no_params": &m.noParams, "no_leader": &m.noLeader, "no_master": &m.noLeader, "keep_data": &m.keepData} {
		if v, set := m.parameters[key]; set && v != nil {
			on, err := cluster.ParseBoolean(v)
			if err != nil {
				return m, fmt.Errorf("method %s: %s: %w", name, key, err)
			}
			*field = *field || on
		}
	}
	return m, nil
}

// arguments are the method's own parameters and the agent's, as Patroni orders and
// writes them: sorted, --KEY=VALUE; with no_params the method's own alone.
func (m method) arguments(agents map[string]string) []string {
	all := map[string]string{}
	for key, value := range m.parameters {
		all[key] = parameterWord(value)
	}
	if m.noParams {
		for _, key := range []string{"no_params", "no_leader", "no_master", "keep_data"} {
			delete(all, key)
		}
	} else {
		maps.Copy(all, agents)
	}
	args := make([]string, 0, len(all))
	for _, key := range slices.Sorted(maps.Keys(all)) {
		args = append(args, "--"+key+"="+all[key])
	}
	return args
}

// parameterWord writes a value of the configuration file as a script of Patroni's
// expects it.
func parameterWord(value any) string {
	switch v := value.(type) {
	case bool:
		if v {
			return "True"
		}
		return "False"
	case nil:
		return ""
	}
	return cluster.ParameterText(value)
}

// methodMark is the variable by which a method's processes are found that have
// outlived their agent.
const methodMark = "FILLED_DATA_DIR"

func (p *Instance) runMethod(ctx context.Context, what string, m method, args []string, env ...string) error {
	return p.script(ctx, script{what: what + " " + m.name, command: m.command, args: args, env: append(env, methodMark+"="+p.dataDir), percent: m.percent})
}

// killMethods kills the processes of methods that an agent which was killed has
// left at work on the data directory.
func (p *Instance) killMethods(ctx context.Context) error {
	want := methodMark + "=" + p.dataDir
	for {
		entries, err := os.ReadDir("/proc")
		if err != nil {
			return fmt.Errorf("looking for what fills the data directory: %w", err)
		}
		left := 0
		for _, e := range entries {
			pid, err := strconv.Atoi(e.Name())
			if err != nil || pid == os.Getpid() {
				continue
			}
			environment, err := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
			if err == nil && slices.Contains(strings.Split(string(environment), "\x00"), want) && !fence.Belongs(pid, p.dataDir) {
				left++
				_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended by now
			}
		}
		if left == 0 {
			return nil
		}
		select {
		case <-time.After(pollEvery):
		case <-ctx.Done():
			return fmt.Errorf("%d processes that fill the data directory do not end: %w", left, ctx.Err())
		}
	}
}

// fill runs a method, between whose start and end the marker m stands. A method that
// makes the data directory itself must not find one (cp -a, mv), others want it to be
// there (pgBackRest): it finds none where it can make one, and if it fails without having
// made it, it is run once more with an empty one. A mount point or a link is always
// there, and so is what a method that keeps data works on.
func (p *Instance) fill(ctx context.Context, what string, m method, args []string, mark marker, env ...string) error {
	found, err := p.marked()
	if err != nil {
		return err
	}
	mark.Method = true
	run := func() error { return p.runMethod(ctx, what, m, args, env...) }
	if m.keepData && found != nil && found.Kind == markClone {
		found.Method = true
		if err := p.keepMarker(*found); err != nil {
			return err
		}
		return run()
	}
	if err := p.markAs(mark); err != nil {
		return err
	}
	if m.keepData {
		return run()
	}
	mark.Made = time.Now().UTC()
	mark.Began = mark.Made
	if none, err := p.removeEmpty(mark); err != nil {
		return err
	} else if !none {
		return run()
	}
	stop := p.recognise(mark)
	err = run()
	switch made, remarked := stop(); {
	case remarked != nil:
		return errors.Join(err, remarked)
	case made && !p.absent():
		return err
	case made || ctx.Err() != nil:
		return errors.Join(err, p.unmark())
	}
	if markErr := p.markAs(mark); markErr != nil || err == nil {
		return markErr // who looks at what it has left finds nothing
	}
	p.log.Info().Err(err).Str("method", m.name).Msg("the command has failed without making the data directory; it is run once more with an empty one")
	again := run()
	if again != nil && again.Error() != err.Error() {
		again = errors.Join(err, fmt.Errorf("with an empty data directory: %w", again))
	}
	return again
}

// customBootstrap fills the data directory of a new shard with the command of
// bootstrap.METHOD, and runs PostgreSQL on it until it has ended its recovery.
func (p *Instance) customBootstrap(ctx context.Context, b config.Bootstrap) (systemIdentifier string, err error) {
	m, err := customMethod(b.Method, b.Methods[b.Method])
	if err != nil {
		return "", fmt.Errorf("bootstrap: %w", err)
	}
	if m.command == m.name {
		return "", fmt.Errorf("bootstrap.%s.command: must be set", m.name)
	}
	section, _ := m.parameters["recovery_conf"].(map[string]any)
	recovery, err := p.configuredRecovery("bootstrap."+m.name+".recovery_conf", section)
	if err != nil {
		return "", err
	}
	keep, err := cluster.ParseBoolean(orFalse(m.parameters["keep_existing_recovery_conf"]))
	if err != nil {
		return "", fmt.Errorf("bootstrap.%s.keep_existing_recovery_conf: %w", m.name, err)
	}
	for _, ours := range []string{"recovery_conf", "keep_existing_recovery_conf", "no_params"} {
		delete(m.parameters, ours)
	}
	if err := p.fill(ctx, "bootstrap", m, m.arguments(map[string]string{"scope": p.scope, "datadir": p.dataDir}), marker{Kind: markCustom}); err != nil {
		return "", err
	}
	control, err := p.restored(ctx)
	if err == nil {
		err = p.refuseBorrowed()
	}
	if err != nil {
		return "", fmt.Errorf("bootstrap %s: %w", m.name, err)
	}
	// From now on the marker knows the cluster that is ours to move aside.
	if err := p.writeMarker(markCustom, control.SystemIdentifier); err != nil {
		return "", err
	}
	run, err := p.prepareRecovery(recovery, keep)
	if err != nil {
		return "", fmt.Errorf("bootstrap %s: %w", m.name, err)
	}
	roles := func(socketDir string) error {
		if err := p.awaitPrimary(ctx); err != nil {
			return fmt.Errorf("bootstrap %s: %w", m.name, err)
		}
		if err := p.targetReached(run.recovery); err != nil {
			return fmt.Errorf("bootstrap %s: %w", m.name, err)
		}
		return p.makeRoles(ctx, socketDir, b)
	}
	if err := p.privately(ctx, control, run, roles); err != nil {
		return "", err
	}
	return control.SystemIdentifier, nil
}

func orFalse(value any) any {
	if value == nil {
		return false
	}
	return value
}

// restored looks at what a method has put into the data directory.
func (p *Instance) restored(ctx context.Context) (Control, error) {
	major, err := p.dataMajor()
	if err != nil {
		return Control{}, fmt.Errorf("the command has ended well and left no PostgreSQL data directory in %s: %w", p.dataDir, err)
	}
	if major != p.major {
		return Control{}, fmt.Errorf("the command has left a data directory of PostgreSQL %d, the programs are %d", major, p.major)
	}
	if err := p.closeToOthers(); err != nil {
		return Control{}, err
	}
	// Backups keep configuration files that live elsewhere as copies.
	for _, name := range []string{"postgresql.conf", "pg_hba.conf", "pg_ident.conf"} {
		if _, err := p.disk.Stat(p.inData(name)); err == nil {
			continue
		}
		content, err := p.disk.ReadFile(p.inData(name + ".backup"))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return Control{}, fmt.Errorf("%s: %w", name, err)
		}
		if err := p.writeFile(p.inData(name), string(content)); err != nil {
			return Control{}, err
		}
	}
	return p.control(ctx)
}

// basebackup is the method that is built in.
const basebackup = "basebackup"

// replicaMethods are those of postgresql.create_replica_methods, in their order.
func (p *Instance) replicaMethods() ([]method, error) {
	local := p.local.Load()
	if len(local.CreateReplica) == 0 {
		return []method{{name: basebackup}}, nil
	}
	methods := make([]method, 0, len(local.CreateReplica))
	for _, name := range local.CreateReplica {
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
func (p *Instance) ClonesWithoutLeader() bool {
	methods, err := p.replicaMethods()
	return err == nil && slices.ContainsFunc(methods, func(m method) bool { return m.noLeader })
}

// KeepsData tells whether a method makes a replica out of what is in the data
// directory: then it is not emptied before.
func (p *Instance) KeepsData() bool {
	methods, err := p.replicaMethods()
	return err == nil && len(methods) > 0 && methods[0].keepData
}

// MakeReplica fills the data directory with the first of the configured methods
// that succeeds: pg_basebackup from an upstream, or the operator's commands.
// Without an upstream only those run that need none. systemIdentifier is the
// shard's; what another cluster's backup has left is cleared away again. progress, if set, is
// told how far it is, and by which method.
func (p *Instance) MakeReplica(ctx context.Context, u *Upstream, systemIdentifier string, progress func(pg.Copying)) error {
	if progress == nil {
		progress = func(pg.Copying) {}
	}
	methods, err := p.replicaMethods()
	if err != nil {
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

// gist is what is told of methods that have failed beside the log, which has all.
func gist(errs []error) string {
	parts := make([]string, 0, len(errs))
	for _, err := range errs {
		text := strings.Join(strings.Fields(err.Error()), " ")
		what, said, found := strings.Cut(text, "ERROR: ") // as pgBackRest, barman and PostgreSQL's programs print it
		if found {
			method, _, _ := strings.Cut(what, ":")
			text = method + ": " + said
		}
		parts = append(parts, printable.Short(text, gistLimit))
	}
	return strings.Join(parts, "; ")
}

// gistLimit is how many bytes are told of each failure.
const gistLimit = 200

// customReplica runs one of the operator's methods.
func (p *Instance) customReplica(ctx context.Context, m method, u *Upstream, systemIdentifier string) error {
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
		return fmt.Errorf("method %s: %w", m.name, errors.Join(err, p.afterFailure(ctx, m)))
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
	return p.unmark()
}

// afterFailure clears away what a method that failed has left. What one that keeps data has
// worked on stays, under its marker: it is no data directory any more, but the next try goes
// on with it. (Another method begins with an empty directory.)
func (p *Instance) afterFailure(ctx context.Context, m method) error {
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
func (p *Instance) emptyAgain(ctx context.Context) error {
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
