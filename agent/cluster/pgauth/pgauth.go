// Package pgauth makes a password mean to PostgreSQL and PgBouncer what it means
// when psql sends it.
//
// libpq prepares a password by SASLprep (RFC 4013) before SCRAM, and so does the
// server before it keeps one; pgx prepares it by PRECIS's OpaqueString (RFC 8265),
// which leaves characters such as "ﬁ" and "²" as they are. Where the two differ, a
// login with the right password is refused.
package pgauth

import (
	"errors"

	"github.com/jackc/pgx/v5/pgconn"
)

// Connect connects with config's password as libpq would send it. connect is called
// once with the password prepared for SCRAM; only if that differs from the password
// itself and is refused, once more with the password as it is: md5, ldap, pam and the
// like take the very bytes, and which method the server wants is not known before.
// config is as it was when Connect returns.
func Connect[C any](config *pgconn.Config, connect func() (C, error)) (C, error) {
	raw := config.Password
	defer func() { config.Password = raw }()
	config.Password = Prepare(raw)
	conn, err := connect()
	if config.Password == raw || !refused(err) {
		return conn, err
	}
	config.Password = raw
	again, second := connect()
	if second != nil {
		return conn, err // what was wrong first says most
	}
	return again, nil
}

// refused reports whether the server did not take the password.
func refused(err error) bool {
	var answer *pgconn.PgError
	if !errors.As(err, &answer) {
		return false
	}
	switch answer.Code {
	case "28P01", "28000": // invalid_password, invalid_authorization_specification
		return true
	case "08P01": // protocol_violation: PgBouncer's word for each refused login before 1.24
		return true
	}
	return false
}
