package config

import (
	"slices"
	"strings"
)

// OwnOption reports whether the agent sets an option of one of PostgreSQL's programs itself,
// or whether it would make what is no data directory to rely on. Long options may be
// shortened (getopt_long(3)), so a part of such a name is that option, too.
func OwnOption(program, name string) bool {
	var own, letters []string
	switch program {
	case "initdb":
		own = []string{"pgdata", "nosync", "no-sync", "pwfile", "pwprompt", "sync-only", "version", "username"}
		letters = []string{"D", "N", "S", "U", "V", "W"}
	case "pg_basebackup":
		own = []string{"pgdata", "format", "wal-method", "xlog-method", "gzip", "compress", "version", "dbname", "host", "port", "username", "password", "no-password"}
		letters = []string{"D", "F", "X", "z", "Z", "V", "d", "h", "p", "U", "W", "w"}
	}
	return slices.Contains(letters, name) || len(name) > 1 && slices.ContainsFunc(own, func(o string) bool { return strings.HasPrefix(o, name) })
}

// RoleOptions are the options of CREATE ROLE that a role of bootstrap.users may have.
func RoleOptions() []string {
	return []string{
		"SUPERUSER", "NOSUPERUSER", "CREATEDB", "NOCREATEDB", "CREATEROLE", "NOCREATEROLE", "INHERIT", "NOINHERIT",
		"LOGIN", "NOLOGIN", "REPLICATION", "NOREPLICATION", "BYPASSRLS", "NOBYPASSRLS",
	}
}
