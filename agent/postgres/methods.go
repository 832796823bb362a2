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
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/fence"
)

// This file fills a data directory with the operator's own commands: a new shard
// (bootstrap.method) and a new replica (postgresql.create_replica_methods), as
// Patroni's users know them. I7 holds for them as for initdb and pg_basebackup:
// they begin in an empty directory that is marked as ours, and what they leave is
// used only if it is the shard's.

// customMethods are those of the operator's commands that fill a data directory.
type customMethods struct {
	*installation
	*dataDirectory
	*scripts
}

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

func (p *customMethods) runMethod(ctx context.Context, what string, m method, args []string, env ...string) error {
	return p.script(ctx, script{what: what + " " + m.name, command: m.command, args: args, env: append(env, methodMark+"="+p.dataDir), percent: m.percent})
}

// killMethods kills the processes of methods that an agent which was killed has
// left at work on the data directory.
func (p *customMethods) killMethods(ctx context.Context) error {
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
			if fence.KillIf(pid, func() bool {
				environment, err := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
				return err == nil && slices.Contains(strings.Split(string(environment), "\x00"), want) &&
					fence.SeesAs(pid, p.dataDir) && !fence.Belongs(pid, p.dataDir)
			}) {
				left++
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
func (p *customMethods) fill(ctx context.Context, what string, m method, args []string, mark marker, env ...string) error {
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
func (p *bootstrapper) customBootstrap(ctx context.Context, b config.Bootstrap) (systemIdentifier string, err error) {
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
	if len(b.PgHBA) > 0 { // else those of the backup are in force, as they are
		if err := p.bootstrapHBA(b); err != nil {
			return "", err
		}
	}
	roles := func(socketDir string) error {
		if err := p.awaitTarget(ctx, run.recovery, control.Timeline); err != nil {
			return fmt.Errorf("bootstrap %s: %w", m.name, err)
		}
		return p.makeRoles(ctx, socketDir, b)
	}
	// A bootstrap that fails must leave no timeline in the archive: whatever recovers to the latest
	// one would follow it.
	run.archivesNothing = true
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
func (p *customMethods) restored(ctx context.Context) (Control, error) {
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
	if _, err := p.furnish(); err != nil {
		return Control{}, err
	}
	for _, name := range []string{"postgresql.conf", "pg_hba.conf", "pg_ident.conf"} { // what a backup lacks altogether
		found, err := p.confExists(name)
		if err == nil && !found {
			err = p.writeConf(p.inConf(name), "")
		}
		if err != nil {
			return Control{}, err
		}
	}
	return p.control(ctx)
}
