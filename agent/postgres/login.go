package postgres

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/cluster/pgauth"
	"github.com/lictor-ha/lictor/agent/config"
)

// LoginConfig is how to connect to a PostgreSQL as a role. All that the role says of
// TLS goes along. The host stands in the text that is parsed: without one the driver
// takes the connection for one through a unix socket and drops TLS. What the role
// leaves open comes from libpq's variables and files.
func LoginConfig(host string, port int, role config.PgUser, database string) (*pgx.ConnConfig, error) {
	if filepath.IsAbs(host) && role.ChannelBinding == "require" {
		role.ChannelBinding = "" // a unix socket has no TLS that could be bound
	}
	text := ""
	for name, value := range map[string]string{
		"host": host, "port": strconv.Itoa(port), "user": role.Username, "dbname": database, "sslmode": role.SSLMode, "sslcert": role.SSLCert,
		"sslkey": role.SSLKey, "sslpassword": role.SSLPassword, "sslrootcert": role.SSLRootCert,
		"sslnegotiation": role.SSLNegotiation, "channel_binding": role.ChannelBinding,
		"require_auth": role.RequireAuth,
	} {
		if value != "" {
			text += " " + name + "=" + conninfoValue(value)
		}
	}
	c, err := pgx.ParseConfig(text)
	if err != nil {
		// The text has secrets in it, what was wrong with a file has none.
		if inner := errors.Unwrap(err); inner != nil {
			return nil, fmt.Errorf("the settings of %s are not valid: %w", role.Username, inner)
		}
		return nil, fmt.Errorf("the settings of %s are not valid", role.Username)
	}
	if role.Password != "" {
		c.Password = role.Password
	}
	c.BuildFrontend = pgauth.Frontend
	if c.RequireAuth == "" && !verified(c) {
		c.RequireAuth = noCleartext
	}
	if role.GSSEncMode == "require" {
		return nil, fmt.Errorf("gssencmode of %s: the agent itself cannot encrypt with GSSAPI", role.Username)
	}
	lists, err := revocationLists(withDefaultLists(role, homeDir()))
	if err != nil {
		return nil, err
	}
	if len(lists) > 0 {
		revokes(c.TLSConfig, lists)
		for _, f := range c.Fallbacks {
			revokes(f.TLSConfig, lists)
		}
	}
	return c, nil
}

// agentName is the application_name of the agent's own connections.
const agentName = "Lictor"

// sessionParams are the settings of a session that looks at PostgreSQL or works on it, whatever somebody has
// set for its user, its database or the server: with some no statement succeeds, or another one than
// is meant. major is the server's version.
func sessionParams(applicationName string, major int) map[string]string {
	params := map[string]string{
		"application_name": applicationName, "statement_timeout": "0", "lock_timeout": "0", "search_path": "", "role": "none",
		// No statement succeeds on a standby in a serializable transaction.
		"default_transaction_read_only": "off", "default_transaction_isolation": "read committed", "default_transaction_deferrable": "off",
		// Our own statements must not wait for standbys.
		synchronousCommit: "local",
		// Names and passwords are written into statements as these say, and times are read.
		"standard_conforming_strings": "on", "client_encoding": "UTF8", "datestyle": "ISO", "intervalstyle": "postgres", "bytea_output": "hex", "extra_float_digits": "1",
	}
	if major >= 17 {
		params["transaction_timeout"] = "0"
	}
	return params
}

// maxMessage is the longest message of a server's that is read, in bytes: four times the largest that is asked for,
// a snapshot or a file of settings. Who has a member's address might have us take a gigabyte for one.
const maxMessage = 64 << 20

// connect opens a connection as the role says. A password that it does not have
// comes from the passfile of the agent's user, as with Patroni.
func (p *installation) connect(ctx context.Context, host string, port int, role config.PgUser, database, applicationName string) (*pgx.Conn, error) {
	return p.connectAs(ctx, host, port, role, database, sessionParams(applicationName, p.major))
}

func (p *installation) connectAs(ctx context.Context, host string, port int, role config.PgUser, database string, params map[string]string) (*pgx.Conn, error) {
	role.SSLMode = cmp.Or(role.SSLMode, "prefer")
	c, err := LoginConfig(host, port, role, database)
	if err != nil {
		return nil, fmt.Errorf("connecting to PostgreSQL at %s:%d: %w", host, port, err)
	}
	c.ConnectTimeout, c.MaxProtocolMessageBodyLen = 3*time.Second, maxMessage
	c.RuntimeParams = params
	if p.major >= 17 && role.Username == p.local.Load().Authentication.Superuser.Username {
		c.RuntimeParams["event_triggers"] = "off" // those at login; only a superuser may
	}
	c.DialFunc = (&net.Dialer{Timeout: 3 * time.Second, KeepAlive: 5 * time.Second}).DialContext
	login := func() (*pgx.Conn, error) { return pgx.ConnectConfig(ctx, c) }
	conn, err := pgauth.Connect(&c.Config, login)
	if noSlot(err) {
		asWalsender(c)
		if other, second := pgauth.Connect(&c.Config, login); second == nil {
			conn, err = other, nil
		}
	}
	if noLibrary(err) {
		withoutLibraries(c)
		if other, second := pgauth.Connect(&c.Config, login); second == nil {
			conn, err = other, nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("connecting to PostgreSQL at %s:%d as %s: %w", host, port, role.Username, explained(err))
	}
	return conn, nil
}

// replicationDatabase is what a passfile calls replication connections.
const replicationDatabase = "replication"

// noSlot reports whether a login failed for want of a connection slot
// (too_many_connections): sessions of superusers can take the reserved ones, too.
func noSlot(err error) bool {
	refused := new(pgconn.PgError)
	return errors.As(err, &refused) && refused.Code == "53300"
}

// asWalsender makes a connection use one of the slots that are kept for walsenders
// (max_wal_senders, beside max_connections since version 12). One that is connected to
// a database takes SQL, by the simple protocol, and pg_hba.conf sees no difference
// (PostgreSQL's documentation, streaming replication protocol).
func asWalsender(c *pgx.ConnConfig) {
	c.RuntimeParams["replication"] = "database"
	c.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
}

// noLibrary reports whether a login failed as a library could not be loaded that every
// session is to load (undefined_file, object_not_in_prerequisite_state).
func noLibrary(err error) bool {
	refused := new(pgconn.PgError)
	return errors.As(err, &refused) && (refused.Code == "58P01" || refused.Code == "55000")
}

// withoutLibraries makes a superuser's session load none: who leads must be observed, and
// promoted, also where nobody else can log in.
func withoutLibraries(c *pgx.ConnConfig) {
	c.RuntimeParams["session_preload_libraries"], c.RuntimeParams["local_preload_libraries"] = "", ""
}

// homeDir is where the driver looks for root.crt; empty: nowhere.
func homeDir() string {
	me, err := user.Current()
	if err != nil {
		return ""
	}
	return me.HomeDir
}

// withDefaultLists fills in where libpq looks for lists of revoked certificates when the
// role names none: its variables, then a file in the user's home, if it is there.
func withDefaultLists(role config.PgUser, home string) config.PgUser {
	if role.SSLCRL != "" || role.SSLCRLDir != "" {
		return role
	}
	role.SSLCRL, role.SSLCRLDir = os.Getenv("PGSSLCRL"), os.Getenv("PGSSLCRLDIR")
	if role.SSLCRL != "" || role.SSLCRLDir != "" {
		return role
	}
	file := filepath.Join(home, ".postgresql", "root.crl")
	if _, err := os.Stat(file); err == nil && home != "" {
		role.SSLCRL = file
	}
	return role
}

// fit takes out of the roles what this version of PostgreSQL does not know, and tells it.
func (p *credentials) fit(local config.Postgres) config.Postgres {
	a := &local.Authentication
	for name, role := range map[string]*config.PgUser{"superuser": &a.Superuser, "replication": &a.Replication, "rewind": &a.Rewind} {
		for _, setting := range []struct {
			name  string
			value *string
			since int
			only  bool // libpq's: what the agent itself connects with has it
		}{
			{"sslnegotiation", &role.SSLNegotiation, 17, false},
			{"sslcrldir", &role.SSLCRLDir, 14, true},
			{"sslpassword", &role.SSLPassword, 13, true},
			{"channel_binding", &role.ChannelBinding, 13, true},
			{"require_auth", &role.RequireAuth, requireAuthSince, true},
		} {
			if *setting.value == "" || p.major >= setting.since {
				continue
			}
			why := fmt.Sprintf("PostgreSQL %d does not know it, which is of version %d", p.major, setting.since)
			if setting.only {
				why += ": replication and pg_rewind go without it"
			} else {
				*setting.value = ""
			}
			p.tell("postgresql.authentication."+name+"."+setting.name, why)
		}
	}
	for _, w := range openToServers(local, p.major) {
		if _, told := p.notes.LoadOrStore([2]string{w.Path, w.Text}, true); !told {
			p.log.Warn().Str("setting", w.Path).Str("reason", w.Text).Msg("a password is not safe from other servers")
		}
	}
	for _, w := range unprovedServers(local) {
		if _, told := p.notes.LoadOrStore([2]string{w.Path, w.Text}, true); !told {
			p.log.Warn().Str("setting", w.Path).Str("reason", w.Text).Msg("other members cannot prove whose PostgreSQL they have")
		}
	}
	return local
}

// requireAuthSince is the version from which on PostgreSQL's programs know require_auth.
const requireAuthSince = 16

// openToServers warns of roles whose password replication and pg_rewind tell, in clear
// text, any server that asks for it: one that has taken over a member's address.
func openToServers(local config.Postgres, major int) (all []cluster.Warning) {
	if major >= requireAuthSince {
		return nil
	}
	a := local.Authentication
	rewind := "rewind"
	if a.Rewind.Username == "" {
		a.Rewind, rewind = a.Superuser, "superuser"
	}
	for _, role := range []struct {
		name string
		config.PgUser
	}{{"replication", a.Replication}, {rewind, a.Rewind}} {
		if role.Password == "" || verifies(role.PgUser) || role.ChannelBinding == "require" && major >= 13 {
			continue
		}
		all = append(all, cluster.Warning{Path: "postgresql.authentication." + role.name + ".sslmode", Text: fmt.Sprintf(
			"PostgreSQL %d has no require_auth: whoever takes over a member's address can ask its programs for this password in clear text; set verify-full", major)})
	}
	return all
}

// unprovedServers warns of roles as which no other server is believed where much depends on it (proving).
func unprovedServers(local config.Postgres) (all []cluster.Warning) {
	const so = "so `lictor reinit`, `rebuild: auto` and the guards of other_site believe no answer: set sslmode to verify-full with sslrootcert, or require_auth to what the servers " +
		"ask for (none: nothing), which believes whoever has a member's address"
	a := local.Authentication
	for _, role := range []struct {
		name string
		config.PgUser
	}{{"superuser", a.Superuser}, {"replication", a.Replication}} {
		if role.Username == "" || verifies(role.PgUser) || saysProof(role.RequireAuth) {
			continue
		}
		path := "postgresql.authentication." + role.name + ".require_auth"
		if role.Password == "" {
			all = append(all, cluster.Warning{Path: path, Text: "is not set, and there is no password here by which another member could prove that it is this shard's (a passfile may have one), " + so})
			continue
		}
		if line := trustsRemote(local.PgHBA, role.name == "replication"); line != "" {
			all = append(all, cluster.Warning{Path: path, Text: fmt.Sprintf("is not set, and pg_hba has %q, by which nobody is asked for a password, nor proves that it is this shard's, %s", line, so)})
		}
	}
	return all
}

// trustsRemote is the first line of pg_hba that lets other hosts in by trust; replication: for replication.
func trustsRemote(lines []string, replication bool) string {
	for _, line := range lines {
		words := strings.Fields(line)
		if len(words) < 5 || !strings.HasPrefix(words[0], "host") || !slices.Contains(words[4:], "trust") ||
			(words[1] == "replication") != replication || slices.Contains([]string{"127.0.0.1/32", "::1/128", "localhost"}, words[3]) {
			continue
		}
		return line
	}
	return ""
}

// revocationLists reads what sslcrl and sslcrldir name. As in libpq they count only
// where certificates are verified at all.
func revocationLists(role config.PgUser) ([]*x509.RevocationList, error) {
	var files []string
	if role.SSLCRL != "" {
		files = append(files, role.SSLCRL)
	}
	if role.SSLCRLDir != "" {
		entries, err := os.ReadDir(role.SSLCRLDir)
		if err != nil {
			return nil, fmt.Errorf("sslcrldir of %s: %w", role.Username, err)
		}
		for _, e := range entries {
			files = append(files, filepath.Join(role.SSLCRLDir, e.Name()))
		}
	}
	var lists []*x509.RevocationList
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("revoked certificates for %s: %w", role.Username, err)
		}
		for block, rest := pem.Decode(content); block != nil; block, rest = pem.Decode(rest) {
			if block.Type != "X509 CRL" {
				continue
			}
			list, err := x509.ParseRevocationList(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("revoked certificates for %s: %s: %w", role.Username, file, err)
			}
			lists = append(lists, list)
		}
	}
	if len(files) > 0 && len(lists) == 0 {
		return nil, fmt.Errorf("revoked certificates for %s: %s: no list in it", role.Username, strings.Join(files, ", "))
	}
	return lists, nil
}

// revokes makes a TLS configuration that verifies the server's certificate refuse one
// that is on the lists, and one whose issuer has none, as OpenSSL does for libpq.
func revokes(c *tls.Config, lists []*x509.RevocationList) {
	if c == nil || c.InsecureSkipVerify && c.VerifyPeerCertificate == nil {
		return
	}
	c.VerifyConnection = func(state tls.ConnectionState) error {
		intermediates := x509.NewCertPool()
		for _, certificate := range state.PeerCertificates[1:] {
			intermediates.AddCert(certificate)
		}
		// Whom the name belongs to has been verified before.
		chains, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: c.RootCAs, Intermediates: intermediates})
		if err != nil {
			return err
		}
		var errs []error
		for _, chain := range chains {
			if err := checkRevoked(chain, lists); err != nil {
				errs = append(errs, err)
				continue
			}
			return nil
		}
		return errors.Join(errs...)
	}
}

func checkRevoked(chain []*x509.Certificate, lists []*x509.RevocationList) error {
	for i, certificate := range chain[:max(len(chain)-1, 0)] {
		issuer := chain[i+1]
		covered := false
		for _, list := range lists {
			if list.CheckSignatureFrom(issuer) != nil {
				continue
			}
			if !list.NextUpdate.IsZero() && list.NextUpdate.Before(time.Now()) {
				return fmt.Errorf("the list of certificates that %s has revoked expired on %s", issuer.Subject, list.NextUpdate.Format(time.DateOnly))
			}
			covered = true
			if slices.ContainsFunc(list.RevokedCertificateEntries, func(e x509.RevocationListEntry) bool {
				return e.SerialNumber.Cmp(certificate.SerialNumber) == 0
			}) {
				return fmt.Errorf("the certificate of %s was revoked", certificate.Subject)
			}
		}
		if !covered {
			return fmt.Errorf("no list of certificates that %s has revoked is in sslcrl or sslcrldir", issuer.Subject)
		}
	}
	return nil
}
