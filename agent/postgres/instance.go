package postgres

import (
	"context"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"

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
	// UpgradeBinDir has the programs of a later major version (lictor.upgrade_bin_dir).
	UpgradeBinDir string
}

// Instance is the local PostgreSQL. Each of its parts tells one story, and knows the parts
// that it is built on.
type Instance struct {
	*installation
	*records
	*dataDirectory
	*walDir
	*credentials
	*confFiles
	*session
	*upstreams
	*checker
	*processes
	*server
	*replication
	*observer
	*scripts
	*customMethods
	*bootstrapper
	*cloner
	*restorer
	*rewinder
	*upgrader
	*dataUpgrader
}

// assemble puts an instance together.
func assemble(i *installation, l Launcher) *Instance {
	p := &Instance{installation: i}
	p.records = &records{i}
	p.dataDirectory = &dataDirectory{i, p.records}
	p.walDir = &walDir{i}
	p.credentials = &credentials{installation: i}
	p.confFiles = &confFiles{installation: i, credentials: p.credentials}
	p.session = &session{installation: i, sql: make(chan *pgx.Conn, 1)}
	p.sql <- nil
	p.upstreams = &upstreams{i, p.walDir, p.credentials}
	p.checker = &checker{installation: i, confFiles: p.confFiles, session: p.session}
	p.processes = &processes{i, p.confFiles, p.dataDirectory, p.session, l, fence.NewTarget(i.dataDir)}
	p.server = &server{i, p.confFiles, p.dataDirectory, p.walDir, p.session, p.processes, p.checker}
	p.replication = &replication{installation: i, confFiles: p.confFiles, session: p.session, processes: p.processes, server: p.server}
	p.observer = &observer{
		installation: i, credentials: p.credentials, confFiles: p.confFiles, walDir: p.walDir, session: p.session, processes: p.processes, replication: p.replication,
		upstreams: p.upstreams,
	}
	p.scripts = &scripts{i}
	p.customMethods = &customMethods{i, p.dataDirectory, p.scripts}
	p.bootstrapper = &bootstrapper{i, p.confFiles, p.dataDirectory, p.session, p.checker, p.server, p.scripts, p.customMethods}
	p.cloner = &cloner{i, p.confFiles, p.dataDirectory, p.upstreams, p.processes, p.customMethods}
	p.restorer = &restorer{i, p.dataDirectory, p.walDir, p.processes, p.customMethods, p.bootstrapper}
	p.upgrader = &upgrader{i, p.dataDirectory, p.confFiles, p.session}
	p.dataUpgrader = &dataUpgrader{i, p.dataDirectory, p.processes, p.customMethods, p.upgrader}
	p.rewinder = &rewinder{i, p.records, p.confFiles, p.dataDirectory, p.upstreams, p.processes}
	return p
}

// New makes an instance. It looks at the programs and at nothing else.
func New(s Settings) (*Instance, error) {
	hosts, port, err := splitListen(s.Postgres.Listen)
	if err != nil {
		return nil, err
	}
	p := assemble(&installation{
		scope: s.Scope, name: s.Name, log: s.Log,
		dataDir: filepath.Clean(s.Postgres.DataDir), configDir: configDirOf(s.Postgres), listenHosts: hosts, port: port, stateDir: s.StateDir, pass: s.PassEnvironment,
	}, s.Launcher)
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
	p.configuredMajor, p.laterBin = p.major, s.UpgradeBinDir
	if later := p.programsOfData(ctx); later != nil {
		s.Postgres.BinDir, p.major = later.local.Load().BinDir, later.major
		p.local.Store(&s.Postgres)
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

func (p *confFiles) setRuns(a as) {
	p.settings.Lock()
	defer p.settings.Unlock()
	p.runs = a
}

func (p *confFiles) getRuns() as {
	p.settings.Lock()
	defer p.settings.Unlock()
	return p.runs
}

func (p *confFiles) setSyncNames(value string) {
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
