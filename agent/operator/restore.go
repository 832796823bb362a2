package operator

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/shlex"
	"github.com/jackc/pgx/v5"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/backup"
	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/osuser"
	"github.com/lictor-ha/lictor/agent/postgres"
)

// RestoreOptions say to which moment a shard is restored, from which backup, and as what.
type RestoreOptions struct {
	// To is the moment, as backup.ParseTarget reads it.
	To string
	// Label is the backup; empty: the newest that had ended before.
	Label string
	// As is the new shard.
	As string
	// DataDir, Port, APIPort and File are the new shard's; empty: beside those of the member.
	DataDir, Port, APIPort, File string
	// Environ is the environment that goes over configuration files.
	Environ []string
	// Force asks nothing.
	Force bool
}

// Beside reports whether something is said of a new shard.
func (o RestoreOptions) Beside() bool { return o.DataDir+o.Port+o.APIPort+o.File != "" }

const (
	// archiveLimit bounds the wait for the last WAL to come into the archive.
	archiveLimit = time.Minute
	// cancelLimit bounds that for the end of a restore that is undone. The agent waits no
	// longer than a minute.
	cancelLimit = 90 * time.Second
)

// restoration is a recovery that was found possible.
type restoration struct {
	backup.Plan
	archived time.Time
}

// tell says what it begins with, and which timeline it follows where that is not the present one.
func (r restoration) tell(c *Console) {
	c.Say("  from        the backup %s, %d MB, which ended at %s", r.From.Label, r.From.Size>>20, r.From.Stop.UTC().Format(time.RFC3339))
	if r.Line.Left > 0 {
		c.Say("  timeline    %d, which an earlier restore left for timeline %d: %s is discarded on the present one", r.Line.Timeline, r.Line.Left, backup.TargetText(r.Target))
	}
}

// RestoreBeside makes the configuration of a new shard which recovers to a moment of another
// one's, from its backups, on this host. The other shard is not touched. All that would keep
// the new one from being made is looked at first.
func RestoreBeside(ctx context.Context, c *Console, s *Shard, o RestoreOptions) error {
	target, err := backup.ParseTarget(o.To)
	if err != nil {
		return usagef("--to: %w", err)
	}
	if err := cluster.CheckName(o.As); err != nil {
		return usagef("--as: the name of a shard %w", err)
	}
	if o.As == s.Scope {
		return usagef("--as: %s is the shard itself", o.As)
	}
	cfg, err := s.site.memberFile(s.Scope, o.Environ)
	if err != nil {
		return err
	}
	repository, err := repositoryOf(cfg)
	if err != nil {
		return err
	}
	snapshot, err := s.Read(ctx)
	if err != nil {
		return err
	}
	if err := s.site.unknown(ctx, o.As); err != nil {
		return err
	}
	plan, err := s.place(cfg, &o)
	if err != nil {
		return err
	}
	r, err := s.check(ctx, c, repository, snapshot, target, o.Label, existing(plan.DataDir))
	if err != nil {
		return err
	}
	if plan.Bootstrap, err = besideBootstrap(cfg, snapshot, plan, r); err != nil {
		return err
	}
	content, err := s.site.besideFile(cfg, plan)
	if err != nil {
		return err
	}
	c.Say("%s is restored as %s, as it was at %s:", s.Scope, o.As, backup.TargetText(target))
	r.tell(c)
	c.Say("  WAL         archived until %s", r.archived.UTC().Format(time.RFC3339))
	c.Say("  data        %s, on this host", plan.DataDir)
	c.Say("  PostgreSQL  port %s, the agent's REST API port %s", plan.PostgresPort, plan.APIPort)
	c.Say("  file        %s", o.File)
	if token := plan.token(cfg); token != "" {
		c.Say("  token       %s, which must be there and may write the new shard's keys in Consul", token)
	}
	if !o.Force {
		if err := c.Confirm(s.Scope + " is not touched. Write the file?"); err != nil {
			return err
		}
	}
	if err := s.site.install(o, cfg, plan, content); err != nil {
		return err
	}
	c.Say("%s is written. Next, on this host: systemctl start lictor-agent@%s, or lictor agent %s as PostgreSQL's user;\nlictor list %s shows it. It archives nothing until it has a stanza of its own.",
		o.File, o.As, o.File, o.As)
	return nil
}

// inPlace is a shard that can be put back to an earlier moment in the place of its data.
type inPlace struct {
	restoration
	leader cluster.Member
	// dataDir is what the leader's data directory is called, without links.
	dataDir string
}

// inPlace looks whether the shard can be put back to an earlier moment, and touches nothing.
func (s *Shard) inPlace(ctx context.Context, c *Console, snapshot cluster.Snapshot, target time.Time, o RestoreOptions) (inPlace, error) {
	var plan inPlace
	var err error
	if plan.leader, err = s.leader(snapshot); err != nil {
		return plan, err
	}
	cfg, err := s.site.memberFile(s.Scope, o.Environ)
	if err != nil {
		return plan, err
	}
	if cfg.Name != plan.leader.Name {
		return plan, refusedf("%s leads %s, and --config is the file of %s: run this on the leader's host", plan.leader.Name, s.Scope, cfg.Name)
	}
	if plan.dataDir, err = filepath.EvalSymlinks(cfg.Postgres.DataDir); err != nil {
		return plan, refusedf("the data directory of %s: %w: run this on the leader's host", plan.leader.Name, err)
	}
	repository, err := repositoryOf(cfg)
	if err != nil {
		return plan, err
	}
	// The data are restored beside the old ones, and so are those of tablespaces.
	plan.restoration, err = s.check(ctx, c, repository, snapshot, target, o.Label, filepath.Dir(plan.dataDir))
	return plan, err
}

// Restore puts a shard back to an earlier moment, in the place of its data (design 5.25). It is
// run on the leader's host.
func Restore(ctx context.Context, c *Console, s *Shard, o RestoreOptions) error {
	target, err := backup.ParseTarget(o.To)
	if err != nil {
		return usagef("--to: %w", err)
	}
	snapshot, err := s.Read(ctx)
	if err != nil {
		return err
	}
	plan, err := s.inPlace(ctx, c, snapshot, target, o)
	if err != nil {
		return err
	}
	leader := plan.leader
	wal, _ := filepath.EvalSymlinks(filepath.Join(plan.dataDir, "pg_wal"))
	since := time.Since(target)
	c.Say("%s is put back to %s:", s.Scope, backup.TargetText(target))
	plan.tell(c)
	c.Say("  on          %s, whose data directory is moved aside to %s.before-restore.TIME and never removed", leader.Name, plan.dataDir)
	c.Say("  tablespaces are restored below %s.tablespaces.TIME, on the disk of the data", plan.dataDir)
	if wal != "" && filepath.Dir(wal) != plan.dataDir {
		c.Say("  the WAL     is restored beside %s, which stays with the old data", wal)
	}
	c.Say("  discarded   all that was committed since, in %s, up to timeline %d at %s; the archive keeps it", since.Round(time.Second), leader.Timeline, fmt.Sprintf("%X/%X", snapshot.Status.Value.OpTime>>32, snapshot.Status.Value.OpTime&0xffffffff))
	c.Say("  clients     are held by the poolers as while a shard is down, then get errors, until it is done")
	c.Say("  the others  are rewound, or made anew, from %s", leader.Name)
	if !o.Force {
		if err := c.Confirm("Discard all that " + s.Scope + " has committed since " + backup.TargetText(target) + "?"); err != nil {
			return err
		}
	}
	c.Say("restoring; lictor list %s shows it, lictor restore %s --cancel undoes it", s.Scope, s.Scope)
	began := time.Now()
	answer, err := s.client.Post(ctx, api.PeerOf(leader), "/restore", map[string]any{
		"target": target.Format(time.RFC3339Nano), "label": plan.From.Label, "timeline": plan.Line.Timeline,
	})
	switch {
	case err != nil && neverSent(err):
		return fmt.Errorf("%s cannot be reached, nothing was done: %w", leader.Name, err)
	case err != nil:
		return s.unanswered("the restore on "+leader.Name+", which may go on (see lictor list)", err)
	case answer.Status == http.StatusPreconditionFailed, answer.Status == http.StatusBadRequest:
		return refusedf("%s", s.words(answer))
	case answer.Status == http.StatusInternalServerError:
		return unknownf("%s: %s; see lictor list", s.words(answer), answer.Reason)
	case !answer.OK():
		return rolledBack(fmt.Errorf("%s: %s", s.words(answer), answer.Reason))
	}
	c.Say("restored in %s. Take a full backup now, so that a recovery need not begin on the old timeline; with --no-expire-auto, if what was discarded may be wanted yet.\n"+
		"When nobody needs the old data any more, remove %s.before-restore.*", Duration(time.Since(began)), plan.dataDir)
	return nil
}

// CancelRestore has a restore that is under way undone.
func CancelRestore(ctx context.Context, c *Console, s *Shard) error {
	snapshot, err := s.Read(ctx)
	if err != nil {
		return err
	}
	leader, err := s.leader(snapshot)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, cancelLimit)
	defer cancel()
	answer, err := s.client.Delete(ctx, api.PeerOf(leader), "/restore")
	switch {
	case err != nil:
		return s.unanswered("cancelling the restore on "+leader.Name, err)
	case answer.Status == http.StatusNotFound:
		return refusedf("%s", s.words(answer))
	case answer.Status == http.StatusConflict: // it was too late
		return errors.New(s.words(answer))
	case !answer.OK():
		return fmt.Errorf("%s (status %d): %s", s.words(answer), answer.Status, answer.Reason)
	}
	c.Say("%s", s.words(answer))
	return nil
}

// repositoryOf is how a member calls pgBackRest.
func repositoryOf(cfg config.Config) (backup.Repository, error) {
	credential, err := postgresUser(cfg)
	if err != nil {
		return backup.Repository{}, err
	}
	words, err := shlex.Split(cfg.Lictor.Backup.InForce().Command)
	if err != nil || len(words) == 0 {
		return backup.Repository{}, usagef("lictor.backup.command: %q cannot be split into words", cfg.Lictor.Backup.Command)
	}
	return backup.Repository{Command: words, Stanza: cfg.Lictor.Backup.Stanza, As: credential}, nil
}

// memberFile is the configuration of a member of the shard, whose backups it names.
func (s *Site) memberFile(scope string, environ []string) (config.Config, error) {
	if s.Path == "" {
		return config.Config{}, usagef("--config: name the configuration file of a member of %s that runs on this host", scope)
	}
	if info, err := os.Stat(s.Path); err == nil && !info.Mode().IsRegular() {
		return config.Config{}, usagef("--config: %s must be one file, of which the new shard's is made", s.Path)
	}
	cfg, _, err := config.Load(config.Source{Path: s.Path, Environ: environ})
	switch {
	case err != nil:
		return cfg, Usage(err)
	case cfg.Scope != scope:
		return cfg, usagef("--config: %s is of the shard %s, not of %s", s.Path, cfg.Scope, scope)
	case cfg.Lictor.Backup.Stanza == "":
		return cfg, usagef("lictor.backup.stanza: %s does not say which stanza has the backups of %s", s.Path, scope)
	}
	return cfg, nil
}

// postgresUser is whom pgBackRest is run as: its files are that user's. nil: this process's own.
func postgresUser(cfg config.Config) (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil //nolint:nilnil // no other user
	}
	credential, err := postgres.Credential(cfg.Lictor.OSUser, filepath.Clean(cfg.Postgres.DataDir))
	if err != nil {
		return nil, Usage(err)
	}
	return credential, nil
}

// unknown reports an error where a shard exists in Consul.
func (s *Site) unknown(ctx context.Context, scope string) error {
	keys := s.keys(scope)
	for _, prefix := range []string{keys.Prefix(), keys.Route()} {
		pairs, err := s.list(ctx, prefix)
		if err != nil {
			return err
		}
		for _, pair := range pairs {
			if pair.Key == prefix || strings.HasPrefix(pair.Key, keys.Prefix()) {
				return refusedf("--as: there is a shard %s in Consul (%s): choose another name, or remove it first (lictor remove)", scope, pair.Key)
			}
		}
	}
	return nil
}

// place fills in where the new shard is, and refuses a place that is taken.
func (s *Shard) place(cfg config.Config, o *RestoreOptions) (beside, error) {
	if o.DataDir == "" {
		o.DataDir = filepath.Join(filepath.Dir(filepath.Clean(cfg.Postgres.DataDir)), o.As)
	}
	if o.File == "" {
		o.File = filepath.Join(filepath.Dir(s.site.Path), o.As+filepath.Ext(s.site.Path))
	}
	plan := beside{Scope: o.As}
	var err error
	for _, path := range []*string{&o.DataDir, &o.File} {
		if *path, err = filepath.Abs(*path); err != nil {
			return plan, usagef("%s: %w", *path, err)
		}
	}
	plan.DataDir = o.DataDir
	switch entries, err := os.ReadDir(o.DataDir); {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return plan, refusedf("--data-dir: %w", err)
	case len(entries) > 0:
		return plan, refusedf("--data-dir: %s is not empty", o.DataDir)
	}
	if _, err := os.Lstat(o.File); !errors.Is(err, fs.ErrNotExist) {
		return plan, refusedf("--file: %s exists already", o.File)
	}
	hosts, port, _ := config.SplitAddress(cfg.Postgres.Listen) // it was checked when the file was read
	if plan.PostgresPort, err = freePort(hosts, port, o.Port); err != nil {
		return plan, fmt.Errorf("--port: %w", err)
	}
	hosts, port, _ = config.SplitAddress(cfg.RestAPI.Listen)
	if plan.APIPort, err = freePort(hosts, port, o.APIPort); err != nil {
		return plan, fmt.Errorf("--api-port: %w", err)
	}
	if plan.APIPort == plan.PostgresPort {
		return plan, usagef("--port and --api-port: both are %s", plan.APIPort)
	}
	return plan, nil
}

// existing is the directory that a path lies in, as far as there is one.
func existing(path string) string {
	for {
		if _, err := os.Stat(path); err == nil || path == filepath.Dir(path) {
			return path
		}
		path = filepath.Dir(path)
	}
}

// check looks whether a shard can be restored to a moment, in a directory, and touches nothing but
// the archive, which is brought up to now.
func (s *Shard) check(ctx context.Context, c *Console, repository backup.Repository, snapshot cluster.Snapshot, target time.Time, label, dir string) (restoration, error) {
	wanted := backup.Wanted{Target: target, Label: label, System: snapshot.Initialize.Value, Timeline: presentTimeline(snapshot), Dir: dir}
	switch {
	case wanted.System == "":
		return restoration{}, refusedf("Consul does not know the system identifier of %s (the key initialize), by which its backups are told from others", s.Scope)
	case wanted.Timeline == 0:
		return restoration{}, refusedf("Consul does not know the timeline of %s: it has neither a leader nor a route", s.Scope)
	}
	// Where the archive is behind it may lack the history of the present timeline: that is no refusal yet.
	if _, err := repository.Plan(ctx, wanted); err != nil && !errors.As(err, new(backup.HistoryError)) {
		return restoration{}, refusal(err)
	}
	if err := s.archive(ctx, c, snapshot); err != nil {
		c.Warn("warning: the archive could not be brought up to now: %s", Explain(err))
	}
	plan, err := repository.Plan(ctx, wanted)
	if err != nil {
		return restoration{}, refusal(err)
	}
	archived, err := repository.Reaches(ctx, plan)
	return restoration{Plan: plan, archived: archived}, refusal(err)
}

// refusal is why a recovery is not possible, with the option that asks for it.
func refusal(err error) error {
	var refused backup.Refusal
	switch {
	case !errors.As(err, &refused):
		return err
	case refused.Field == backup.FieldTarget:
		return refusedf("--to: %w", refused.Why)
	case refused.Field == backup.FieldLabel:
		return refusedf("--from-backup: %w", refused.Why)
	}
	return refusedf("%w: make room, or restore beside the shard to another disk (--as, --data-dir)", refused.Why)
}

// presentTimeline is the one that a shard is on; zero: Consul does not know.
func presentTimeline(snapshot cluster.Snapshot) int {
	if leader, ok := snapshot.Member(snapshot.LeaderName()); ok && leader.Value.Timeline > 0 {
		return leader.Value.Timeline
	}
	return snapshot.Route.Value.Timeline
}

// archive has the leader archive what there is: a recovery ends at a commit after its target, so
// there must be one, and it must be in the archive.
func (s *Shard) archive(ctx context.Context, c *Console, snapshot cluster.Snapshot) error {
	leader, err := s.leader(snapshot)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, archiveLimit)
	defer cancel()
	conn, err := s.site.connect(ctx, leader, QueryOptions{})
	if err != nil {
		return err
	}
	defer hangUp(conn)
	if err := archives(ctx, conn); err != nil { // no waiting helps
		return fmt.Errorf("on %s: %w", leader.Name, err)
	}
	var segment string
	if _, err := conn.Exec(ctx, "SELECT pg_catalog.txid_current()"); err != nil {
		return fmt.Errorf("on %s: %w", leader.Name, err)
	}
	if err := conn.QueryRow(ctx, "SELECT pg_catalog.pg_walfile_name(pg_catalog.pg_switch_wal())").Scan(&segment); err != nil {
		return fmt.Errorf("on %s: %w", leader.Name, err)
	}
	if archivedUpTo(ctx, conn, segment) == nil {
		return nil
	}
	c.Say("waiting until %s has archived its last WAL, %s at the most", leader.Name, Duration(archiveLimit))
	return await(ctx, func(ctx context.Context) error { return archivedUpTo(ctx, conn, segment) })
}

// archives returns an error if a primary gives no WAL to the archive.
func archives(ctx context.Context, conn *pgx.Conn) error {
	var mode, command string
	err := conn.QueryRow(ctx, "SELECT current_setting('archive_mode'), COALESCE(NULLIF(current_setting('archive_library', true), ''), current_setting('archive_command'))").Scan(&mode, &command)
	switch {
	case err != nil:
		return fmt.Errorf("archive_mode: %w", err)
	case mode == "off":
		return errors.New("archive_mode is off")
	case command == "":
		return errors.New("archive_command is empty")
	}
	return nil
}

// archivedUpTo reports an error until a segment was archived.
func archivedUpTo(ctx context.Context, conn *pgx.Conn, segment string) error {
	const segmentName = 24
	var last, failed string
	err := conn.QueryRow(ctx, "SELECT coalesce(last_archived_wal, ''), CASE WHEN last_failed_time > coalesce(last_archived_time, '-infinity') THEN last_failed_wal ELSE '' END"+
		" FROM pg_catalog.pg_stat_archiver").Scan(&last, &failed)
	switch {
	case err != nil:
		return fmt.Errorf("the archiver: %w", err)
	case len(last) >= segmentName && last[:segmentName] >= segment:
		return nil
	case failed != "":
		return fmt.Errorf("the archive_command has failed for %s", failed)
	}
	return fmt.Errorf("%s is not archived yet", segment)
}

// besideBootstrap is the section bootstrap of the new shard.
func besideBootstrap(cfg config.Config, snapshot cluster.Snapshot, plan beside, r restoration) (map[string]any, error) {
	dynamic, err := parseStored(snapshot.Config.Value)
	if err != nil {
		return nil, fmt.Errorf("the shard's dynamic configuration: %w", err)
	}
	command := cfg.Lictor.Backup.InForce().Command
	for _, option := range []string{
		"--stanza=" + cfg.Lictor.Backup.Stanza, "--set=" + r.From.Label, "--pg1-path=" + plan.DataDir, "--tablespace-map-all=" + plan.DataDir + ".tablespaces",
		"--type=time", "--target=" + backup.TargetText(r.Target), "--target-timeline=" + strconv.Itoa(r.Line.Timeline), "restore",
	} {
		command += " " + shellWord(option)
	}
	return map[string]any{
		"dcs": dynamicBeside(dynamic), "method": "pgbackrest",
		"pgbackrest": map[string]any{"command": command, "no_params": true, "keep_existing_recovery_conf": true},
	}, nil
}

// shellWord quotes a word as shells and shlex take it.
func shellWord(word string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_=/.:,+@%", r)
	}
	if !slices.ContainsFunc([]rune(word), func(r rune) bool { return !plain(r) }) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'"'"'`) + "'"
}

// besideFile is the new shard's configuration, made of the member's.
func (s *Site) besideFile(cfg config.Config, plan beside) ([]byte, error) {
	content, err := os.ReadFile(s.Path)
	if err != nil {
		return nil, Usage(err)
	}
	edits, err := plan.edits(cfg)
	if err != nil {
		return nil, err
	}
	heading := fmt.Sprintf("# %s restored as %s by lictor restore, made from %s: docs/backups.md.", cfg.Scope, plan.Scope, s.Path)
	made, err := editYAML(content, heading, edits)
	if err != nil {
		return nil, usagef("--config: %s: %w", s.Path, err)
	}
	return made, nil
}

// install writes the new shard's file once an agent would take it, and would be the new shard's.
func (s *Site) install(o RestoreOptions, cfg config.Config, plan beside, content []byte) error {
	keeper := osuser.Keeper(o.File)
	var dir string
	err := keeper.Do(func() (err error) {
		dir, err = os.MkdirTemp(filepath.Dir(o.File), ".lictor-restore-")
		return err
	})
	if err != nil {
		return fmt.Errorf("writing %s: %w", o.File, err)
	}
	defer keeper.RemoveAll(dir)
	trial := filepath.Join(dir, filepath.Base(o.File))
	if err := keeper.Do(func() error { return writeLike(trial, s.Path, content) }); err != nil {
		return err
	}
	made, _, err := config.Load(config.Source{Path: trial, Environ: o.Environ})
	if err != nil {
		return fmt.Errorf("the file that was made of %s is not valid: %w", s.Path, err)
	}
	for what, differs := range map[string]bool{
		"scope":                                   made.Scope != plan.Scope,
		"postgresql.data_dir":                     made.Postgres.DataDir != plan.DataDir,
		"postgresql.config_dir":                   made.Postgres.ConfigDir != "",
		"log.dir":                                 made.Log.Dir != "",
		"postgresql.listen":                       !strings.HasSuffix(made.Postgres.Listen, ":"+plan.PostgresPort),
		"restapi.listen":                          !strings.HasSuffix(made.RestAPI.Listen, ":"+plan.APIPort),
		"lictor.backup":                           made.Lictor.Backup.Stanza != "",
		"postgresql.callbacks":                    made.Postgres.Callbacks != config.Callbacks{},
		"postgresql.recovery_conf":                len(made.Postgres.RecoveryConf) > 0,
		"postgresql.create_replica_methods":       len(made.Postgres.CreateReplica) > 0,
		"postgresql.parameters":                   !isBeside(made.Postgres.Parameters),
		"namespace (the new shard would be lost)": made.Namespace != cfg.Namespace,
	} {
		if differs {
			return refusedf("%s: the environment sets it, over any file: unset it, and start the new agent without it", what)
		}
	}
	if err := keeper.Do(func() error { return os.Link(trial, o.File) }); err != nil {
		return fmt.Errorf("writing %s: %w", o.File, err)
	}
	return nil
}
