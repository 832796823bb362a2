package postgres

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sys/unix"

	"github.com/lictor-ha/lictor/agent/fence"
)

// This file is about the operator's commands that PostgreSQL runs while it recovers, and
// waits for without any limit: restore_command (RestoreArchivedFile in
// src/backend/access/transam/xlogarchive.c) four or five times between the request for a
// promotion and its end, recovery_end_command once, archive_cleanup_command in the
// checkpointer, which must make the shutdown checkpoint.
//
// It cannot be told to go on, and takes a command that a signal has ended, or whose status
// is above 128, for a reason to end itself. So the agent writes them with a shell around
// that makes an ordinary failure of these, and is left alive when what it runs is killed.

const (
	restoreCommand     = "restore_command"
	recoveryEndCommand = "recovery_end_command"
	cleanupCommand     = "archive_cleanup_command"
)

// recoveryCommands are those commands.
func recoveryCommands() []string {
	return []string{restoreCommand, recoveryEndCommand, cleanupCommand}
}

const (
	// commandPatience is how long a promotion waits for a command that gets it nowhere.
	commandPatience = 5 * time.Second
	// commandsEvery is how often it is looked which commands run: all processes are.
	commandsEvery = 100 * time.Millisecond
)

// endable is a command in a shell that outlives it, if it is killed, and fails then as if
// it had failed itself. That a command was not found (126, 127) stays what it is.
func endable(name, command string) string {
	end := ""
	if strings.Contains(command, "#") {
		end = "\n" // a comment ends there. pg_rewind -c reads one line alone, so only where it must be
	}
	return "( " + command + end + " ) || exit $(( $? > 128 ? 1 : $? ))" + commandMark + name
}

// maxCommand is how many bytes of a command PostgreSQL runs, the rest being lost without a word: up to version 12 of
// restore_command, up to 15 of the others and of archive_command (MAXPGPATH in src/backend/access/transam/xlogarchive.c
// and src/backend/postmaster/shell_archive.c or pgarch.c).
const maxCommand = 1023

// isCutOff reports whether a command may be too long, with the longest names that come in the place of %p, %f and %r.
func isCutOff(name, command string, major int) bool {
	last := map[string]int{restoreCommand: 12, recoveryEndCommand: 15, cleanupCommand: 15, "archive_command": 15}[name]
	longest := func(like string) string { return strings.Repeat("x", len(like)) }
	const segment, file = "000000010000000000000001", "000000010000000000000001.00000028.backup"
	names := strings.NewReplacer("%%", "%", "%p", longest("pg_wal/"+file), "%f", longest(file), "%r", longest(segment))
	return major <= last && len(names.Replace(command)) > maxCommand
}

// cutOffText says what becomes of one.
func cutOffText(major int) string {
	return fmt.Sprintf("PostgreSQL %d runs no more than the first %d bytes of it: put it into a script", major, maxCommand)
}

const commandMark = " # by Lictor: "

// endCommands kills what the shells of endable run for the PostgreSQL that runs, where due
// says so of the parameter and the shell, and returns the parameters of what it has killed.
func (p *processes) endCommands(due func(name string, shell int) bool) (ended []string) {
	postmaster := p.process.pid()
	if postmaster == 0 {
		return nil
	}
	tree, err := fence.ProcessTree()
	if err != nil {
		return nil
	}
	for _, pid := range tree.Descendants(postmaster) {
		_, name, ok := strings.Cut(title(pid), commandMark)
		// The command may be a copy of its shell that has yet to begin.
		if !ok || !fence.IsPostgres(tree[pid]) || !due(name, pid) {
			continue
		}
		if tree.KillBelow(pid) {
			ended = append(ended, name)
		}
	}
	return ended
}

// hurry ends the commands that hold up a promotion.
type hurry struct {
	*processes
	got    int64     // how far replay has come
	since  time.Time // when it was seen to get on
	looked time.Time
	seen   map[int]time.Time // shells of recovery_end_command, since when
	told   bool

	readers time.Time // when it was looked for them last
}

func (p *processes) hurry() *hurry {
	now := time.Now()
	return &hurry{processes: p, since: now, looked: now, seen: map[int]time.Time{}}
}

// look is called again and again until the promotion has ended, with how far replay has
// come, as far as that is known: a restore_command that still gives WAL is not ended.
func (h *hurry) look(replayed int64) {
	now := time.Now()
	if replayed > h.got {
		h.got, h.since = replayed, now
	}
	if now.Sub(h.looked) < commandsEvery {
		return
	}
	h.looked = now
	ended := h.endCommands(func(name string, shell int) bool {
		switch name {
		case restoreCommand:
			return now.Sub(h.since) >= commandPatience
		case recoveryEndCommand:
			if _, seen := h.seen[shell]; !seen {
				h.seen[shell] = now
			}
			return now.Sub(h.seen[shell]) >= commandPatience
		}
		return false
	})
	for _, name := range ended {
		if !h.told || name != restoreCommand {
			h.log.Warn().Str("parameter", name).Dur("limit", commandPatience).Msg("a command holds up the promotion; it is ended, and fails")
		}
		h.told = h.told || name == restoreCommand
	}
}

// standsStill reports, now and then, whether replay has got nowhere for as long as a promotion waits for that.
func (h *hurry) standsStill() bool {
	now := time.Now()
	if now.Sub(h.since) < commandPatience || now.Sub(h.readers) < readersEvery {
		return false
	}
	h.readers = now
	return true
}

// readersEvery is how often it is looked which queries hold up a promotion.
const readersEvery = time.Second

// endReadersSQL ends sessions that replay waits for, which max_standby_streaming_delay may let it do for
// ever: those with a transaction that is as old as the wait (src/backend/storage/ipc/standby.c; version 12 does not tell of
// a wait for a snapshot).
const endReadersSQL = `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
	WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND xact_start < clock_timestamp() - $1 * interval '1 millisecond'
	AND EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'startup' AND (wait_event LIKE 'RecoveryConflict%' OR wait_event_type IN ('Lock', 'BufferPin')))`

// endReaders ends queries that hold up the promotion. Where it cannot, that goes on waiting.
func (h *hurry) endReaders(ctx context.Context, conn *pgx.Conn) {
	var ended int
	if err := conn.QueryRow(ctx, endReadersSQL, commandPatience.Milliseconds()).Scan(&ended); err != nil {
		h.log.Warn().Err(err).Msg("queries that hold up the promotion cannot be ended")
	}
	if ended > 0 {
		h.log.Warn().Int("sessions", ended).Dur("limit", commandPatience).Msg("queries hold up the promotion, as replay waits for them; they are ended")
	}
}

// endReplicasCleanup ends an archive_cleanup_command that is left of the replica which has
// become a primary: while it hangs there is no checkpoint.
func (p *processes) endReplicasCleanup() {
	p.settings.Lock()
	configured := p.wantedRecovery()[cleanupCommand] != ""
	p.settings.Unlock()
	if configured { // else a promotion need not wait for a look at all processes
		p.endCommands(func(name string, _ int) bool { return name == cleanupCommand })
	}
}

// endCleanup ends, until ctx does, an archive_cleanup_command that keeps a PostgreSQL from
// its shutdown checkpoint which was told to stop.
func (p *processes) endCleanup(ctx context.Context) {
	for wait := archiverPatience; sleep(ctx, wait); {
		ended := p.endCommands(func(name string, _ int) bool { return name == cleanupCommand && ctx.Err() == nil })
		if len(ended) > 0 {
			p.log.Warn().Msg("PostgreSQL cannot stop, as archive_cleanup_command does not end; it is ended")
			wait = remindEvery
		}
		p.remindCheckpointer()
	}
}

// remindEvery is how often the checkpointer is told again to shut down when the command that it waited for was ended.
const remindEvery = 100 * time.Millisecond

// remindCheckpointer tells the checkpointer again to shut down, where nobody else is left who could write WAL. From 18 on
// the postmaster tells it by SIGINT, once, which system() ignores while a command runs
// (CheckpointerMain in src/backend/postmaster/checkpointer.c): it would never stop.
func (p *processes) remindCheckpointer() {
	const bySignal = 18
	postmaster := p.process.pid()
	if p.major < bySignal || postmaster == 0 {
		return
	}
	tree, err := fence.ProcessTree()
	if err != nil {
		return
	}
	checkpointer := 0
	for _, pid := range tree.Descendants(postmaster) {
		switch name := title(pid); {
		case strings.HasSuffix(name, "checkpointer"):
			checkpointer = pid
		case isWalsender(name), strings.Contains(name, ": io worker "), strings.Contains(name, ": archiver"), strings.HasSuffix(name, "logger"):
		default:
			return // a command, or a process that the postmaster waits for before
		}
	}
	if checkpointer != 0 {
		_ = unix.Kill(checkpointer, unix.SIGINT) // it may have ended by now
	}
}
