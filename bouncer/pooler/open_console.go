package pooler

import (
	"context"
	"slices"
	"strings"

	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

// openConsole returns where PgBouncer's console lets everybody in who says to be one of its users, and as
// whom; empty: nowhere that is known. PgBouncer makes the user pgbouncer at its start, with an empty
// password, where auth_file has no other (admin_setup in its admin.c); others have one whom auth_file had and has
// no more. By SCRAM such a password is good; that PgBouncer knows pgbouncer on its unix socket without one needs no
// line in auth_file, so nobody notices.
func openConsole(ctx context.Context, c config.Config, conn *pgbouncer.Conn) (address, user string) {
	admin, err := c.Admin()
	if err != nil {
		return "", ""
	}
	standing, err := bounded(ctx, conn.Config)
	if err != nil {
		return "", "" // whoever holds the connection hears of it
	}
	if method := standing["auth_type"].Value; method == "any" || method == "trust" {
		return "", "" // everybody is let in on purpose
	}
	var names []string
	for name := range strings.SplitSeq(standing["admin_users"].Value+","+standing["stats_users"].Value, ",") {
		if name = strings.TrimSpace(name); name != "" && (name != admin.User || admin.Password == "") { // else by that the bouncer is in
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, a := range listeningBy(standing).addresses(c) {
		for _, name := range slices.Compact(names) {
			if a.network == "tcp" && letsIn(ctx, a.address, name) {
				return a.address, name
			}
		}
	}
	return "", ""
}

// letsIn reports whether the console lets a user in with an empty password.
func letsIn(ctx context.Context, address, user string) bool {
	at, err := pgbouncer.ParseAddress(address)
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, frontBound)
	defer cancel()
	conn, err := pgbouncer.Connect(ctx, pgbouncer.Options{Address: at, User: user})
	if err != nil {
		return false
	}
	conn.Close()
	return true
}
