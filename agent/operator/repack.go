package operator

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/environ"
)

// RepackOptions say which tables are made anew without what is empty in them, and when that stops.
type RepackOptions struct {
	Database string // default: postgresql.database
	// Tables are chosen one by one: there is no way to say all of them.
	Tables []string
	// MinBloat is how many percent of a table must be empty or dead.
	MinBloat int
	// MaxLag is how far a replica may be behind, in bytes.
	MaxLag int64
	// MaxTransaction is how long a transaction may have been running: pg_repack waits for all that are older than itself.
	MaxTransaction time.Duration
	// WaitTimeout is how long pg_repack waits for its locks. It ends nobody's session then, it gives up.
	WaitTimeout time.Duration
	// Program is pg_repack; empty: in postgresql.bin_dir, else in PATH.
	Program string
	// OutsideWindow does it at a time that the shard's maintenance windows leave out.
	OutsideWindow bool
	// Check only says what would be done.
	Check bool
	Force bool
}

const (
	// repackLook is how often is looked whether a repack may go on.
	repackLook = time.Second
	// repackEnd is how long pg_repack may take to clean up when it is told to stop.
	repackEnd = 30 * time.Second
	// repackWALWaiting is how many WAL files may wait to be archived.
	repackWALWaiting = 64
	// repackSpare is the share of a file system that stays free: 1/20.
	repackSpare = 20
)

// repacking is a repack that is under way.
type repacking struct {
	*Shard
	RepackOptions
	console *Console
	leader  cluster.Member
	conn    *pgx.Conn
	// made says that there was no extension pg_repack before.
	made bool
}

// Repack makes chosen tables of a shard anew with pg_repack, one after another, while their clients go on. What is empty in them is
// measured first; it stops as soon as something is not well, and leaves nothing of a table that was not finished.
func Repack(ctx context.Context, c *Console, s *Shard, o RepackOptions) error {
	if len(o.Tables) == 0 {
		return usagef("name the tables that are to be repacked, with --table: never all of them")
	}
	snapshot, err := s.Read(ctx)
	if err != nil {
		return err
	}
	dynamic, _, err := taken().ParseJSON(snapshot.Config.Value)
	if err != nil {
		return fmt.Errorf("the key %s: %w", s.Keys.Config(), err)
	}
	if !o.OutsideWindow {
		if o.OutsideWindow, err = s.leaveWindow(c, dynamic, cluster.MaintenanceRepack, nil, o.Force || o.Check); err != nil {
			return err
		}
	}
	r := &repacking{Shard: s, RepackOptions: o, console: c}
	if r.leader, err = s.leader(snapshot); err != nil {
		return err
	}
	if r.conn, err = s.site.connect(ctx, r.leader, QueryOptions{Database: o.Database}); err != nil {
		return err
	}
	defer hangUp(r.conn)
	return r.all(ctx)
}

// all looks, measures, and repacks what needs it.
func (r *repacking) all(ctx context.Context) error {
	if err := r.well(ctx); err != nil {
		return refusedf("nothing was repacked: %w", err)
	}
	program, version, err := r.find(ctx)
	if err != nil {
		return err
	}
	left, err := r.leftovers(ctx)
	if err != nil {
		return err
	}
	tables, err := r.measure(ctx)
	if err != nil {
		return err
	}
	if err := r.console.Show(repackTable(tables)); err != nil {
		return err
	}
	todo := slices.DeleteFunc(slices.Clone(tables), func(t repackTableState) bool { return !t.needs(r.MinBloat) })
	for _, one := range left {
		r.console.Warn("a broken run has left %s", one)
	}
	if err := r.room(ctx, todo); err != nil {
		return err
	}
	switch {
	case r.Check && len(todo)+len(left) > 0:
		return Findings(fmt.Errorf("%d of %d tables would be repacked on %s, what broken runs have left: %d", len(todo), len(tables), r.leader.Name, len(left)))
	case r.Check || len(todo)+len(left) == 0:
		return nil
	}
	if !r.Force {
		if err := r.console.Confirm(fmt.Sprintf("%d tables will be made anew on %s, one after another; each is locked for a moment in the end. Go on?", len(todo), r.leader.Name)); err != nil {
			return err
		}
	}
	if err := r.clean(ctx, left); err != nil {
		return err
	}
	if len(todo) == 0 {
		r.console.Say("What broken runs have left is removed; no table needs to be repacked")
		return nil
	}
	if err := r.extend(ctx, version); err != nil {
		return err
	}
	err = r.each(ctx, program, todo)
	return errors.Join(err, r.withdraw(context.WithoutCancel(ctx)))
}

// each repacks tables one after another, and stops at the first that does not go well.
func (r *repacking) each(ctx context.Context, program string, todo []repackTableState) error {
	for i, t := range todo {
		failed := func(err error) error {
			// Whatever it was, something has been begun.
			return &failure{ExitFailed, fmt.Errorf("%s was not repacked, %d of %d were: %w", t.name, i, len(todo), err)}
		}
		if i > 0 { // the replicas have the last one to take in
			limit, cancel := context.WithTimeout(ctx, r.MaxTransaction)
			err := await(limit, r.well)
			cancel()
			if err != nil {
				return failed(err)
			}
		}
		began := time.Now()
		if err := r.one(ctx, program, t); err != nil {
			return failed(err)
		}
		after, err := r.measureOne(ctx, t.name)
		if err != nil {
			return err
		}
		r.console.Say("%s is repacked in %s: it had %s and has %s", t.name, Duration(time.Since(began)), size(t.total), size(after.total))
	}
	return nil
}

// one runs pg_repack for a table, looks on, and removes what it leaves when it does not end well.
func (r *repacking) one(ctx context.Context, program string, t repackTableState) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	host, port, err := r.leader.Address()
	if err != nil {
		return err
	}
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, program, "--no-kill-backend", "--wait-timeout="+strconv.Itoa(int(max(r.WaitTimeout, time.Second)/time.Second)), "--no-password",
		"--host="+host, "--port="+strconv.Itoa(port), "--username="+r.conn.Config().User, "--dbname="+r.conn.Config().Database, "--table="+t.name)
	cmd.Env = environ.For(nil, r.libpq()...)
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // it drops its table and its triggers
	cmd.WaitDelay = repackEnd + r.WaitTimeout
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", program, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	tick := time.NewTicker(repackLook)
	defer tick.Stop()
	for waiting := true; waiting; {
		select {
		case err = <-ended:
			waiting = false
		case <-tick.C:
			if ctx.Err() != nil {
				continue // it is told to stop already
			}
			if problem := r.well(ctx); problem != nil && ctx.Err() == nil {
				stop(problem)
			}
		}
	}
	if cause := context.Cause(ctx); cause != nil {
		err = fmt.Errorf("pg_repack was stopped: %w", cause)
	} else if err != nil {
		err = fmt.Errorf("%s: %w: %s", filepath.Base(program), err, strings.Join(strings.Fields(said.String()), " "))
	} else if now, asking := r.file(ctx, t.name); asking != nil {
		err = asking
	} else if now == t.file { // it ends well, too, when it could not have its locks
		err = fmt.Errorf("pg_repack gave up: %s", strings.Join(strings.Fields(said.String()), " "))
	}
	if err == nil {
		return nil
	}
	return errors.Join(err, r.tidy(context.WithoutCancel(ctx)))
}

// tidy removes what pg_repack has left that did not end well.
func (r *repacking) tidy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, repackEnd)
	defer cancel()
	var left []repackLeftover
	err := await(ctx, func(ctx context.Context) (err error) { // its sessions end in a moment
		left, err = r.leftovers(ctx)
		return err
	})
	if err == nil {
		err = r.clean(ctx, left)
	}
	if err != nil {
		return fmt.Errorf("what it has left is still there, and slows the table down; run this again, which removes it first: %w", err)
	}
	return nil
}

// libpq are variables for a program that logs in as this one does. Nobody but this user and root reads them.
func (r *repacking) libpq() []string {
	user := r.site.Postgres.Authentication.Superuser
	var all []string
	for name, value := range map[string]string{
		"PGPASSWORD": r.conn.Config().Password, "PGSSLMODE": user.SSLMode, "PGSSLROOTCERT": user.SSLRootCert, "PGSSLCERT": user.SSLCert, "PGSSLKEY": user.SSLKey,
		"PGSSLCRL": user.SSLCRL, "PGSSLCRLDIR": user.SSLCRLDir, "PGCHANNELBINDING": user.ChannelBinding, "PGREQUIREAUTH": user.RequireAuth,
	} {
		if value != "" {
			all = append(all, name+"="+value)
		}
	}
	return all
}

// find is pg_repack and its version.
func (r *repacking) find(ctx context.Context) (program, version string, err error) {
	program = r.Program
	if dir, ok := r.site.Postgres.Other["bin_dir"].(string); ok && program == "" {
		if path := filepath.Join(dir, "pg_repack"); isProgram(path) {
			program = path
		}
	}
	if program == "" {
		program = "pg_repack"
	}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "--version")
	cmd.Env = environ.For(nil)
	out, err := cmd.Output()
	if err != nil {
		return "", "", refusedf("pg_repack cannot be run (%w): install postgresql-%d-repack here, on %s", err, r.serverVersion()/10000, r.leader.Name)
	}
	return program, strings.TrimPrefix(strings.TrimSpace(string(out)), "pg_repack "), nil
}

func isProgram(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

func (r *repacking) serverVersion() int {
	major, _, _ := strings.Cut(r.conn.PgConn().ParameterStatus("server_version"), ".")
	n, _ := strconv.Atoi(major) // it has logged in: PostgreSQL says it
	return n * 10000
}

// well returns why nothing may be repacked now.
func (r *repacking) well(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	snapshot, err := r.Read(ctx)
	if err != nil {
		return err
	}
	dynamic, _, err := taken().ParseJSON(snapshot.Config.Value)
	if err != nil {
		return fmt.Errorf("the key %s: %w", r.Keys.Config(), err)
	}
	look, err := r.observe(ctx)
	if err != nil {
		return fmt.Errorf("asking %s: %w", r.leader.Name, err)
	}
	look.leads = snapshot.LeaderName()
	look.paused = dynamic.Pause
	if !r.OutsideWindow {
		look.window = dynamic.MaintenanceWindows.Refusal(cluster.MaintenanceRepack, time.Now())
	}
	for _, m := range snapshot.Members {
		if v := m.Value; v.Name != r.leader.Name && (!m.OK() || v.State != cluster.StateRunning || v.ReplicationState == "") {
			look.away = append(look.away, v.Name)
		}
	}
	look.gone = snapshot.Status.Value.RetainSlots
	return look.problem(r.leader.Name, r.RepackOptions)
}

// repackLooks is what is looked at before a table and while it is repacked.
type repackLooks struct {
	leads       string // who has the lock
	paused      bool
	window      string   // why now is outside the windows
	away        []string // members that do not replicate
	gone        []string // slots of members that went away
	lag         int64    // of the replica that is furthest behind
	lags        string   // which is that
	transaction time.Duration
	whose       string
	failing     bool // the archive command
	waiting     int  // WAL files that wait for it
}

// problem is the first reason to stop, nil if there is none.
//
//	another member leads                      what was begun has ended with the failover
//	the shard is paused                       somebody else is at work
//	outside the maintenance windows           the next one is for the rest
//	a member does not replicate, or lags      its copy of the table is WAL that it has to take in
//	a transaction that is older than allowed  pg_repack would wait for it, with its triggers in place
//	WAL that is not archived                  the disk fills by the size of the table
func (l repackLooks) problem(leader string, o RepackOptions) error {
	switch {
	case l.leads != leader:
		return fmt.Errorf("%s leads now, not %s", orNobody(l.leads), leader)
	case l.paused:
		return errors.New("the shard is paused: lictor resume, when its maintenance is over")
	case l.window != "":
		return fmt.Errorf("it is %s", l.window)
	case len(l.away) > 0:
		return fmt.Errorf("%s does not replicate: see lictor list", strings.Join(l.away, ", "))
	case len(l.gone) > 0:
		return fmt.Errorf("the member of the slot %s is away, and its slot keeps WAL: start it, or remove it", strings.Join(l.gone, ", "))
	case l.lag > o.MaxLag:
		return fmt.Errorf("%s lags %s, more than %s (--max-lag)", l.lags, size(l.lag), size(o.MaxLag))
	case l.transaction > o.MaxTransaction:
		return fmt.Errorf("a transaction has been running for %s (%s), longer than %s (--max-transaction): wait for it, or end it", Duration(l.transaction), l.whose, Duration(o.MaxTransaction))
	case l.failing:
		return errors.New("WAL cannot be archived: see archive_command in PostgreSQL's log")
	case l.waiting > repackWALWaiting:
		return fmt.Errorf("%d files of WAL wait to be archived, more than %d", l.waiting, repackWALWaiting)
	}
	return nil
}

// room returns an error unless the leader's disk has room for the largest table, and for as much WAL.
func (r *repacking) room(ctx context.Context, todo []repackTableState) error {
	if len(todo) == 0 {
		return nil
	}
	dirs, err := r.directories(ctx)
	if err != nil {
		return err
	}
	for _, t := range todo {
		need := map[uint64]repackNeed{}
		for _, want := range []struct{ dir, what string }{{cmp.Or(t.space, dirs.data), "its copy"}, {dirs.wal, "its WAL"}} {
			on, err := fileSystem(want.dir)
			if err != nil {
				return fmt.Errorf("how much room there is for %s: %w", t.name, err)
			}
			n := need[on.device]
			n.onFileSystem, n.bytes, n.what = on, n.bytes+t.total, append(n.what, want.what)
			need[on.device] = n
		}
		for _, n := range need {
			if n.free-n.size/repackSpare < n.bytes {
				return refusedf("nothing was repacked: %s needs %s for %s in %s, and %s are free, of which a twentieth of the disk (%s) stays",
					t.name, size(n.bytes), strings.Join(n.what, " and "), n.dir, size(n.free), size(n.size/repackSpare))
			}
		}
	}
	return nil
}

// repackNeed is what a table needs on one file system.
type repackNeed struct {
	onFileSystem
	bytes int64
	what  []string
}

// address is where the leader is, for messages.
func (r *repacking) address() string {
	host, port, err := r.leader.Address()
	if err != nil {
		return r.leader.Name
	}
	return net.JoinHostPort(host, strconv.Itoa(port))
}
