package postgres

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/environ"
	"github.com/lictor-ha/lictor/agent/osuser"
	"github.com/rs/zerolog"
)

// installation is where PostgreSQL's programs and its files are, and with whose rights they
// are used. All else is built on it.
type installation struct {
	scope, name string
	dataDir     string
	configDir   string // of the configuration files; mostly dataDir
	stateDir    string
	port        int
	listenHosts string
	major       int
	// configuredMajor is the major version of the configuration's programs, and laterBin where those of a later one are
	// (lictor.upgrade_bin_dir).
	configuredMajor int
	laterBin        string
	credential      *syscall.Credential
	disk            osuser.User // with whose rights files are touched
	pass            []string    // names of variables that are handed on
	log             zerolog.Logger

	// local is never changed in place.
	local atomic.Pointer[config.Postgres]
	// notes are what was said of settings that are not used as they are given.
	notes sync.Map

	controls controlCache
}

// Major is the major version of the programs.
func (p *installation) Major() int { return p.major }

// program is the path of one of PostgreSQL's programs.
func (p *installation) program(name string) (string, error) {
	dir, alias := p.local.Load().BinDir, p.local.Load().BinName[name]
	if alias != "" {
		name = alias
	}
	if dir != "" {
		name = filepath.Join(dir, name)
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("PostgreSQL's program %s is missing; set postgresql.bin_dir: %w", name, err)
	}
	return path, nil
}

// run runs one of PostgreSQL's programs as PostgreSQL's user and returns what
// it printed, when it failed its errors first. A canceled context ends it with SIGTERM, later SIGKILL.
func (p *installation) run(ctx context.Context, name string, args ...string) (string, error) {
	out, said, err := p.runIn(ctx, "/", nil, name, args...)
	if err != nil {
		return said, err
	}
	return out, nil
}

// runOnData runs a program that writes into the data directory. It has that as
// its working directory, as PostgreSQL's own processes do: the parent-death
// signal belongs to the thread that forks and cannot be used here, so after a
// SIGKILL of the agent this is how the program is found and ended. It returns all
// that the program said, its errors first.
func (p *installation) runOnData(ctx context.Context, env []string, name string, args ...string) (string, error) {
	_, said, err := p.runIn(ctx, p.dataDir, env, name, args...)
	return said, err
}

// runIn also tells all that the program said, its errors first.
func (p *installation) runIn(ctx context.Context, dir string, env []string, name string, args ...string) (out, said string, err error) {
	path, err := p.program(name)
	if err != nil {
		return "", "", err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = environ.For(p.pass, env...)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: p.credential, Setpgid: true}
	// To the whole group: pg_basebackup has a child that goes on otherwise.
	cmd.Cancel = func() error { return signalGroup(cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	out, said = stdout.String(), stderr.String()+stdout.String()
	if err != nil {
		if ctx.Err() != nil {
			err = errors.Join(context.Cause(ctx), err)
		}
		return out, said, fmt.Errorf("%s: %w: %s", name, err, tail(said, 1500))
	}
	return out, said, nil
}

// signalGroup signals a child that leads a process group, and all of the group.
func signalGroup(pid int, sig syscall.Signal) error {
	if err := syscall.Kill(-pid, sig); err != nil {
		return os.ErrProcessDone
	}
	return nil
}

func tail(text string, most int) string {
	text = strings.TrimSpace(text)
	if len(text) > most {
		text = "..." + text[len(text)-most:]
	}
	return text
}

// own gives a file that this process has just made to PostgreSQL's user.
func (p *installation) own(path string) error {
	if err := p.disk.Give(path); err != nil {
		return fmt.Errorf("giving %s to PostgreSQL's user: %w", path, err)
	}
	return nil
}

// temporaryDir makes an empty directory of PostgreSQL's user.
func (p *installation) temporaryDir(pattern string) (dir string, err error) {
	err = p.disk.For(func() (err error) { dir, err = os.MkdirTemp("", pattern); return err }, filepath.Join(os.TempDir(), pattern))
	if err == nil {
		err = p.own(dir)
	}
	return dir, err
}

func (p *installation) inData(name string) string { return filepath.Join(p.dataDir, name) }

// exists reports whether the data directory holds a file. That it cannot be looked at (a disk with errors, a file
// system that was mounted anew) does not mean that it is not there.
func (p *installation) exists(name string) (bool, error) { return there(p.disk.Stat, p.inData(name)) }

// there reports by a look whether a file is there. A link that leads nowhere is not.
func there(look func(string) (fs.FileInfo, error), path string) (bool, error) {
	switch _, err := look(path); {
	case err == nil:
		return true, nil
	case errors.Is(err, os.ErrNotExist):
		return false, nil
	default:
		return false, fmt.Errorf("it cannot be told whether %s is there: %w", path, err)
	}
}

func (p *installation) syncDir(dir string) error {
	if err := p.disk.Sync(dir); err != nil {
		return fmt.Errorf("state directory %s: %w", dir, err)
	}
	return nil
}

// stateFile is one of the agent's own files about this instance. In a state
// directory that may be shared it is named after the whole path of the data
// directory.
func (p *installation) stateFile(suffix string) string {
	name := filepath.Base(p.dataDir)
	if p.stateDir != filepath.Dir(p.dataDir) {
		name = strings.ReplaceAll(strings.Trim(p.dataDir, "/"), "/", "-")
	}
	return filepath.Join(p.stateDir, "."+name+".lictor-"+suffix)
}

// adoptNotes gives PostgreSQL's user what an agent of root's has noted in the user's own
// directory: agents up to 0.9 did so, and it could not be read any more.
func (p *installation) adoptNotes() {
	plain := filepath.Join(p.stateDir, "."+filepath.Base(p.dataDir)+".lictor-")
	for _, path := range []string{p.stateFile("unfinished"), p.stateFile("failed"), p.stateFile("loss"), plain + "led", plain + "watchdog", plain + "agent"} {
		looks := func(content []byte) bool {
			return len(content) == 0 || json.Valid(content) || len(bytes.Fields(content)) == 3
		}
		if err := p.disk.Adopt(path, looks); err != nil && !errors.Is(err, os.ErrNotExist) {
			p.log.Warn().Err(err).Str("path", path).Msg("a note of an earlier agent cannot be read")
		}
	}
}

// makeStateDir makes the directory of the agent's own files, through which
// PostgreSQL's user must be able to go: its passfile and log are there.
func (p *installation) makeStateDir() error {
	if _, err := p.disk.Stat(p.stateDir); err == nil {
		return nil
	}
	if err := p.disk.MkdirAll(p.stateDir, 0o700); err != nil {
		return fmt.Errorf("making the state directory (set lictor.state_dir to one that can be written): %w", err)
	}
	return p.own(p.stateDir)
}

func (p *installation) pgpassPath() string {
	if p.local.Load().PgPass != "" {
		return p.local.Load().PgPass
	}
	return p.stateFile("pgpass")
}

// database is the one that the agent connects to, on every member.
func (p *installation) database() string {
	if database := p.local.Load().Database; database != "" {
		return database
	}
	return config.DefaultDatabase
}

// tell says once that a setting is not used as it is given.
func (p *installation) tell(setting, why string) {
	if _, told := p.notes.LoadOrStore([2]string{setting, why}, true); !told {
		p.log.Warn().Str("setting", setting).Str("reason", why).Msg("setting is not used as given")
	}
}
