package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lictor-ha/lictor/agent/config"
)

// This file is about what a server may ask for. Which host has a member's PostgreSQL is
// in Consul: whoever can write there, or takes over an address, must not be able to ask
// for a password in clear text, nor for its md5 where the server keeps no md5.

// The defaults of require_auth (libpq's word, of PostgreSQL 16).
const (
	noCleartext = "!password"
	scramAlone  = "!password,!md5" // peer, cert, gss and trust need no password
)

// proof is the default where much depends on who answers: with SCRAM the server, too, proves that it knows
// the password, or what PostgreSQL keeps of it (RFC 5802).
const proof = "scram-sha-256"

// ErrUnproved: a server was not believed, as it has not proved whose it is.
var ErrUnproved = errors.New("it has not proved that it is this cluster's: whoever has its address could say the same")

// proving is a role for connections whose answer has a primary stopped, lets a member lead or count, or permits that data
// are removed. The server has to prove whose it is: by a certificate that is checked, by SCRAM, or by what the
// operator has set as require_auth. A unix socket's directory is the proof.
func proving(host string, role config.PgUser) config.PgUser {
	if !filepath.IsAbs(host) && !verifies(role) && !saysProof(role.RequireAuth) {
		role.RequireAuth = proof
	}
	return role
}

// saysProof reports whether a value of require_auth says what servers have to do: one that names methods, none among
// them, or that refuses those that ask for nothing. One that only refuses some lets any server in that asks for nothing.
func saysProof(requireAuth string) bool {
	methods := strings.Split(requireAuth, ",")
	return requireAuth != "" && (!strings.HasPrefix(strings.TrimSpace(methods[0]), "!") ||
		slices.ContainsFunc(methods, func(m string) bool { return strings.TrimSpace(m) == "!none" }))
}

// provesWhereItCan is proving where the servers can: for a role with a password of which PostgreSQL is known to keep a SCRAM verifier, where
// no line of pg_hba lets it in without. can: they can.
func (p *credentials) provesWhereItCan(host, purpose string, role config.PgUser) (_ config.PgUser, can bool) {
	p.roles.Lock()
	unasked := slices.Contains(p.verifiers.Unasked, purpose)
	p.roles.Unlock()
	if role.Password == "" || role.RequireAuth != scramAlone || unasked {
		return role, false
	}
	return proving(host, role), true
}

// What a role logs in for.
const (
	forReplication = "replication"
	forSQL         = "sql"
)

// credentials are the roles that the agent and its programs log in as.
type credentials struct {
	*installation

	// roles guards what is kept of the agent's roles, and the configuration as it was given.
	roles     sync.Mutex
	verifiers verifiers
	given     config.Postgres
}

// requireAuth is what is demanded of a server's way to authenticate; verified: TLS says
// whose server it is, or it is on this host's own socket.
func requireAuth(role config.PgUser, verified bool) string {
	if role.RequireAuth == "" && !verified {
		return noCleartext
	}
	return role.RequireAuth
}

// verifies reports whether a role's settings demand a server's certificate that is checked.
func verifies(role config.PgUser) bool {
	return strings.HasPrefix(role.SSLMode, "verify-") || role.SSLRootCert == "system" ||
		role.SSLMode == "require" && role.SSLRootCert != "" // libpq's verify-ca
}

// verified reports whether every way of a connection is TLS with a checked certificate, or
// goes through a unix socket.
func verified(c *pgx.ConnConfig) bool {
	if strings.HasPrefix(c.Host, "/") {
		return true
	}
	ok := c.TLSConfig != nil && (!c.TLSConfig.InsecureSkipVerify || c.TLSConfig.VerifyPeerCertificate != nil)
	for _, f := range c.Fallbacks {
		ok = ok && f.TLSConfig != nil && (!f.TLSConfig.InsecureSkipVerify || f.TLSConfig.VerifyPeerCertificate != nil)
	}
	return ok
}

// verifiers are the roles of which PostgreSQL keeps a SCRAM verifier, as a server of this
// shard last said: it asks for nothing else then, and what asks for md5 is none.
type verifiers struct {
	Scram []string `json:"scram"`
	// Unasked is what for (forReplication, forSQL) a line of pg_hba lets a role in from other hosts without SCRAM: by trust, or by a
	// certificate of its own. The members' lines are taken to be alike.
	Unasked []string `json:"unasked,omitempty"`

	seen time.Time // when the postmaster that was asked has read its files
	of   string    // and the roles
}

func agentsRoles(a config.Authentication) []string {
	return []string{a.Superuser.Username, a.Replication.Username, a.Rewind.Username}
}

// useLocal takes a local configuration, with what is known of its roles.
func (p *credentials) useLocal(given config.Postgres) {
	p.roles.Lock()
	defer p.roles.Unlock()
	p.given = given
	p.strengthen()
}

// strengthen lets the roles with a SCRAM verifier log in by SCRAM alone, where the
// configuration says nothing of it.
func (p *credentials) strengthen() {
	local := p.given
	a := &local.Authentication
	for _, role := range []*config.PgUser{&a.Superuser, &a.Replication, &a.Rewind} {
		if role.Username != "" && role.RequireAuth == "" && !verifies(*role) && slices.Contains(p.verifiers.Scram, role.Username) {
			role.RequireAuth = scramAlone
		}
	}
	p.local.Store(&local)
}

// learnVerifiers asks PostgreSQL, once after each reading of its files, which of the agent's roles have a
// SCRAM verifier, and whether other servers ask for it.
func (p *credentials) learnVerifiers(ctx context.Context, conn *pgx.Conn, loaded time.Time) {
	local := p.local.Load()
	roles := agentsRoles(local.Authentication)
	of := strings.Join(roles, "\x00")
	p.roles.Lock()
	known := p.verifiers
	p.roles.Unlock()
	if known.seen.Equal(loaded) && known.of == of {
		return
	}
	const query = `SELECT COALESCE(array_agg(rolname ORDER BY rolname), '{}') FROM pg_catalog.pg_authid
		WHERE rolname = ANY($1::text[]) AND rolpassword LIKE 'SCRAM-SHA-256$%'`
	now := verifiers{seen: loaded, of: of}
	if err := conn.QueryRow(ctx, query, roles).Scan(&now.Scram); err != nil {
		now.Scram = known.Scram // no superuser: it stays unknown
	}
	var replication, sql bool
	if err := conn.QueryRow(ctx, unaskedSQL, local.Authentication.Replication.Username, local.Authentication.Superuser.Username, onLoopback(local.ConnectAddress)).Scan(&replication, &sql); err != nil {
		now.Unasked = known.Unasked
	} else {
		for purpose, is := range map[string]bool{forReplication: replication, forSQL: sql} {
			if is {
				now.Unasked = append(now.Unasked, purpose)
			}
		}
		slices.Sort(now.Unasked)
	}
	changed := !slices.Equal(now.Scram, known.Scram) || !slices.Equal(now.Unasked, known.Unasked)
	p.roles.Lock()
	if p.verifiers = now; changed {
		p.strengthen()
	}
	p.roles.Unlock()
	if !changed {
		return
	}
	content, err := json.Marshal(now)
	if err == nil {
		err = p.writeFile(p.stateFile("verifiers"), string(content)+"\n")
	}
	if err != nil {
		p.log.Warn().Err(err).Msg("noting which roles have SCRAM verifiers has failed; it is asked again with the next start")
	}
}

// unaskedSQL asks whether a line of pg_hba may let the role that replicates, and the superuser, in from other hosts without SCRAM. Lines for
// groups, and for names by pattern, may. Those of this host alone count where the members are all on it.
const unaskedSQL = `WITH h AS (
	SELECT database, user_name FROM pg_catalog.pg_hba_file_rules
	WHERE error IS NULL AND type <> 'local' AND auth_method NOT IN ('scram-sha-256', 'md5', 'password', 'reject')
	  AND ($3 OR COALESCE(address, '') !~ '^(127[.]|::1$|localhost$|samehost$)'))
SELECT EXISTS (SELECT FROM h WHERE 'replication' = ANY (database) AND EXISTS (SELECT FROM unnest(user_name) u WHERE u IN ('all', $1) OR u ~ '^[+/]')),
	EXISTS (SELECT FROM h WHERE database <> ARRAY['replication'] AND EXISTS (SELECT FROM unnest(user_name) u WHERE u IN ('all', $2) OR u ~ '^[+/]'))`

// onLoopback reports whether a member is reached at an address that its own host alone has.
func onLoopback(connectAddress string) bool {
	host, _, err := net.SplitHostPort(connectAddress)
	ip := net.ParseIP(host)
	return err == nil && (host == "localhost" || ip != nil && ip.IsLoopback())
}

// recallVerifiers is what an earlier run has learned.
func (p *credentials) recallVerifiers() (v verifiers) {
	content, err := p.disk.ReadFile(p.stateFile("verifiers"))
	if err != nil || json.Unmarshal(content, &v) != nil {
		return verifiers{}
	}
	return v
}

// explained says what to do about a server that asks for what is not answered.
func explained(err error) error {
	if !strings.Contains(err.Error(), "require_auth check failed") {
		return err
	}
	if strings.Contains(err.Error(), `"`+proof+`" failed`) {
		return fmt.Errorf("%w (%w); nothing was sent. Set sslmode to verify-full with sslrootcert, or let pg_hba ask for scram-sha-256 and give the role a password; "+
			"or, to believe it all the same, set require_auth of the role to what it asks for (none: it asks for nothing)", ErrUnproved, err)
	}
	return fmt.Errorf("%w; nothing was sent; if the server is to ask for this, set sslmode to verify-full, or require_auth of the role to the method", err)
}
