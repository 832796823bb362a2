package pgbouncer

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
)

// Database is a row of SHOW DATABASES.
type Database struct {
	Name string
	// Host is as in the file, a list included; empty: a unix socket.
	Host     string
	Port     int
	Database string
	PoolSize int
	PoolMode string
	// ForceUser is the user of all its server connections; empty: that of the client.
	ForceUser string
	// Connections is the number of server connections now.
	Connections int
	Paused      bool
	Disabled    bool
}

// Pool is a row of SHOW POOLS.
type Pool struct {
	Database, User                        string
	ClientsActive, ClientsWaiting         int
	ServersActive, ServersIdle            int
	ServersUsed, ServersTested, ServersIn int
	// MaxWait is how long the oldest waiting client has waited.
	MaxWait time.Duration
}

// Server is a row of SHOW SERVERS: one connection to PostgreSQL.
type Server struct {
	Database, User, State string
	Addr                  string
	Port                  int
	LocalAddr             string
	LocalPort             int
	// Link is the Ptr of the client that has the connection.
	Link string
	// CloseNeeded: PgBouncer closes it when its transaction has ended, as its database leads
	// elsewhere by now, for instance.
	CloseNeeded bool
}

// Client is a row of SHOW CLIENTS.
type Client struct {
	Database, User, State string
	Ptr                   string
	// Link is the server connection that the client has.
	Link string
	// ID is what KILL_CLIENT takes; empty before PgBouncer 1.24.
	ID string
}

// Setting is a row of SHOW CONFIG.
type Setting struct {
	Value string
	// Changeable says that RELOAD makes a new value take effect.
	Changeable bool
}

// row is one row of an answer; all rows of an answer share columns, as there may be
// thousands.
type row struct {
	columns map[string]int
	values  [][]byte
}

// text is a column's value, empty when there is none.
func (r row) text(column string) string {
	if i, found := r.columns[column]; found && i < len(r.values) {
		return string(r.values[i])
	}
	return ""
}

func (r row) number(column string) int {
	i, found := r.columns[column]
	if !found {
		return 0
	}
	return numberOf(r.at(i))
}

func (r row) yes(column string) bool {
	i, found := r.columns[column]
	return found && isYes(r.at(i))
}

// at is the value of the column of that number, nothing when there is none.
func (r row) at(column int) []byte {
	if column < 0 || column >= len(r.values) {
		return nil
	}
	return r.values[column]
}

// numberOf is the number that a value is; an absent or empty one counts as 0.
func numberOf(value []byte) int {
	n, _ := strconv.Atoi(string(value))
	return n
}

func isYes(value []byte) bool {
	switch strings.ToLower(string(value)) {
	case "1", "t", "true", "yes":
		return true
	}
	return false
}

// need fails when the console's answer lacks a column that decisions rest on: a
// zero in its place would be taken for a fact.
func need(rows []row, command string, columns ...string) error {
	if len(rows) == 0 {
		return nil
	}
	for _, c := range columns {
		if _, found := rows[0].columns[c]; !found {
			return fmt.Errorf("%s: the answer has no column %q; this version of PgBouncer is not supported", command, c)
		}
	}
	return nil
}

// Databases is SHOW DATABASES by name, without the console itself.
func (c *Conn) Databases(ctx context.Context) (map[string]Database, error) {
	answer := newDatabases(c.databases)
	if err := c.each(ctx, showDatabases, answer.add); err != nil {
		return nil, err
	}
	c.databases = answer.all
	return answer.all, nil
}

const showDatabases = "SHOW DATABASES"

// databases is an answer to SHOW DATABASES that comes row by row. Of thousands few are others
// than in the answer before, whose texts are used again.
type databases struct {
	before, all map[string]Database
	columns     map[string]int
	name, host, port, database, poolSize, poolMode,
	user, connections, paused, disabled int
}

func newDatabases(before map[string]Database) *databases {
	return &databases{before: before, all: make(map[string]Database, len(before))}
}

// begin notes where the columns are, once for all rows.
func (d *databases) begin(r row) error {
	if err := need([]row{r}, showDatabases, "name", "host", "port", "database", "paused"); err != nil {
		return err
	}
	at := func(column string) int {
		if i, found := r.columns[column]; found {
			return i
		}
		return -1
	}
	d.columns, d.name, d.host, d.port, d.database = r.columns, at("name"), at("host"), at("port"), at("database")
	d.poolSize, d.poolMode, d.user = at("pool_size"), at("pool_mode"), at("force_user")
	d.connections, d.paused, d.disabled = at("current_connections"), at("paused"), at("disabled")
	return nil
}

func (d *databases) add(r row) error {
	if d.columns == nil {
		if err := d.begin(r); err != nil {
			return err
		}
	}
	name := r.at(d.name)
	if string(name) == "pgbouncer" {
		return nil
	}
	before := d.before[string(name)]
	one := Database{
		Name: again(before.Name, name), Host: again(before.Host, r.at(d.host)), Port: numberOf(r.at(d.port)),
		Database: again(before.Database, r.at(d.database)), PoolSize: numberOf(r.at(d.poolSize)), PoolMode: again(before.PoolMode, r.at(d.poolMode)),
		ForceUser: again(before.ForceUser, r.at(d.user)), Connections: numberOf(r.at(d.connections)),
		Paused: isYes(r.at(d.paused)), Disabled: isYes(r.at(d.disabled)),
	}
	d.all[one.Name] = one
	return nil
}

// again is a text that was there before, if it is the same.
func again(before string, now []byte) string {
	if before == string(now) {
		return before
	}
	return string(now)
}

// Pools is SHOW POOLS, without the console's.
func (c *Conn) Pools(ctx context.Context) ([]Pool, error) {
	rows, err := c.exec(ctx, "SHOW POOLS")
	if err != nil {
		return nil, err
	}
	return pools(rows)
}

func pools(rows []row) ([]Pool, error) {
	const command = "SHOW POOLS"
	if err := need(rows, command, "database", "user", "cl_waiting", "sv_active"); err != nil {
		return nil, err
	}
	var list []Pool
	for _, r := range rows {
		if r.text("database") == "pgbouncer" {
			continue
		}
		list = append(list, Pool{
			Database: r.text("database"), User: r.text("user"),
			ClientsActive: r.number("cl_active"), ClientsWaiting: r.number("cl_waiting"),
			ServersActive: r.number("sv_active"), ServersIdle: r.number("sv_idle"),
			ServersUsed: r.number("sv_used"), ServersTested: r.number("sv_tested"), ServersIn: r.number("sv_login"),
			MaxWait: time.Duration(r.number("maxwait"))*time.Second + time.Duration(r.number("maxwait_us"))*time.Microsecond,
		})
	}
	return list, nil
}

// Servers is SHOW SERVERS.
func (c *Conn) Servers(ctx context.Context) ([]Server, error) {
	rows, err := c.exec(ctx, "SHOW SERVERS")
	if err != nil {
		return nil, err
	}
	return servers(rows)
}

func servers(rows []row) ([]Server, error) {
	const command = "SHOW SERVERS"
	if err := need(rows, command, "database", "state", "addr", "port", "local_port", "link"); err != nil {
		return nil, err
	}
	var list []Server
	for _, r := range rows {
		list = append(list, Server{
			Database: r.text("database"), User: r.text("user"), State: r.text("state"),
			Addr: r.text("addr"), Port: r.number("port"),
			LocalAddr: r.text("local_addr"), LocalPort: r.number("local_port"), Link: r.text("link"),
			CloseNeeded: r.yes("close_needed"),
		})
	}
	return list, nil
}

// Clients is SHOW CLIENTS.
func (c *Conn) Clients(ctx context.Context) ([]Client, error) {
	rows, err := c.exec(ctx, "SHOW CLIENTS")
	if err != nil {
		return nil, err
	}
	return clients(rows)
}

func clients(rows []row) ([]Client, error) {
	const command = "SHOW CLIENTS"
	if err := need(rows, command, "database", "state", "ptr", "link"); err != nil {
		return nil, err
	}
	var list []Client
	for _, r := range rows {
		list = append(list, Client{
			Database: r.text("database"), User: r.text("user"), State: r.text("state"), Ptr: r.text("ptr"), Link: r.text("link"), ID: r.text("id"),
		})
	}
	return list, nil
}

// Config is SHOW CONFIG by key.
func (c *Conn) Config(ctx context.Context) (map[string]Setting, error) {
	all := map[string]Setting{}
	err := c.each(ctx, showConfig, func(r row) error { return addSetting(all, r) })
	if err != nil {
		return nil, err
	}
	return all, nil
}

const showConfig = "SHOW CONFIG"

func addSetting(all map[string]Setting, r row) error {
	if len(all) == 0 {
		if err := need([]row{r}, showConfig, "key", "value", "changeable"); err != nil {
			return err
		}
	}
	all[r.text("key")] = Setting{Value: r.text("value"), Changeable: r.yes("changeable")}
	return nil
}

// Version is PgBouncer's, as three numbers.
type Version [3]int

// ParseVersion reads "PgBouncer 1.18.0" and the like.
func ParseVersion(s string) (Version, error) {
	m := regexp.MustCompile(`(\d+)\.(\d+)(?:\.(\d+))?`).FindStringSubmatch(s)
	if m == nil {
		return Version{}, fmt.Errorf("%q names no version of PgBouncer", s)
	}
	var v Version
	for i := range v {
		v[i], _ = strconv.Atoi(m[i+1]) // digits, or empty for a missing third part
	}
	return v, nil
}

// AtLeast compares with major.minor.
func (v Version) AtLeast(major, minor int) bool {
	return v[0] > major || v[0] == major && v[1] >= minor
}

func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v[0], v[1], v[2]) }

const showVersion = "SHOW VERSION"

// Version is SHOW VERSION.
func (c *Conn) Version(ctx context.Context) (Version, error) {
	rows, err := c.exec(ctx, showVersion)
	if err != nil {
		return Version{}, err
	}
	for _, r := range rows {
		if len(r.values) > 0 {
			return ParseVersion(string(r.values[0]))
		}
	}
	return Version{}, fmt.Errorf("SHOW VERSION on PgBouncer at %s: no answer", c.address)
}

// Reload makes PgBouncer read its file again. It is not atomic, and before 1.25
// errors in the file are only in PgBouncer's log: read back what must stand.
func (c *Conn) Reload(ctx context.Context) error {
	_, err := c.exec(ctx, reload)
	return err
}

const reload = "RELOAD"

// ReloadAndShow is Reload, Databases and, if that is wanted, Config, all sent at once: PgBouncer goes
// from one to the next without waiting for us.
func (c *Conn) ReloadAndShow(ctx context.Context, config bool) (map[string]Database, map[string]Setting, error) {
	answer, settings := newDatabases(c.databases), map[string]Setting{}
	queries := []query{{command: reload, take: func(row) error { return nil }}, {command: showDatabases, take: answer.add}}
	if config {
		queries = append(queries, query{command: showConfig, take: func(r row) error { return addSetting(settings, r) }})
	}
	if err := c.pipeline(ctx, queries); err != nil {
		return nil, nil, err
	}
	c.databases = answer.all
	return answer.all, settings, nil
}

// Pause makes new queries of a database wait, at once, and returns when no
// transaction runs any more, which may be never. Cut off, the database stays
// paused. A Resume on another connection leaves a waiting Pause hanging.
func (c *Conn) Pause(ctx context.Context, database string) error {
	_, err := c.exec(ctx, "PAUSE "+argument(database))
	return err
}

// commandBatch is how many commands are sent before their answers are read.
const commandBatch = 200

// StartPauses makes new queries of the databases wait, and returns when PgBouncer has
// accepted that, not when their transactions have ended: it answers a PAUSE only when
// those of all paused databases have. unanswered says how many answers are still to
// come; while any is, the connection is good for AwaitPaused and Close alone. An error
// that is ErrRefused is that of single databases, the others are paused.
func (c *Conn) StartPauses(ctx context.Context, databases []string) (unanswered int, err error) {
	var refused []error
	for batch := range slices.Chunk(databases, commandBatch) {
		front := c.pg.Frontend()
		for _, name := range batch {
			front.Send(&pgproto3.Query{String: "PAUSE " + argument(name)})
		}
		front.Send(&pgproto3.Query{String: showVersion}) // answered when all before it were taken
		if err := front.Flush(); err != nil {
			return 0, fmt.Errorf("PAUSE on PgBouncer at %s: %w: %w", c.address, ErrUnreachable, err)
		}
		unanswered += len(batch)
		for marked, done := false, false; !done; {
			message, err := c.pg.ReceiveMessage(ctx)
			if err != nil {
				return 0, fmt.Errorf("PAUSE on PgBouncer at %s: %w: %w", c.address, ErrUnreachable, err)
			}
			switch m := message.(type) {
			case *pgproto3.RowDescription:
				marked = true
			case *pgproto3.ErrorResponse:
				unanswered--
				refused = append(refused, fmt.Errorf("PAUSE on PgBouncer at %s: %w: %s", c.address, ErrRefused, m.Message))
			case *pgproto3.CommandComplete:
				if !marked {
					unanswered--
				}
			case *pgproto3.ReadyForQuery:
				done = marked
			}
		}
	}
	return unanswered, errors.Join(refused...)
}

// AwaitPaused waits for an answer that StartPauses has left: the transactions of all
// paused databases have ended.
func (c *Conn) AwaitPaused(ctx context.Context) error {
	if _, err := c.pg.ReceiveMessage(ctx); err != nil {
		return fmt.Errorf("PAUSE on PgBouncer at %s: %w: %w", c.address, ErrUnreachable, err)
	}
	return nil
}

// Resume ends a pause. It is an error (ErrRefused) when the database is not
// paused.
func (c *Conn) Resume(ctx context.Context, database string) error {
	_, err := c.exec(ctx, "RESUME "+argument(database))
	return err
}

// ResumeAll ends the pauses of databases, of which there may be thousands. refused are those that
// PgBouncer does not take for paused; the others are released.
func (c *Conn) ResumeAll(ctx context.Context, databases []string) (refused map[string]error, err error) {
	refused = map[string]error{}
	for batch := range slices.Chunk(databases, commandBatch) {
		queries := make([]query, len(batch))
		for i, name := range batch {
			queries[i] = query{command: "RESUME " + argument(name), take: func(row) error { return nil }, refused: func(err error) { refused[name] = err }}
		}
		if err := c.pipeline(ctx, queries); err != nil {
			return refused, err
		}
	}
	return refused, nil
}

// Enable lets clients log in to a database, which they may unless it was disabled. It also has
// PgBouncer show one that its database * has made and that it takes for idle.
func (c *Conn) Enable(ctx context.Context, database string) error {
	_, err := c.exec(ctx, "ENABLE "+argument(database))
	return err
}

// KillClient drops one client (PgBouncer 1.24 and later).
func (c *Conn) KillClient(ctx context.Context, id string) error {
	if strings.Trim(id, "0123456789") != "" || id == "" {
		return fmt.Errorf("KILL_CLIENT: %q is not the id of a client", id)
	}
	_, err := c.exec(ctx, "KILL_CLIENT "+id)
	return err
}

// maxArgument is the longest argument of a command that the console reads, in bytes, quotes included.
const maxArgument = 63

// IsCommandable reports whether the console takes the name of a database in a command ("bad arguments" says that it
// does not): a database may have one of 63 bytes.
func IsCommandable(name string) bool {
	return len(name) < maxArgument/2 || len(argument(name)) <= maxArgument
}

// argument writes the name of a database for a command, in quotes only where it needs them.
func argument(name string) string {
	if bare := strings.IndexFunc(name, func(r rune) bool { return !isPlainRune(r) || r == '-' || r == '.' }) < 0; bare && name != "" {
		return name
	}
	return quoteName(name)
}

// quoteName writes a database name as the console's parser expects it.
func quoteName(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

// Figures are one row of an answer of the console as it is, by column.
type Figures struct{ row row }

// Text is a column's value, empty when the answer has no such column.
func (f Figures) Text(column string) string { return f.row.text(column) }

// Number is a column's value; it reports false when the answer has no such column, as
// one of an older PgBouncer, or when it is no number.
func (f Figures) Number(column string) (float64, bool) {
	n, err := strconv.ParseFloat(f.row.text(column), 64)
	return n, err == nil
}

// Show is the answer to SHOW what, the console's own rows included.
func (c *Conn) Show(ctx context.Context, what string) ([]Figures, error) {
	rows, err := c.exec(ctx, "SHOW "+what)
	if err != nil {
		return nil, err
	}
	all := make([]Figures, len(rows))
	for i, r := range rows {
		all[i] = Figures{r}
	}
	return all, nil
}
