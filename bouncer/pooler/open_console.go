package pooler

import (
	"context"
	"slices"
	"strings"

	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

// ownUser is the user whom PgBouncer makes by itself where auth_file does not have it.
const ownUser = "pgbouncer"

// openConsole returns where PgBouncer's console lets everybody in who says to be the user
// pgbouncer, empty: nowhere that is known. PgBouncer makes this user at its start, with an empty
// password, where auth_file has no other (admin_setup in its admin.c). By SCRAM such a password is
// good; that PgBouncer knows it on its unix socket without one needs no line in auth_file, so
// nobody notices.
func openConsole(ctx context.Context, c config.Config, conn *pgbouncer.Conn) string {
	admin, err := c.Admin()
	if err != nil || admin.User == ownUser && admin.Password != "" {
		return "" // the password by which the bouncer is in
	}
	standing, err := bounded(ctx, conn.Config)
	if err != nil {
		return "" // whoever holds the connection hears of it
	}
	lets := func(setting string) bool {
		return slices.ContainsFunc(strings.Split(standing[setting].Value, ","), func(name string) bool { return strings.TrimSpace(name) == ownUser })
	}
	if method := standing["auth_type"].Value; method == "any" || method == "trust" || !lets("admin_users") && !lets("stats_users") {
		return "" // everybody is let in on purpose, or this user is not
	}
	for _, a := range listeningBy(standing).addresses(c) {
		if a.network == "tcp" && letsIn(ctx, a.address) {
			return a.address
		}
	}
	return ""
}

// letsIn reports whether the console lets the user pgbouncer in with an empty password.
func letsIn(ctx context.Context, address string) bool {
	at, err := pgbouncer.ParseAddress(address)
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, frontBound)
	defer cancel()
	conn, err := pgbouncer.Connect(ctx, pgbouncer.Options{Address: at, User: ownUser})
	if err != nil {
		return false
	}
	conn.Close()
	return true
}
