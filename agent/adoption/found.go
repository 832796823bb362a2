package adoption

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/lictor-ha/lictor/agent/cluster/pgauth"
)

// Found is what a running PostgreSQL says of itself.
type Found struct {
	Version          int    `json:"version"` // 150014
	SystemIdentifier string `json:"system_identifier"`
	Standby          bool   `json:"standby"`
	User             string `json:"user"` // who has asked
	Superuser        bool   `json:"superuser"`

	DataDirectory string `json:"data_directory"`
	ConfigFile    string `json:"config_file"`
	HBAFile       string `json:"hba_file"`
	IdentFile     string `json:"ident_file"`
	BinDir        string `json:"bin_dir"`

	ListenAddresses string `json:"listen_addresses"`
	Port            int    `json:"port"`
	Sockets         string `json:"unix_socket_directories"`
	ClusterName     string `json:"cluster_name"`
	// Agent: one of Lictor's runs it already.
	Agent bool `json:"agent"`

	// Settings are those that a file, the command line or the environment has given another
	// value than PostgreSQL's own.
	Settings []Setting `json:"-"`
	// InForce are values that findings are about, whoever has set them.
	InForce map[string]string `json:"-"`

	HBA         []string `json:"-"` // lines, without comments
	Ident       []string `json:"-"`
	HBAProblems []string `json:"-"`

	Roles        []Role       `json:"-"`
	Rewinders    []string     `json:"-"` // roles that are no superusers and may run pg_rewind
	Tablespaces  []Tablespace `json:"tablespaces"`
	LogicalSlots []string     `json:"logical_slots"`
	Standbys     []Connected  `json:"standbys"` // who streams from here
	Upstream     Upstream     `json:"upstream"` // of a standby
}

// Setting is a parameter and its value, with its unit.
type Setting struct{ Name, Value, File string }

// Role is one that may replicate.
type Role struct {
	Name      string
	Superuser bool
}

// Tablespace is one besides PostgreSQL's own.
type Tablespace struct {
	Name     string `json:"name"`
	Location string `json:"location"`
}

// Connected is a standby as its upstream sees it.
type Connected struct {
	User    string `json:"user"`
	Name    string `json:"name"` // application_name
	Address string `json:"address"`
	State   string `json:"state"`
	Sync    string `json:"sync"`
}

// Upstream is whom a standby follows. Its password is not kept.
type Upstream struct {
	Host      string `json:"host"`
	Port      string `json:"port"`
	User      string `json:"user"`
	Name      string `json:"name"` // application_name
	Slot      string `json:"slot"`
	Streaming bool   `json:"streaming"`
}

// Look asks the PostgreSQL that a connection string, libpq's variables and its defaults
// name. It must be a superuser that asks.
func Look(ctx context.Context, dsn string) (Found, error) {
	c, err := pgx.ParseConfig(dsn)
	if err != nil {
		// The text may have a password in it; what was wrong with it has none.
		if inner := errors.Unwrap(err); inner != nil {
			err = inner
		} else {
			err = errors.New("it is not a connection string of libpq's: KEY=VALUE with blanks between them, or postgresql://USER@HOST:PORT/DATABASE, PORT from 1 to 65535")
		}
		return Found{}, fmt.Errorf("--dsn: %w", err)
	}
	if c.Database == "" {
		c.Database = "postgres"
	}
	c.RuntimeParams = map[string]string{
		"application_name": "Lictor generate-config", "search_path": "", "default_transaction_read_only": "on", "client_encoding": "UTF8",
		"default_transaction_isolation": "read committed", "datestyle": "ISO",
	}
	conn, err := pgauth.Connect(&c.Config, func() (*pgx.Conn, error) { return pgx.ConnectConfig(ctx, c) })
	if err != nil {
		return Found{}, fmt.Errorf("connecting to PostgreSQL: %w; see that it runs here, and say where and as whom with --dsn (or PGHOST, PGPORT, PGUSER)", err)
	}
	defer conn.Close(ctx)
	var f Found
	if err := conn.QueryRow(ctx, "SELECT current_user, rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user").Scan(&f.User, &f.Superuser); err != nil {
		return Found{}, fmt.Errorf("asking PostgreSQL who asks: %w", err)
	}
	if !f.Superuser {
		return Found{}, fmt.Errorf("%s is no superuser: connect as one, as the operating system's user postgres for instance (runuser -u postgres -- lictor generate-config ...)", f.User)
	}
	for _, look := range []func(context.Context, *pgx.Conn) error{f.itself, f.settings, f.access, f.roles, f.replication} {
		if err := look(ctx, conn); err != nil {
			return Found{}, fmt.Errorf("asking PostgreSQL of itself: %w", err)
		}
	}
	return f, nil
}

// itself asks what it is; an agent of Lictor's keeps a session open, by whose name it is known.
func (f *Found) itself(ctx context.Context, conn *pgx.Conn) error {
	return conn.QueryRow(ctx, `SELECT current_setting('server_version_num')::int, (SELECT system_identifier::text FROM pg_catalog.pg_control_system()),
		pg_catalog.pg_is_in_recovery(), current_setting('data_directory'), current_setting('config_file'), current_setting('hba_file'), current_setting('ident_file'),
		(SELECT setting FROM pg_catalog.pg_config WHERE name = 'BINDIR'), current_setting('listen_addresses'), current_setting('port')::int,
		current_setting('unix_socket_directories'), current_setting('cluster_name'),
		EXISTS (SELECT FROM pg_catalog.pg_stat_activity WHERE application_name = 'Lictor' AND backend_type = 'client backend')`).
		Scan(&f.Version, &f.SystemIdentifier, &f.Standby, &f.DataDirectory, &f.ConfigFile, &f.HBAFile, &f.IdentFile, &f.BinDir, &f.ListenAddresses, &f.Port, &f.Sockets, &f.ClusterName, &f.Agent)
}

func (f *Found) settings(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, `SELECT name, current_setting(name), COALESCE(sourcefile, '') FROM pg_catalog.pg_settings
		WHERE source IN ('configuration file', 'command line', 'environment variable') AND setting IS DISTINCT FROM boot_val AND context <> 'internal'
		ORDER BY name`)
	if err == nil {
		f.Settings, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Setting])
	}
	if err != nil {
		return fmt.Errorf("its parameters: %w", err)
	}
	rows, err = conn.Query(ctx, "SELECT name, setting FROM pg_catalog.pg_settings WHERE name = ANY($1)",
		[]string{
			"wal_level", "max_wal_senders", "max_replication_slots", "max_connections", "max_worker_processes", "max_prepared_transactions",
			"max_locks_per_transaction", "wal_log_hints", "data_checksums", "synchronous_standby_names", "recovery_min_apply_delay", "stats_temp_directory",
			"archive_mode", "full_page_writes", "track_commit_timestamp",
		})
	if err != nil {
		return fmt.Errorf("its parameters: %w", err)
	}
	f.InForce = map[string]string{}
	var name, value string
	_, err = pgx.ForEachRow(rows, []any{&name, &value}, func() error { f.InForce[name] = value; return nil })
	return err
}

func (f *Found) access(ctx context.Context, conn *pgx.Conn) error {
	for file, lines := range map[string]*[]string{f.HBAFile: &f.HBA, f.IdentFile: &f.Ident} {
		var content string
		if err := conn.QueryRow(ctx, "SELECT pg_catalog.pg_read_file($1)", file).Scan(&content); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		for line := range strings.Lines(content) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
				*lines = append(*lines, strings.Join(strings.Fields(line), " "))
			}
		}
	}
	rows, err := conn.Query(ctx, "SELECT 'line ' || line_number || ': ' || error FROM pg_catalog.pg_hba_file_rules WHERE error IS NOT NULL ORDER BY line_number")
	if err == nil {
		f.HBAProblems, err = pgx.CollectRows(rows, pgx.RowTo[string])
	}
	return err
}

func (f *Found) roles(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, "SELECT rolname::text, rolsuper FROM pg_catalog.pg_roles WHERE rolreplication AND rolcanlogin ORDER BY rolsuper, rolname")
	if err == nil {
		f.Roles, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Role])
	}
	if err != nil {
		return fmt.Errorf("its roles: %w", err)
	}
	rows, err = conn.Query(ctx, `SELECT r.rolname::text FROM pg_catalog.pg_roles r WHERE r.rolcanlogin AND NOT r.rolsuper
		AND (SELECT bool_and(has_function_privilege(r.oid, f, 'EXECUTE')) FROM unnest(ARRAY['pg_catalog.pg_ls_dir(text, boolean, boolean)', 'pg_catalog.pg_stat_file(text, boolean)',
			'pg_catalog.pg_read_binary_file(text)', 'pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean)']) f) ORDER BY 1`)
	if err == nil {
		f.Rewinders, err = pgx.CollectRows(rows, pgx.RowTo[string])
	}
	return err
}

func (f *Found) replication(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, "SELECT spcname::text, pg_catalog.pg_tablespace_location(oid) FROM pg_catalog.pg_tablespace WHERE spcname NOT IN ('pg_default', 'pg_global') ORDER BY 1")
	if err == nil {
		f.Tablespaces, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Tablespace])
	}
	if err != nil {
		return fmt.Errorf("its tablespaces: %w", err)
	}
	rows, err = conn.Query(ctx, "SELECT slot_name::text FROM pg_catalog.pg_replication_slots WHERE slot_type = 'logical' ORDER BY 1")
	if err == nil {
		f.LogicalSlots, err = pgx.CollectRows(rows, pgx.RowTo[string])
	}
	if err != nil {
		return fmt.Errorf("its replication slots: %w", err)
	}
	rows, err = conn.Query(ctx, `SELECT usename::text, application_name, COALESCE(host(client_addr), ''), state, sync_state FROM pg_catalog.pg_stat_replication ORDER BY application_name`)
	if err == nil {
		f.Standbys, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Connected])
	}
	if err != nil || !f.Standby {
		return err
	}
	var conninfo string
	if err := conn.QueryRow(ctx, `SELECT current_setting('primary_conninfo'), current_setting('primary_slot_name'),
		EXISTS (SELECT FROM pg_catalog.pg_stat_wal_receiver WHERE status = 'streaming')`).Scan(&conninfo, &f.Upstream.Slot, &f.Upstream.Streaming); err != nil {
		return err
	}
	f.Upstream.read(conninfo)
	return nil
}

func (u *Upstream) read(conninfo string) {
	// One word of a connection string of the form name=value.
	conninfoPart := regexp.MustCompile(`(\w+)\s*=\s*('(?:[^'\\]|\\.)*'|\S*)`)
	for _, m := range conninfoPart.FindAllStringSubmatch(conninfo, -1) {
		value := strings.NewReplacer(`\\`, `\`, `\'`, `'`).Replace(strings.TrimSuffix(strings.TrimPrefix(m[2], "'"), "'"))
		switch m[1] {
		case "host":
			u.Host = value
		case "port":
			u.Port = value
		case "user":
			u.User = value
		case "application_name":
			u.Name = value
		}
	}
}

// version is 15.14 for 150014.
func (f Found) version() string {
	return strconv.Itoa(f.Version/10000) + "." + strconv.Itoa(f.Version%10000)
}
