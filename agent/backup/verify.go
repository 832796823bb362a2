package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Verification is what is restored, and where.
type Verification struct {
	// PgBackRest is the program with its own options.
	PgBackRest []string
	Stanza     string
	// Label is the backup; empty: the newest good one.
	Label string
	// Scratch is a directory with room for it. A directory of its own is made there, and
	// removed afterwards; nothing else is.
	Scratch string
	// BinDir has PostgreSQL's programs.
	BinDir string
	// User is the superuser in the backup.
	User string
	// Say tells how far it is.
	Say func(format string, args ...any)
}

// Verified is a backup that was restored, started and checked.
type Verified struct {
	Backup
	Took time.Duration
	At   time.Time
}

// Verify restores a backup beside everything that is there, starts PostgreSQL on it, where
// nobody but its own user can reach it, and has pg_amcheck look at every table and index. It
// archives nothing, and the repository is only read.
func (v Verification) Verify(ctx context.Context) (_ Verified, err error) {
	if os.Geteuid() == 0 {
		return Verified{}, errors.New("PostgreSQL does not run as root: run this as its own user (runuser -u postgres -- ...)")
	}
	began := time.Now()
	info, err := Repository{Command: v.PgBackRest, Stanza: v.Stanza}.Info(ctx, "")
	if err != nil {
		return Verified{}, err
	}
	chosen, err := info.Newest("")
	if v.Label != "" {
		chosen, err = info.labelled(v.Label)
	}
	if err != nil {
		return Verified{}, fmt.Errorf("stanza %s: %w (%s)", v.Stanza, err, info.Trouble)
	}
	if err := chosen.Room(v.Scratch); err != nil {
		return Verified{}, fmt.Errorf("%w: name a directory on another disk", err)
	}
	dir, err := os.MkdirTemp(v.Scratch, "lictor-verify-")
	if err != nil {
		return Verified{}, fmt.Errorf("the directory to restore to: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	s := scratch{Verification: v, dir: dir, data: filepath.Join(dir, "data")}
	v.Say("restoring %s, %d MB, to %s", chosen.Label, chosen.Size>>20, s.data)
	if err := s.restore(ctx, chosen.Label); err != nil {
		return Verified{}, err
	}
	v.Say("recovering it")
	if err := s.start(ctx); err != nil {
		return Verified{}, err
	}
	v.Say("checking it with pg_amcheck")
	err = s.check(ctx)
	if stopErr := s.stop(ctx); err == nil {
		err = stopErr
	}
	if err != nil {
		return Verified{}, fmt.Errorf("backup %s: %w", chosen.Label, err)
	}
	return Verified{Backup: chosen, Took: time.Since(began), At: time.Now().UTC().Truncate(time.Second)}, nil
}

// Room reports an error where a directory has not enough of it for a backup: what is restored,
// and a tenth of that and 128 MB for WAL and temporary files.
func (b Backup) Room(dir string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("the directory to restore to (%s): %w", dir, err)
	}
	free, needs := int64(fs.Bavail)*fs.Bsize, b.Size+b.Size/10+1<<27 //nolint:unconvert // of another type elsewhere
	if free < needs {
		return fmt.Errorf("%s has %d MB free, restoring %s needs %d MB", dir, free>>20, b.Label, needs>>20)
	}
	return nil
}

// scratch is a backup that is being verified.
type scratch struct {
	Verification
	dir, data string
}

// restore writes nowhere but below the scratch directory: tablespaces as well.
func (s scratch) restore(ctx context.Context, label string) error {
	if err := os.Mkdir(s.data, 0o700); err != nil {
		return fmt.Errorf("the directory to restore to: %w", err)
	}
	_, err := s.command(ctx, s.PgBackRest[0], append(s.PgBackRest[1:len(s.PgBackRest):len(s.PgBackRest)],
		"--stanza="+s.Stanza, "--set="+label, "--pg1-path="+s.data, "--tablespace-map-all="+filepath.Join(s.dir, "tablespaces"),
		"--type=immediate", "--target-action=promote", "--archive-mode=off",
		"--log-level-console=warn", "--log-level-stderr=off", "--lock-path="+filepath.Join(s.dir, "lock"), "restore")...)
	return err
}

// start starts PostgreSQL by a configuration of its own: what the backup has is about its
// host's addresses, certificates and memory. It returns when recovery has ended.
func (s scratch) start(ctx context.Context) error {
	settings := strings.Join([]string{
		"listen_addresses = ''", "port = 5432", "unix_socket_directories = '" + s.dir + "'", "hba_file = '" + filepath.Join(s.dir, "pg_hba.conf") + "'",
		// Without hot standby recovery does not ask for the primary's max_connections and the like.
		"hot_standby = off", "archive_mode = off", "fsync = off", "autovacuum = off", "max_wal_senders = 0", "wal_level = replica",
		"logging_collector = off", "max_connections = 20", "",
	}, "\n")
	conf := filepath.Join(s.dir, "postgresql.conf")
	err := os.WriteFile(conf, []byte(settings), 0o600)
	if err == nil {
		err = os.WriteFile(filepath.Join(s.dir, "pg_hba.conf"), []byte("local all all trust\n"), 0o600)
	}
	if err != nil {
		return fmt.Errorf("writing its configuration: %w", err)
	}
	// -t: how long a recovery takes is ctx's to bound.
	_, err = s.command(ctx, filepath.Join(s.BinDir, "pg_ctl"), "-D", s.data, "-l", s.log(), "-w", "-t", "2147483", "-o", "-c config_file="+conf, "start")
	if err == nil {
		err = s.awaitPromotion(ctx)
	}
	if err != nil {
		said, _ := os.ReadFile(s.log()) // without it the error says enough
		return errors.Join(fmt.Errorf("%w; its log ends with: %s", err, lastLines(said, 10)), s.stop(ctx))
	}
	return nil
}

// readyEvery is how often PostgreSQL is asked whether recovery has ended: pg_ctl's own wait
// ends with the consistent state before it.
const readyEvery = 200 * time.Millisecond

// awaitPromotion waits until PostgreSQL lets clients in. How long recovery may take is ctx's
// to bound.
func (s scratch) awaitPromotion(ctx context.Context) error {
	ready := time.NewTicker(readyEvery)
	defer ready.Stop()
	for {
		if _, err := s.command(ctx, filepath.Join(s.BinDir, "pg_isready"), "--quiet", "--host="+s.dir, "--port=5432"); err == nil {
			return nil
		}
		if _, err := os.Stat(s.pidFile()); errors.Is(err, os.ErrNotExist) {
			return errors.New("PostgreSQL has ended during the recovery")
		}
		select {
		case <-ready.C:
		case <-ctx.Done():
			return fmt.Errorf("recovering the backup: %w", context.Cause(ctx))
		}
	}
}

func (s scratch) pidFile() string { return filepath.Join(s.data, "postmaster.pid") }

func (s scratch) log() string { return filepath.Join(s.dir, "log") }

// check looks at everything; the extension that it needs is made in the copy.
func (s scratch) check(ctx context.Context) error {
	_, err := s.command(ctx, filepath.Join(s.BinDir, "pg_amcheck"), "--host="+s.dir, "--port=5432", "--username="+s.User, "--no-password",
		"--all", "--install-missing", "--heapallindexed")
	return err
}

// stopLimit bounds the end of PostgreSQL, also when ctx has ended.
const stopLimit = time.Minute

func (s scratch) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopLimit)
	defer cancel()
	if _, err := os.Stat(s.pidFile()); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	_, err := s.command(ctx, filepath.Join(s.BinDir, "pg_ctl"), "-D", s.data, "-w", "-m", "immediate", "stop")
	return err
}

// command runs a program as this process's own user.
func (v Verification) command(ctx context.Context, name string, args ...string) ([]byte, error) {
	return command(ctx, nil, name, args...)
}

// command runs a program and returns what it prints. PostgreSQL's variables of the
// environment would lead it elsewhere.
func command(ctx context.Context, as *syscall.Credential, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	cmd.Dir = "/"
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "PG") || strings.HasPrefix(variable, "PGBACKREST_") {
			cmd.Env = append(cmd.Env, variable)
		}
	}
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		return nil, fmt.Errorf("%s: %w: %s", filepath.Base(name), err, lastLines(append(out.Bytes(), complaint.Bytes()...), 10))
	}
	return out.Bytes(), nil
}

// lastLines are the last lines of a text.
func lastLines(text []byte, most int) string {
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-most):], "\n")
}

// Annotate notes in the repository that a backup was verified. pgBackRest does that on the
// host of the repository only.
func (v Verification) Annotate(ctx context.Context, done Verified) error {
	_, err := v.command(ctx, v.PgBackRest[0], append(v.PgBackRest[1:len(v.PgBackRest):len(v.PgBackRest)],
		"--stanza="+v.Stanza, "--set="+done.Label, "--annotation="+VerifiedAnnotation+"="+done.At.Format(time.RFC3339), "annotate")...)
	return err
}
