package postgres

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/environ"
	"github.com/lictor-ha/lictor/agent/fence"
	"github.com/lictor-ha/lictor/agent/osuser"
)

// Settings are what an instance is made from.
type Settings struct {
	Scope, Name string
	Postgres    config.Postgres
	// OSUser is the user that PostgreSQL runs as when this process is root's.
	OSUser string
	// StateDir holds the agent's own small files; empty: beside the data
	// directory.
	StateDir string
	// PassEnvironment names variables that PostgreSQL and scripts get besides the usual
	// ones.
	PassEnvironment []string
	Launcher        Launcher
	Log             zerolog.Logger
}

// Instance is the local PostgreSQL.
type Instance struct {
	scope, name string
	dataDir     string
	stateDir    string
	private     atomic.Pointer[string] // the directory of the only socket, while a bootstrap is at work
	port        int
	listenHosts string
	major       int
	credential  *syscall.Credential
	disk        osuser.User // with whose rights files are touched
	pass        []string    // names of variables that are handed on
	launcher    Launcher
	log         zerolog.Logger

	// local is never changed in place.
	local atomic.Pointer[config.Postgres]
	// settings guards what Apply and the loop's tasks change.
	settings  sync.Mutex
	dynamic   cluster.Dynamic
	syncNames string // value of synchronous_standby_names
	runs      as     // how PostgreSQL was started or adopted
	judged    judged // which parameters it takes
	refused   atomic.Pointer[[]string]
	// reached is the timeline that PostgreSQL, started then, was seen on.
	reached struct {
		start    time.Time
		timeline int
	}

	// roles guards what is kept of the agent's roles, and the configuration as it was given.
	roles     sync.Mutex
	verifiers verifiers
	given     config.Postgres

	recovery recovery // of the replica that runs

	files sync.Mutex // held while the configuration files are written

	// notes are what was said of settings that are not used as they are given.
	notes sync.Map

	process postmaster
	// target is what is killed: all of PostgreSQL's processes.
	target *fence.Target

	// sql holds the kept connection, or nil, while nobody uses it: who takes it
	// out is its only user, and waits no longer than its own context.
	sql chan *pgx.Conn

	controls controlCache

	// answered is when the postmaster last answered a new connection.
	answered atomic.Int64
}

// New makes an instance. It looks at the programs and at nothing else.
func New(s Settings) (*Instance, error) {
	hosts, port, err := splitListen(s.Postgres.Listen)
	if err != nil {
		return nil, err
	}
	p := &Instance{
		scope: s.Scope, name: s.Name, launcher: s.Launcher, log: s.Log,
		dataDir: filepath.Clean(s.Postgres.DataDir), listenHosts: hosts, port: port, stateDir: s.StateDir, pass: s.PassEnvironment,
		sql: make(chan *pgx.Conn, 1),
	}
	p.sql <- nil
	p.target = fence.NewTarget(p.dataDir)
	p.target.Parent = s.Launcher.Parent
	if p.stateDir == "" {
		p.stateDir = filepath.Dir(p.dataDir)
	}
	p.stateDir = filepath.Clean(p.stateDir)
	p.local.Store(&s.Postgres)
	if os.Geteuid() == 0 {
		if p.credential, err = Credential(s.OSUser, p.dataDir); err != nil {
			return nil, err
		}
		p.disk = osuser.As(p.credential)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out, err := p.run(ctx, "postgres", "--version")
	if err != nil {
		return nil, fmt.Errorf("postgresql.bin_dir: %w", err)
	}
	if p.major, err = parseMajor(out); err != nil {
		return nil, err
	}
	p.verifiers = p.recallVerifiers()
	p.useLocal(p.fit(s.Postgres))
	p.syncNames = p.readSyncNames()
	p.adoptNotes()
	if left := environ.Withheld(p.pass); len(left) > 0 {
		p.log.Info().Strs("variables", left).Msg("environment variables are not handed on to PostgreSQL and scripts; name in lictor.pass_environment those that they need")
	}
	if err := p.makeStateDir(); err != nil && s.StateDir != "" {
		return nil, err
	}
	return p, nil
}

func (p *Instance) setRuns(a as) {
	p.settings.Lock()
	defer p.settings.Unlock()
	p.runs = a
}

func (p *Instance) getRuns() as {
	p.settings.Lock()
	defer p.settings.Unlock()
	return p.runs
}

func (p *Instance) setSyncNames(value string) {
	p.settings.Lock()
	defer p.settings.Unlock()
	p.syncNames = value
}

// splitListen takes postgresql.listen apart: listen_addresses, as PostgreSQL takes
// them, and the port.
func splitListen(listen string) (hosts string, port int, err error) {
	list, text, ok := config.SplitAddress(listen)
	if ok {
		port, err = strconv.Atoi(text)
	}
	if !ok || err != nil {
		return "", 0, fmt.Errorf("postgresql.listen: %q: must be host:port", listen)
	}
	return strings.Join(list, ","), port, nil
}

// Credential is the user whom an agent that is root's runs PostgreSQL as, which refuses
// to run as root.
func Credential(name, dataDir string) (*syscall.Credential, error) {
	if name == "" {
		name = "postgres"
		if uid, err := osuser.Holder(dataDir); err == nil && uid != 0 {
			name = strconv.Itoa(int(uid))
		}
	}
	u, err := user.Lookup(name)
	if err != nil {
		if u, err = user.LookupId(name); err != nil {
			return nil, fmt.Errorf("lictor.os_user: %s: no such user to run PostgreSQL as: %w", name, err)
		}
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil || uid == 0 {
		return nil, fmt.Errorf("lictor.os_user: %s: PostgreSQL must not run as root", name)
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("lictor.os_user: %s: %w", name, err)
	}
	c := &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	ids, err := u.GroupIds()
	if err != nil {
		return nil, fmt.Errorf("lictor.os_user: %s: its groups: %w", name, err)
	}
	for _, id := range ids {
		if n, err := strconv.ParseUint(id, 10, 32); err == nil {
			c.Groups = append(c.Groups, uint32(n))
		}
	}
	return c, nil
}

var versionNumber = regexp.MustCompile(`\) (\d+)`)

func parseMajor(out string) (int, error) {
	m := versionNumber.FindStringSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("postgres --version answers %q, which has no version", out)
	}
	major, err := strconv.Atoi(m[1])
	if err != nil || major < 12 {
		return 0, fmt.Errorf("PostgreSQL %s: the oldest that Lictor runs is 12", m[1])
	}
	return major, nil
}

// Major is the major version of the programs.
func (p *Instance) Major() int { return p.major }

// program is the path of one of PostgreSQL's programs.
func (p *Instance) program(name string) (string, error) {
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
func (p *Instance) run(ctx context.Context, name string, args ...string) (string, error) {
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
func (p *Instance) runOnData(ctx context.Context, env []string, name string, args ...string) (string, error) {
	_, said, err := p.runIn(ctx, p.dataDir, env, name, args...)
	return said, err
}

// runIn also tells all that the program said, its errors first.
func (p *Instance) runIn(ctx context.Context, dir string, env []string, name string, args ...string) (out, said string, err error) {
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
func (p *Instance) own(path string) error {
	if err := p.disk.Give(path); err != nil {
		return fmt.Errorf("giving %s to PostgreSQL's user: %w", path, err)
	}
	return nil
}

// temporaryDir makes an empty directory of PostgreSQL's user.
func (p *Instance) temporaryDir(pattern string) (dir string, err error) {
	err = p.disk.For(func() (err error) { dir, err = os.MkdirTemp("", pattern); return err }, filepath.Join(os.TempDir(), pattern))
	if err == nil {
		err = p.own(dir)
	}
	return dir, err
}

// stateFile is one of the agent's own files about this instance. In a state
// directory that may be shared it is named after the whole path of the data
// directory.
func (p *Instance) stateFile(suffix string) string {
	name := filepath.Base(p.dataDir)
	if p.stateDir != filepath.Dir(p.dataDir) {
		name = strings.ReplaceAll(strings.Trim(p.dataDir, "/"), "/", "-")
	}
	return filepath.Join(p.stateDir, "."+name+".lictor-"+suffix)
}

// adoptNotes gives PostgreSQL's user what an agent of root's has noted in the user's own
// directory: agents up to 0.9 did so, and it could not be read any more.
func (p *Instance) adoptNotes() {
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
func (p *Instance) makeStateDir() error {
	if _, err := p.disk.Stat(p.stateDir); err == nil {
		return nil
	}
	if err := p.disk.MkdirAll(p.stateDir, 0o700); err != nil {
		return fmt.Errorf("making the state directory (set lictor.state_dir to one that can be written): %w", err)
	}
	return p.own(p.stateDir)
}
