package postgres

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// configuredRecovery is the section recovery_conf of a bootstrap's method, in PostgreSQL's
// words. What would not lead where it is meant to is refused, before anything is begun.
func (p *confFiles) configuredRecovery(section string, configured map[string]any) (map[string]string, error) {
	recovery := map[string]string{}
	for name, value := range configured {
		lower := strings.ToLower(name)
		if !isRecovery(lower) {
			return nil, fmt.Errorf("%s.%s: is no parameter of recovery", section, name)
		}
		recovery[lower] = cluster.ParameterText(value)
	}
	if wrong := cluster.CheckRecoveryTarget(recovery); len(wrong) > 0 {
		return nil, fmt.Errorf("%s.%s", section, strings.Join(wrong, "; "+section+"."))
	}
	if len(recovery) > 0 && recovery["restore_command"] == "" && p.wantedRecovery()["restore_command"] == "" {
		return nil, fmt.Errorf("%s.restore_command: must be set, here or in postgresql.recovery_conf: a recovery gets its WAL by it", section)
	}
	return recovery, nil
}

// prepareRecovery makes the restored directory recover as recovery_conf says, or as the
// command has left it (keep), or not at all, and says how PostgreSQL is to run for it.
func (p *bootstrapper) prepareRecovery(configured map[string]string, keep bool) (as, error) {
	left, err := p.recoveryLeft()
	if err != nil {
		return as{}, err
	}
	signal := p.exists("recovery.signal")
	run := as{role: Primary}
	switch {
	case len(configured) > 0:
		if keep {
			p.log.Warn().Msg("recovery_conf is set, so that keep_existing_recovery_conf has no effect")
		}
		run.recovery = maps.Clone(configured)
	case keep && p.exists("standby.signal"):
		return as{}, errors.New("keep_existing_recovery_conf: the command has left standby.signal, so that the recovery would never end: let it restore for a recovery to a target or to the end of the archive")
	case keep && signal:
		run.recovery = left
	default:
		if target := targetOf(left); keep && target != "" {
			return as{}, fmt.Errorf("keep_existing_recovery_conf: the command has left %s = %s and no recovery.signal, so that PostgreSQL would not stop there", target, left[target])
		}
		if signal {
			p.log.Warn().Msg("the recovery settings that the command has left are not used: set keep_existing_recovery_conf: true, or recovery_conf")
		}
		return run, p.setSignalFile(Primary)
	}
	if target := targetOf(run.recovery); target != "" {
		p.log.Info().Str(target, run.recovery[target]).Msg("recovering to a target")
	}
	switch action := strings.ToLower(run.recovery["recovery_target_action"]); action {
	case "pause", "shutdown":
		p.log.Warn().Str("recovery_target_action", action).Msg("this action would keep the shard from being made; it is promoted at the target")
		fallthrough
	case "":
		run.recovery["recovery_target_action"] = "promote"
	}
	if err := p.setSignalFile(Primary); err != nil { // no standby.signal: it would never end
		return as{}, err
	}
	return run, p.writeFile(p.inData("recovery.signal"), "")
}

// recoveryLeft are the parameters of recovery that the configuration files have which a
// command has left, as PostgreSQL would read them.
func (p *bootstrapper) recoveryLeft() (map[string]string, error) {
	left := map[string]string{}
	for _, file := range p.ownConfs() {
		lines, err := p.readConf(file)
		if err != nil {
			return nil, err
		}
		for _, line := range lines {
			if isRecovery(line.Name) {
				left[line.Name] = line.Value
			}
		}
	}
	maps.DeleteFunc(left, func(name, value string) bool {
		return value == "" || slices.Contains(cluster.AgentsRecovery(), name) || !supported(name, p.major)
	})
	return left, nil
}

func targetOf(recovery map[string]string) string {
	for _, name := range cluster.RecoveryTargets() {
		if recovery[name] != "" {
			return name
		}
	}
	return ""
}

// targetReached fails if PostgreSQL has promoted itself without having come to the target. (From
// version 13 on it ends instead, and says so. Version 12 writes into the history of the new
// timeline where it has stopped, and if it has not, zeroes: xlog.c, StartupXLOG.)
func (p *bootstrapper) targetReached(recovery map[string]string) error {
	target := targetOf(recovery)
	if target == "" || target == "recovery_target" {
		return nil
	}
	histories, err := p.disk.Glob(p.inData("pg_wal/????????.history"))
	if err != nil {
		return fmt.Errorf("histories of timelines: %w", err)
	}
	if len(histories) == 0 {
		return fmt.Errorf("%s = %s: PostgreSQL has promoted itself and left no history of its timeline", target, recovery[target])
	}
	content, err := p.disk.ReadFile(slices.Max(histories))
	if err != nil {
		return fmt.Errorf("history of the new timeline: %w", err)
	}
	if stoppedAtTarget(string(content)) {
		return nil
	}
	return fmt.Errorf("%s = %s was not reached: the archive's WAL ends before it", target, recovery[target])
}

// stoppedAtTarget reports whether the last line of a timeline's history names a place at which the
// recovery has stopped.
func stoppedAtTarget(history string) bool {
	lines := strings.Split(strings.TrimSpace(history), "\n")
	_, reason, _ := strings.Cut(lines[len(lines)-1], "\t") // the timeline before
	_, reason, _ = strings.Cut(reason, "\t")               // its end
	reason = strings.TrimSpace(reason)
	if strings.HasSuffix(reason, " transaction 0") || strings.HasSuffix(reason, " LSN 0/0") || strings.HasSuffix(reason, `restore point ""`) {
		return false
	}
	_, at, _ := strings.Cut(reason, " ")
	for _, layout := range []string{"2006-01-02 15:04:05-07", "2006-01-02 15:04:05-07:00"} {
		if when, err := time.Parse(layout, at); err == nil && when.Equal(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)) {
			return false
		}
	}
	return true
}

// recoveryLines are those of postgresql.conf for a recovery from an archive. Targets that
// are not set come first, and as empty: PostgreSQL forgets a target when it reads another
// one that is empty, or takes both for set.
func (p *confFiles) recoveryLines(recovery map[string]string, write func(name, value string)) {
	for _, name := range cluster.RecoveryTargets() {
		if recovery[name] == "" {
			write(name, "")
		}
	}
	if _, set := recovery["restore_command"]; !set {
		for _, layer := range []map[string]any{p.dynamic.Postgres.RecoveryConf, p.local.Load().RecoveryConf} {
			for name, value := range layer {
				if strings.EqualFold(name, "restore_command") && value != nil {
					write("restore_command", cluster.ParameterText(value))
				}
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(recovery)) {
		write(name, recovery[name])
	}
}

// awaitPrimary waits until PostgreSQL, which is recovering from an archive, accepts
// writes. How long that takes nobody knows, hours perhaps: ctx bounds it, and it is asked
// for ever more rarely.
func (p *bootstrapper) awaitPrimary(ctx context.Context) error {
	gone, began := p.process.done(), time.Now()
	for {
		conn, err := p.anyDatabase(ctx)
		if err == nil {
			var recovering bool
			err = conn.QueryRow(ctx, "SELECT pg_is_in_recovery()").Scan(&recovering)
			hangUpOn(conn)
			if err == nil && !recovering {
				return nil
			}
		}
		select {
		case <-gone:
			return fmt.Errorf("PostgreSQL ended while it recovered: %s", p.logTail(p.stateFile("postgres.log"), max(0, p.fileSize(p.stateFile("postgres.log"))-4096)))
		case <-ctx.Done():
			return fmt.Errorf("waiting for the end of the recovery: %w", errors.Join(ctx.Err(), err))
		case <-time.After(min(max(time.Since(began)/20, 10*pollEvery), 10*time.Second)): // each refusal is a line in PostgreSQL's log
		}
	}
}
