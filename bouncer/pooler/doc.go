// Package pooler is everything that a bouncer does to the PgBouncer beside it, and all
// that it learns from it. What PgBouncer should be is for others to know: they hand in
// checked files, databases and primaries.
//
//	link.go      is PgBouncer there? and which version
//	console.go   a connection to its admin console
//	installed.go the version that would be started
//	supervise.go runs PgBouncer, where nobody else does
//	apply.go     RELOAD, and reading back what stands
//	reload.go    no RELOAD while logins are under way that it would cut off
//	hold.go      PAUSE
//	deadman.go   RESUME when the loop that should do it hangs
//	conn_closer.go       connections to a deposed primary are closed
//	left_behind.go       so are those that nobody has closed when PgBouncer was led elsewhere
//	sockets.go   the kernel lists and closes connections
//	owner.go     which of them are PgBouncer's
//	ended.go     the kernel tells of connections that end
//	health.go   finds a primary that does not answer before Consul can tell
//	probe.go     asks such a primary
//	front.go     knocks at PgBouncer as clients do
//	open_console.go      does the console let strangers in?
//	listening.go does PgBouncer still take clients?
//	figures.go   PgBouncer's own figures
//
// The client of the console's protocol is in package pgbouncer.
package pooler
