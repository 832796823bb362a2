// Package pgbouncer talks to a PgBouncer: its admin console (SHOW, RELOAD,
// PAUSE, RESUME, ...) and its files.
//
//	client.go    a connection to the console
//	commands.go  what is asked and told there
//	ini.go       pgbouncer.ini, as PgBouncer reads it
//	options.go   the options of databases and users, by version
//	userlist.go  the file of users
//
// The console is a PostgreSQL server of its own that knows the simple query
// protocol only and executes one command of a connection at a time. Result
// columns differ from version to version, so rows are read by column name.
//
// Two kinds of failure are told apart because they need different answers:
// ErrRefused says that PgBouncer is there and said no; ErrUnreachable says that
// it could not be asked, or that its answer was lost.
package pgbouncer
