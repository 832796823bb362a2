package postgres

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/pg"
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
	signal, err := p.exists("recovery.signal")
	if err != nil {
		return as{}, err
	}
	standby, err := p.exists("standby.signal")
	if err != nil {
		return as{}, err
	}
	run := as{role: Primary}
	switch {
	case len(configured) > 0:
		if keep {
			p.log.Warn().Msg("recovery_conf is set, so that keep_existing_recovery_conf has no effect")
		}
		run.recovery = maps.Clone(configured)
	case keep && standby:
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

// awaitTarget waits until PostgreSQL, which recovers from a backup of a timeline, accepts writes,
// and fails where it has not come to the target that is meant.
func (p *bootstrapper) awaitTarget(ctx context.Context, recovery map[string]string, began int) error {
	if err := p.awaitPrimary(ctx); err != nil {
		return err
	}
	target := targetOf(recovery)
	if target == "" || target == "recovery_target" {
		return nil
	}
	history, err := p.newestHistory()
	if err != nil {
		return fmt.Errorf("%s = %s: %w", target, recovery[target], err)
	}
	if !stoppedAtTarget(history) {
		return fmt.Errorf("%s = %s was not reached: the archive's WAL ends before it", target, recovery[target])
	}
	lines, err := pg.ParseHistory(history)
	if err != nil {
		return err
	}
	return p.onMeantTimeline(ctx, recovery, lines[:len(lines)-1], began)
}

// newestHistory is that of the timeline which PostgreSQL has begun at the end of its recovery. (From
// version 13 on it ends where it has not come to its target, and says so. Version 12 promotes itself
// and writes into the history where it has stopped, and if it has not, zeroes: xlog.c, StartupXLOG.)
func (p *bootstrapper) newestHistory() (string, error) {
	histories, err := p.disk.Glob(p.inData("pg_wal/????????.history"))
	if err != nil {
		return "", fmt.Errorf("histories of timelines: %w", err)
	}
	if len(histories) == 0 {
		return "", errors.New("PostgreSQL has promoted itself and left no history of its timeline")
	}
	content, err := p.disk.ReadFile(slices.Max(histories))
	if err != nil {
		return "", fmt.Errorf("history of the new timeline: %w", err)
	}
	return string(content), nil
}

// onMeantTimeline fails where a recovery may have come to its target on another timeline than that on
// which the target is. By itself PostgreSQL follows the latest one. If an earlier restore has begun
// that, and the target lies in what it has discarded, the first transaction after the restore is
// beyond the target, and the recovery ends where the restore's did: it lacks what was asked for.
func (p *bootstrapper) onMeantTimeline(ctx context.Context, recovery map[string]string, passed cluster.History, began int) error {
	conn, err := p.anyDatabase(ctx)
	if err != nil {
		return err
	}
	defer hangUpOn(conn)
	var target, last *time.Time
	if err := conn.QueryRow(ctx, "SELECT nullif($1, '')::timestamptz, pg_catalog.pg_last_xact_replay_timestamp()", recovery["recovery_target_time"]).Scan(&target, &last); err != nil {
		return fmt.Errorf("how far the recovery has come: %w", err)
	}
	for _, line := range passed {
		from, discards := pg.Discards(line.Reason)
		switch {
		case !discards || line.Timeline < began: // or the backup was taken after it
			continue
		case target != nil && !from.IsZero() && (target.Before(from) || last != nil && !last.Before(from)):
			continue // it is of the time before, or transactions of the time after the restore were replayed
		case (target == nil || from.IsZero()) && (recovery["recovery_target_name"] != "" || isNumber(recovery["recovery_target_timeline"])):
			continue
		}
		name := targetOf(recovery)
		return fmt.Errorf("%s = %s: it cannot be told whether it was reached on the timeline that is meant: an earlier restore has discarded what was beyond %s of timeline %d (%s); "+
			"name the timeline (recovery_target_timeline), or another target", name, recovery[name], pg.FormatLSN(line.LSN), line.Timeline, line.Reason)
	}
	return nil
}

func isNumber(text string) bool {
	_, err := strconv.ParseUint(text, 0, 32)
	return err == nil
}

// firstCommit begins a restored timeline with a commit: by its time a later recovery tells what was
// before the restore and what after it.
func (p *bootstrapper) firstCommit(ctx context.Context) error {
	conn, err := p.anyDatabase(ctx)
	if err != nil {
		return err
	}
	defer hangUpOn(conn)
	if _, err := conn.Exec(ctx, "SELECT pg_catalog.txid_current()"); err != nil {
		return fmt.Errorf("the first commit of the restored timeline: %w", err)
	}
	return nil
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
