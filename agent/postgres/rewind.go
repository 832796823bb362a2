package postgres

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/pg"
)

// rewinder makes a data directory that has left its upstream's history fit to follow again.
type rewinder struct {
	*installation
	*records
	*confFiles
	*dataDirectory
	*upstreams
	*processes
}

// RewindOutcome says what it took to make a data directory fit to follow.
type RewindOutcome string

// The outcomes of Rewind.
const (
	NotNeeded RewindOutcome = "not diverged"
	Rewound   RewindOutcome = "rewound"
)

func (o RewindOutcome) String() string { return string(o) }

// ErrDiverged: the data directory has WAL that the upstream does not have, and
// it was not rewound.
var ErrDiverged = errors.New("this member's WAL has diverged from the upstream's")

// ErrBeyondRewind: it is ErrDiverged, and will be at each attempt.
var ErrBeyondRewind = fmt.Errorf("%w, and no rewind can mend that", ErrDiverged)

// Rewind makes the stopped data directory fit to follow an upstream. Whether it
// has diverged is found out with two questions to the upstream; only where that
// cannot tell (after a crash) does pg_rewind decide. A rewind that broke off once it had
// begun to write leaves a mark: such a directory is neither started nor rewound again,
// but has to be cloned anew (PostgreSQL's documentation, pg_rewind, Warning).
func (p *rewinder) Rewind(ctx context.Context, u Upstream, allowed bool) (RewindOutcome, error) {
	if u.Remote && u.Host == "" {
		return NotNeeded, nil // nobody can be asked: PostgreSQL finds out
	}
	u, err := p.primaryAmong(ctx, u, false)
	if err != nil {
		return "", err
	}
	control, err := p.control(ctx)
	if err != nil {
		return "", err
	}
	if err := p.writePgpass(u); err != nil {
		return "", err
	}
	interrupted, err := p.rewindCutShort()
	if err != nil {
		return "", err
	}
	if interrupted {
		return "", fmt.Errorf("%w, and a rewind of it has broken off (%s), so that it is half-written: clone it anew (reinit, or set remove_data_directory_on_rewind_failure)",
			ErrBeyondRewind, p.stateFile("rewinding"))
	}
	if needed, err := p.diverged(ctx, u, control); err != nil || !needed {
		return NotNeeded, err
	}
	if !allowed {
		return "", fmt.Errorf("%w, as it is not allowed: set use_pg_rewind, or reinitialize it", ErrBeyondRewind)
	}
	// PostgreSQL is started on a directory that has crashed.
	if err := p.checkPlace(); err != nil {
		return "", fmt.Errorf("not rewound: %w", err)
	}
	if err := p.killWriters(ctx); err != nil {
		return "", err
	}
	if err := p.readyForRewind(ctx, u); err != nil {
		return "", err
	}
	if err := p.replaceLinks(); err != nil {
		return "", err
	}
	role := p.local.Load().Authentication.Rewind
	if role.Username == "" {
		role = p.local.Load().Authentication.Superuser
	}
	source, env, err := p.programConninfo(u, role, p.database(), rewinding)
	if err != nil {
		return "", err
	}
	id, err := identity(p.dataDir)
	if err != nil {
		return "", err
	}
	if err := p.noteLoss(); err != nil {
		return "", err
	}
	if err := p.checkRoom(rewindPlan{}); err != nil {
		return "", err
	}
	if control.State != "shut down" && control.State != "shut down in recovery" {
		if err := p.recoverAlone(ctx, control); err != nil {
			return "", recoveryFailed(ctx, err)
		}
	}
	ended, err := p.control(ctx)
	if err != nil {
		return "", err
	}
	options := []string{"--progress", "--target-pgdata=" + p.dataDir, "--source-server=" + source}
	said, err := p.runOnData(ctx, env, "pg_rewind", append(options, "--dry-run", "--debug")...)
	if err != nil {
		return "", rewindFailed(ctx, said, err)
	}
	if err := p.checkRoom(parseRewindPlan(said, control.BlockSize)); err != nil {
		return "", err
	}
	// Nothing but pg_rewind itself may leave this behind.
	if err := p.writeFile(p.stateFile("rewinding"), id+"\n"); err != nil {
		return "", err
	}
	if err := p.syncDir(p.stateDir); err != nil {
		return "", err
	}
	out, err := p.runOnData(ctx, env, "pg_rewind", options...)
	if err == nil {
		p.tellDiscarded(u, said, ended)
		if err := p.makeStandby(); err != nil { // of a standby no signal file is there any more
			return "", err
		}
		return Rewound, p.forgetRewind()
	}
	if strings.Contains(strings.ToLower(out), rewindWrites) {
		return "", fmt.Errorf("%w, and its rewind has broken off, so that it is half-written: clone it anew (reinit, or set remove_data_directory_on_rewind_failure): %w", ErrBeyondRewind, err)
	}
	return "", errors.Join(rewindFailed(ctx, out, err), p.forgetRewind())
}

// rewindForks is pg_rewind's word for the end of the WAL that both have (src/bin/pg_rewind/pg_rewind.c, main).
var rewindForks = regexp.MustCompile(`servers diverged at WAL location ([0-9A-F]+/[0-9A-F]+) on timeline (\d+)`)

// tellDiscarded logs which WAL a rewind has discarded: what was committed in it is gone.
func (p *rewinder) tellDiscarded(u Upstream, said string, ended Control) {
	from, timeline := "", ""
	if m := rewindForks.FindStringSubmatch(said); m != nil {
		from, timeline = m[1], m[2]
	}
	p.log.Warn().Str("upstream", u.Name).Str("timeline", timeline).Str("from", from).Str("to", pg.FormatLSN(max(ended.CheckpointLSN, ended.MinRecovery))).
		Msg("rewound: WAL that the upstream does not have was discarded")
}

// rewindFailed is the error of a pg_rewind that has written nothing. Where it was broken off, or
// its connection was refused or lost (libpq's and pg_rewind's words, fe-connect.c and
// libpq_source.c), it may work the next time, and the data are no worse for it. Beyond it is only
// what pg_rewind is known to say where the data, or the source, lack what each attempt would need:
// WAL back to the fork (src/bin/pg_rewind/parsexlog.c), a fork at all (pg_rewind.c), or knowledge
// of what was changed.
func rewindFailed(ctx context.Context, said string, err error) error {
	lower := strings.ToLower(said)
	for _, transient := range []string{
		"connection to server", "could not connect", "server closed the connection", "terminating connection", "could not send", "could not receive",
		"out of memory", "cannot allocate memory", "could not fork", "no space left", "too many open files",
	} {
		if strings.Contains(lower, transient) {
			return fmt.Errorf("not rewound, and to be tried again: %w", err)
		}
	}
	if exit := new(exec.ExitError); !errors.As(err, &exit) || !exit.Exited() { // it could not be started, or was killed
		return fmt.Errorf("not rewound, and to be tried again: %w", err)
	}
	if ctx.Err() != nil {
		return fmt.Errorf("not rewound, as it was broken off: %w", err)
	}
	for _, lacks := range []string{
		"could not find previous wal record", "could not find common ancestor", `target server needs to use either data checksums or "wal_log_hints = on"`,
	} {
		if strings.Contains(lower, lacks) {
			return fmt.Errorf("%w (%s): %w", ErrBeyondRewind, lacks, err)
		}
	}
	return fmt.Errorf("%w and could not be rewound: %w", ErrDiverged, err)
}

// recoveryFailed is the error of a recovery in single-user mode that must come before a rewind. Only what PostgreSQL
// says of the data is about them (xlogrecovery.c, xlog.c): it may as well lack memory, or a library.
func recoveryFailed(ctx context.Context, err error) error {
	lower := strings.ToLower(err.Error())
	for _, broken := range []string{"checkpoint record", "backup_label", "invalid data in file", "recovery ended before", "could not find redo location", "incorrect checksum in control file"} {
		if ctx.Err() == nil && strings.Contains(lower, broken) {
			return fmt.Errorf("%w and could not be rewound, as it does not recover: %w", ErrDiverged, err)
		}
	}
	return fmt.Errorf("not rewound, as it could not be recovered first; to be tried again: %w", err)
}

// rewindWrites is what pg_rewind --progress prints, in lower case, when it begins to
// write (src/bin/pg_rewind/pg_rewind.c, main).
const rewindWrites = "need to copy"

// rewindCutShort tells whether a rewind of this very data directory has begun
// and not ended.
func (p *dataDirectory) rewindCutShort() (bool, error) {
	content, err := p.disk.ReadFile(p.stateFile("rewinding"))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("note of an unfinished rewind: %w", err)
	}
	return p.isAbout(p.dataDir, strings.TrimSpace(string(content)), p.stateFile("rewinding"))
}

func (p *dataDirectory) forgetRewind() error {
	if err := p.disk.Remove(p.stateFile("rewinding")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("note of an unfinished rewind: %w", err)
	}
	return nil
}

// checkpointWithin is how long a rewind waits for the upstream's first
// checkpoint on its timeline.
const checkpointWithin = time.Minute

// readyForRewind waits until the upstream's control file names the timeline
// that it is on. Before that, pg_rewind would look at the old one and find
// nothing to do. A standby's names it from its next restartpoint on, which is asked for: nothing else
// would make one soon. What would break it off half-way is told before it begins.
func (p *rewinder) readyForRewind(ctx context.Context, u Upstream) error {
	ctx, cancel := context.WithTimeout(ctx, checkpointWithin)
	defer cancel()
	conn, err := p.connect(ctx, u.Host, u.Port, p.local.Load().Authentication.Superuser, p.database(), agentName)
	if err != nil {
		return err
	}
	defer hangUpOn(conn)
	var sockets, data string
	if err := conn.QueryRow(ctx, "SELECT current_setting('unix_socket_directories'), current_setting('data_directory')").Scan(&sockets, &data); err != nil {
		return fmt.Errorf("asking %s where its sockets are: %w", u.Name, err)
	}
	if inside := config.SocketsInside(sockets, data); inside != "" {
		return fmt.Errorf("%w and cannot be rewound: the unix socket of %s lies in its data directory (unix_socket_directories: %s), where pg_rewind would break off; "+
			"set it to another directory, or reinitialize this member", ErrDiverged, u.Name, inside)
	}
	for {
		var done, standby bool
		err := conn.QueryRow(ctx, `SELECT pg_is_in_recovery(), timeline_id >= CASE WHEN pg_is_in_recovery()
			THEN greatest((SELECT received_tli FROM pg_stat_wal_receiver), (SELECT min_recovery_end_timeline FROM pg_control_recovery()))
			ELSE ('x' || left(pg_walfile_name(CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_current_wal_lsn() END), 8))::bit(32)::int
			END FROM pg_control_checkpoint()`).Scan(&standby, &done)
		if err == nil && standby && !done {
			_, err = conn.Exec(ctx, "CHECKPOINT")
		}
		switch {
		case err != nil:
			return fmt.Errorf("waiting for the first checkpoint of %s: %w", u.Name, err)
		case done:
			return nil
		}
		select {
		case <-time.After(10 * pollEvery):
		case <-ctx.Done():
			return fmt.Errorf("waiting for the first checkpoint of %s: %w", u.Name, ctx.Err())
		}
	}
}

// recoverAlone lets a crashed PostgreSQL recover in single-user mode, as pg_rewind
// needs it. From 13 on that does so itself, but not before it tells what it would copy. It needs the parameters
// that it was started with: with a logical slot it does not start below wal_level logical. In this mode it knows
// no standby, so a standby's data are a primary's meanwhile, and no longer than that: whatever started PostgreSQL on
// them while the rewind fails, for want of room perhaps, would have a second primary.
func (p *rewinder) recoverAlone(ctx context.Context, control Control) (err error) {
	standby, err := p.hasSignalFile()
	if err != nil {
		return err
	}
	if standby {
		if err := p.setSignalFile(Primary); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, p.setSignalFile(Replica)) }()
	}
	args := []string{"--single", "-D", p.dataDir, "-c", "data_directory=" + p.dataDir, "-c", "config_file=" + p.inConf("postgresql.conf")}
	p.settings.Lock()
	values := p.commandLineValues(Primary, control)
	p.settings.Unlock()
	for _, name := range slices.Sorted(maps.Keys(values)) {
		args = append(args, "-c", name+"="+values[name])
	}
	_, err = p.runOnData(ctx, nil, "postgres", append(args, "-c", "archive_mode=on", "-c", "archive_command=false", "template1")...)
	return err
}
