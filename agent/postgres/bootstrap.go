package postgres

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/lictor-ha/lictor/agent/config"
)

// Bootstrap makes the data directory of a new shard: initdb, roles, the user's
// own command. While it does, PostgreSQL listens on a private socket alone. It is
// stopped again in the end and still marked as unfinished: FinishBootstrap is to
// be called when Consul knows the shard. Whatever happens on the way, the marker
// says that the directory is ours to clear away.
func (p *Instance) Bootstrap(ctx context.Context, b config.Bootstrap) (systemIdentifier string, err error) {
	if err := p.mark(markBootstrap); err != nil {
		return "", err
	}
	if err := p.initdb(ctx, b); err != nil {
		return "", err
	}
	if err := p.bootstrapHBA(b); err != nil {
		return "", err
	}
	control, err := p.control(ctx)
	if err != nil {
		return "", err
	}
	if err := p.privately(ctx, control, func(socketDir string) error { return p.makeRoles(ctx, socketDir, b) }); err != nil {
		return "", err
	}
	return control.SystemIdentifier, nil
}

// FinishBootstrap says that the bootstrapped data directory is the shard's.
func (p *Instance) FinishBootstrap() error { return p.unmark() }

func (p *Instance) initdb(ctx context.Context, b config.Bootstrap) error {
	super := p.local.Load().Authentication.Superuser
	args := []string{"--pgdata=" + p.dataDir, "--username=" + super.Username}
	auth := false
	for _, option := range b.InitDB {
		switch o := option.(type) {
		case string:
			args = append(args, "--"+o)
		case map[string]any:
			for name, value := range o {
				args = append(args, "--"+name+"="+fmt.Sprint(value))
				auth = auth || strings.HasPrefix(name, "auth")
			}
		}
	}
	if super.Password != "" {
		file, err := p.secretFile(super.Password)
		if err != nil {
			return err
		}
		defer os.Remove(file)
		args = append(args, "--pwfile="+file)
		if !auth {
			args = append(args, "--auth=scram-sha-256")
		}
	}
	_, err := p.run(ctx, nil, "initdb", args...)
	return err
}

// secretFile holds a password for a moment, readable to PostgreSQL's user alone.
func (p *Instance) secretFile(secret string) (string, error) {
	f, err := os.CreateTemp("", "lictor-")
	if err != nil {
		return "", fmt.Errorf("file for a password: %w", err)
	}
	defer f.Close()
	if err := p.own(f.Name()); err != nil {
		return "", err
	}
	if _, err := f.WriteString(secret + "\n"); err != nil {
		return "", fmt.Errorf("file for a password: %w", err)
	}
	return f.Name(), nil
}

// bootstrapHBA writes who may log in, unless postgresql.pg_hba will: the lines of
// bootstrap.pg_hba after initdb's, or, without any, the agent's own roles and
// everybody with a password.
func (p *Instance) bootstrapHBA(b config.Bootstrap) error {
	lines := b.PgHBA
	if len(lines) == 0 {
		replication := p.local.Load().Authentication.Replication.Username
		lines = []string{
			"host replication " + replication + " all scram-sha-256",
			"host all all all scram-sha-256",
		}
	}
	path := p.inData("pg_hba.conf")
	content, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("pg_hba.conf: %w", err)
	}
	return p.writeFile(path, string(content)+"\n# from bootstrap.pg_hba\n"+strings.Join(lines, "\n")+"\n")
}

// privately runs PostgreSQL as a primary that only this process can reach:
// without TCP, on a socket in a directory of its own.
func (p *Instance) privately(ctx context.Context, control Control, work func(socketDir string) error) error {
	dir, err := os.MkdirTemp("", "lictor-")
	if err != nil {
		return fmt.Errorf("private directory: %w", err)
	}
	defer os.RemoveAll(dir)
	if err := p.own(dir); err != nil {
		return err
	}
	hba := filepath.Join(dir, "hba")
	if err := p.writeFile(hba, "local all all trust\n"); err != nil {
		return err
	}
	if err := p.writeConfig(ctx, as{role: Primary}); err != nil {
		return err
	}
	host := p.host.Swap(&dir)
	defer p.host.Store(host)
	args := append(p.arguments(as{role: Primary}, control), "--listen_addresses=", "--unix_socket_directories="+dir, "--hba_file="+hba,
		"--synchronous_standby_names=")
	if err := p.launch(ctx, as{role: Primary}, args); err != nil {
		return err
	}
	if err := work(dir); err != nil {
		return err
	}
	return p.Stop(ctx, Fast)
}

// rewindFunctions are what pg_rewind needs of a role that is no superuser
// (PostgreSQL's documentation, pg_rewind, Notes).
var rewindFunctions = []string{
	"pg_catalog.pg_ls_dir(text, boolean, boolean)", "pg_catalog.pg_stat_file(text, boolean)",
	"pg_catalog.pg_read_binary_file(text)", "pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean)",
}

func (p *Instance) makeRoles(ctx context.Context, socketDir string, b config.Bootstrap) error {
	conn, err := p.dedicated(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // it is done with
	auth := p.local.Load().Authentication
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
			if !slices.Contains(roleOptions, strings.ToUpper(o)) {
				return fmt.Errorf("bootstrap.users.%s.options: %q: must be one of %s", name, o, strings.Join(roleOptions, ", "))
			}
			options += " " + strings.ToUpper(o)
		}
		if err := createRole(ctx, conn, config.PgUser{Username: name, Password: user.Password}, options); err != nil {
			return err
		}
	}
	if b.PostBootstrap == "" {
		return nil
	}
	dsn := fmt.Sprintf("host=%s port=%s user=%s dbname=postgres", conninfoValue(socketDir), strconv.Itoa(p.port), conninfoValue(auth.Superuser.Username))
	return p.script(ctx, "post_bootstrap", b.PostBootstrap, dsn)
}

// roleOptions are the options of CREATE ROLE that a bootstrap user may have.
var roleOptions = []string{
	"SUPERUSER", "NOSUPERUSER", "CREATEDB", "NOCREATEDB", "CREATEROLE", "NOCREATEROLE", "INHERIT", "NOINHERIT",
	"LOGIN", "NOLOGIN", "REPLICATION", "NOREPLICATION", "BYPASSRLS", "NOBYPASSRLS",
}

// createRole makes a role, or gives one that exists these options. The password
// never stands in PostgreSQL's log: logging of statements is off for it.
func createRole(ctx context.Context, conn *pgx.Conn, role config.PgUser, options string) error {
	name := pgx.Identifier{role.Username}.Sanitize()
	statement := fmt.Sprintf("DO $lictor$ BEGIN IF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = %s) THEN ALTER ROLE %s WITH %s; ELSE CREATE ROLE %s WITH %s; END IF; END $lictor$",
		literal(role.Username), name, options, name, options)
	for _, sql := range []string{"SET log_statement = 'none'", "SET log_min_error_statement = 'panic'", "SET log_min_duration_statement = -1", statement} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("role %s: %w", role.Username, err)
		}
	}
	if role.Password == "" {
		return nil
	}
	if _, err := conn.Exec(ctx, "SET password_encryption = 'scram-sha-256'"); err != nil {
		return fmt.Errorf("role %s: %w", role.Username, err)
	}
	if _, err := conn.Exec(ctx, "ALTER ROLE "+name+" PASSWORD "+literal(role.Password)); err != nil {
		return fmt.Errorf("role %s: its password was not accepted", role.Username)
	}
	return nil
}

// literal quotes text for SQL with standard_conforming_strings on.
func literal(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }
