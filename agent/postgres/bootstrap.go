package postgres

import (
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lictor-ha/lictor/agent/cluster/pgauth"
	"github.com/lictor-ha/lictor/agent/config"
)

// bootstrapper makes the first member of a shard.
type bootstrapper struct {
	*installation
	*confFiles
	*dataDirectory
	*session
	*checker
	*server
	*scripts
	*customMethods
}

// Bootstrap makes the data directory of a new shard: initdb or the user's own
// method, roles, the user's own command. While it does, PostgreSQL listens on a private socket alone. It is
// stopped again in the end and still marked as our own work: FinishBootstrap is to
// be called when Consul knows the shard. Whatever happens on the way, the marker
// says that the directory is ours to clear away.
func (p *bootstrapper) Bootstrap(ctx context.Context, b config.Bootstrap) (systemIdentifier string, err error) {
	fill := p.initdbBootstrap
	if b.Method != "" && b.Method != "initdb" {
		fill = p.customBootstrap
	}
	if err := p.killMethods(ctx); err != nil { // of an agent that was killed
		return "", err
	}
	if systemIdentifier, err = fill(ctx, b); err != nil {
		return "", err
	}
	return systemIdentifier, p.markFinished(systemIdentifier)
}

// initdbBootstrap is the method that is built in.
func (p *bootstrapper) initdbBootstrap(ctx context.Context, b config.Bootstrap) (systemIdentifier string, err error) {
	options, err := initdbOptions(b.InitDB)
	if err != nil {
		return "", err
	}
	if err := p.mark(markBootstrap, ""); err != nil {
		return "", err
	}
	if err := p.initdb(ctx, options); err != nil {
		return "", err
	}
	if _, err := p.furnish(); err != nil {
		return "", err
	}
	if err := p.bootstrapHBA(b); err != nil {
		return "", err
	}
	control, err := p.control(ctx)
	if err != nil {
		return "", err
	}
	if err := p.privately(ctx, control, as{role: Primary}, func(socketDir string) error { return p.makeRoles(ctx, socketDir, b) }); err != nil {
		return "", err
	}
	return control.SystemIdentifier, nil
}

// FinishBootstrap says that the bootstrapped data directory is the shard's.
func (p *bootstrapper) FinishBootstrap() error {
	if err := p.endLoss(); err != nil { // what was noted is of another shard
		return err
	}
	return p.unmark()
}

// initdbOptions turns bootstrap.initdb into arguments: names, and maps of a name
// to its value. Some are the agent's own, or would make what is no data
// directory to rely on.
func initdbOptions(list []any) ([]string, error) {
	var args []string
	add := func(name string, value any) error {
		name = strings.TrimLeft(name, "-")
		bare, _, _ := strings.Cut(name, "=")
		if config.OwnOption("initdb", bare) {
			return fmt.Errorf("bootstrap.initdb: %s must not be set: Lictor sets it itself", bare)
		}
		switch value {
		case nil, true:
			args = append(args, "--"+name)
		case false:
		default:
			args = append(args, "--"+name+"="+fmt.Sprint(value))
		}
		return nil
	}
	for _, option := range list {
		switch o := option.(type) {
		case string:
			if err := add(o, nil); err != nil {
				return nil, err
			}
		case map[string]any:
			for _, name := range slices.Sorted(maps.Keys(o)) {
				if err := add(name, o[name]); err != nil {
					return nil, err
				}
			}
		default:
			return nil, fmt.Errorf("bootstrap.initdb: %v must be the name of an option, or a map of one name to its value", option)
		}
	}
	return args, nil
}

func (p *bootstrapper) initdb(ctx context.Context, options []string) error {
	super := p.local.Load().Authentication.Superuser
	args := append([]string{"--pgdata=" + p.dataDir, "--username=" + super.Username}, options...)
	auth := slices.ContainsFunc(options, func(o string) bool { return strings.HasPrefix(o, "--auth") })
	if super.Password != "" {
		// Under a name of its own: one that a killed agent left is found.
		file := p.stateFile("pwfile")
		defer p.disk.Remove(file)
		if err := p.writeFile(file, super.Password+"\n"); err != nil {
			return err
		}
		args = append(args, "--pwfile="+file)
		if !auth {
			args = append(args, "--auth=scram-sha-256")
		}
	} else if !auth {
		// initdb's own default would let every user of this host in.
		args = append(args, "--auth-local=peer", "--auth-host=scram-sha-256")
	}
	_, err := p.runOnData(ctx, nil, "initdb", args...)
	return err
}

// bootstrapHBA writes who may log in, unless postgresql.pg_hba will: the lines of
// bootstrap.pg_hba after initdb's, or, without any, the agent's own roles and
// everybody with a password.
func (p *bootstrapper) bootstrapHBA(b config.Bootstrap) error {
	lines := b.PgHBA
	if len(lines) == 0 {
		replication := p.local.Load().Authentication.Replication.Username
		lines = []string{
			"host replication " + quoteHBA(replication) + " all scram-sha-256",
			"host all all all scram-sha-256",
		}
	}
	path := p.inConf("pg_hba.conf")
	content, err := p.disk.ReadFile(path)
	if err != nil {
		return fmt.Errorf("pg_hba.conf: %w", err)
	}
	return p.writeConf(path, string(content)+"\n# from bootstrap.pg_hba\n"+strings.Join(lines, "\n")+"\n")
}

// quoteHBA writes a name as pg_hba.conf takes it: in double quotes, so that all, a
// leading + or @, a comma, a blank or a # means nothing special.
func quoteHBA(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

// privately runs PostgreSQL as a primary that only this process can reach: without
// TCP, on a socket in a directory of its own, after the recovery that run asks for.
func (p *bootstrapper) privately(ctx context.Context, control Control, run as, work func(socketDir string) error) error {
	dir, err := p.temporaryDir("lictor-")
	if err != nil {
		return fmt.Errorf("private directory: %w", err)
	}
	defer p.disk.RemoveAll(dir)
	hba := filepath.Join(dir, "hba")
	if err := p.writeFile(hba, "local all all trust\n"); err != nil {
		return err
	}
	p.judge(ctx)
	if err := p.writeConfig(run); err != nil {
		return err
	}
	if err := p.checkPlace(); err != nil {
		return fmt.Errorf("not started: %w", err)
	}
	p.private.Store(&dir)
	defer p.private.Store(nil)
	args := append(p.arguments(run, control), "--listen_addresses=", "--unix_socket_directories="+dir, "--hba_file="+hba,
		"--synchronous_standby_names=")
	if run.recovery != nil { // what the primary of the backup had is not known: only a hot standby asks
		args = append(args, "--hot_standby=off")
	}
	if run.archivesNothing {
		args = append(args, "--archive_command=false")
		if p.major >= archiveLibrarySince { // it would win over the command, or PostgreSQL refuse both
			args = append(args, "--archive_library=")
		}
	}
	if err := p.launch(ctx, run, args, false); err != nil {
		return err
	}
	if err := work(dir); err != nil {
		return err
	}
	return p.Stop(ctx, Fast)
}

// archiveLibrarySince is the first version that has archive_library.
const archiveLibrarySince = 15

// rewindFunctions are what pg_rewind needs of a role that is no superuser
// (PostgreSQL's documentation, pg_rewind, Notes).
var rewindFunctions = []string{ //nolint:gochecknoglobals // a table that nothing changes
	"pg_catalog.pg_ls_dir(text, boolean, boolean)", "pg_catalog.pg_stat_file(text, boolean)",
	"pg_catalog.pg_read_binary_file(text)", "pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean)",
}

func (p *bootstrapper) makeRoles(ctx context.Context, socketDir string, b config.Bootstrap) error {
	conn, err := p.anyDatabase(ctx)
	if err != nil {
		return err
	}
	defer hangUpOn(conn)
	auth := p.local.Load().Authentication
	// Also where initdb has made it: until version 13 it cuts passwords at 99 bytes.
	if err := createRole(ctx, conn, auth.Superuser, "LOGIN SUPERUSER"); err != nil {
		return err
	}
	if err := createRole(ctx, conn, auth.Replication, "LOGIN REPLICATION"); err != nil {
		return err
	}
	if auth.Rewind.Username != "" {
		if err := createRole(ctx, conn, auth.Rewind, "LOGIN"); err != nil {
			return err
		}
		for _, f := range rewindFunctions {
			if _, err := conn.Exec(ctx, "GRANT EXECUTE ON FUNCTION "+f+" TO "+pgx.Identifier{auth.Rewind.Username}.Sanitize()); err != nil {
				return fmt.Errorf("role %s: %w", auth.Rewind.Username, err)
			}
		}
	}
	for name, user := range b.Users {
		options := "LOGIN"
		for _, o := range user.Options {
			if !slices.Contains(config.RoleOptions(), strings.ToUpper(o)) {
				return fmt.Errorf("bootstrap.users.%s.options: %q: must be one of %s", name, o, strings.Join(config.RoleOptions(), ", "))
			}
			options += " " + strings.ToUpper(o)
		}
		if err := createRole(ctx, conn, config.PgUser{Username: name, Password: user.Password}, options); err != nil {
			return err
		}
	}
	if b.PostBootstrap != "" {
		dsn := fmt.Sprintf("host=%s port=%s user=%s dbname=%s", conninfoValue(socketDir), strconv.Itoa(p.port),
			conninfoValue(auth.Superuser.Username), conninfoValue(conn.Config().Database))
		if err := p.script(ctx, script{what: "post_bootstrap", command: b.PostBootstrap, args: []string{dsn}}); err != nil {
			return err
		}
	}
	return p.makeDatabase(ctx, conn)
}

// anyDatabase connects to postgresql.database, or while that is not made yet to one
// that initdb makes.
func (p *session) anyDatabase(ctx context.Context) (*pgx.Conn, error) {
	var (
		first   error
		missing *pgconn.PgError
	)
	for _, database := range []string{p.database(), "postgres", "template1"} {
		conn, err := p.connect(ctx, p.address(), p.port, p.local.Load().Authentication.Superuser, database, agentName)
		if err == nil {
			return conn, nil
		}
		if first == nil {
			first = err
		}
		if !errors.As(err, &missing) || missing.Code != "3D000" { // invalid_catalog_name
			break
		}
	}
	return nil, first
}

// makeDatabase makes postgresql.database where neither the restored cluster nor
// post_bootstrap has: the agent could not observe PostgreSQL without it.
func (p *bootstrapper) makeDatabase(ctx context.Context, conn *pgx.Conn) error {
	name := p.database()
	var there bool
	if err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_catalog.pg_database WHERE datname = $1)", name).Scan(&there); err != nil || there {
		return err
	}
	if _, err := conn.Exec(ctx, "CREATE DATABASE "+pgx.Identifier{name}.Sanitize()); err != nil {
		return fmt.Errorf("postgresql.database: making %s: %w", name, err)
	}
	p.log.Info().Str("database", name).Msg("made postgresql.database in the new shard")
	return nil
}

// createRole makes a role, or gives one that exists these options. The password
// never stands in PostgreSQL's log: logging of statements is off for it.
func createRole(ctx context.Context, conn *pgx.Conn, role config.PgUser, options string) error {
	name := pgx.Identifier{role.Username}.Sanitize()
	for _, sql := range []string{"SET log_statement = 'none'", "SET log_min_error_statement = 'panic'", "SET log_min_duration_statement = -1"} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("role %s: %w", role.Username, err)
		}
	}
	var there bool
	if err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = $1)", role.Username).Scan(&there); err != nil {
		return fmt.Errorf("role %s: %w", role.Username, err)
	}
	verb := "CREATE"
	if there {
		verb = "ALTER"
	}
	if _, err := conn.Exec(ctx, verb+" ROLE "+name+" WITH "+options); err != nil {
		return fmt.Errorf("role %s: %w", role.Username, err)
	}
	if role.Password == "" {
		return nil
	}
	if _, err := conn.Exec(ctx, "SET password_encryption = 'scram-sha-256'"); err != nil {
		return fmt.Errorf("role %s: %w", role.Username, err)
	}
	password, err := scramVerifier(role.Password)
	if err != nil {
		return fmt.Errorf("role %s: %w", role.Username, err)
	}
	if _, err := conn.Exec(ctx, "ALTER ROLE "+name+" PASSWORD "+literal(password)); err != nil {
		return fmt.Errorf("role %s: its password was not accepted", role.Username)
	}
	return nil
}

// scramVerifier is what PostgreSQL keeps of a password (RFC 5803), made here so
// that the password itself stays out of logs and pg_stat_statements.
func scramVerifier(password string) (string, error) {
	const iterations = 4096 // PostgreSQL's own default
	salt := make([]byte, 16)
	if _, err := rand.Read(salt); err != nil {
		return "", fmt.Errorf("salt: %w", err)
	}
	salted, err := pbkdf2.Key(sha256.New, pgauth.Prepare(password), salt, iterations, sha256.Size)
	if err != nil {
		return "", fmt.Errorf("password: %w", err)
	}
	mac := func(text string) []byte {
		h := hmac.New(sha256.New, salted)
		h.Write([]byte(text))
		return h.Sum(nil)
	}
	stored := sha256.Sum256(mac("Client Key"))
	encode := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", iterations, encode(salt), encode(stored[:]), encode(mac("Server Key"))), nil
}

// literal quotes text for SQL with standard_conforming_strings on.
func literal(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }
