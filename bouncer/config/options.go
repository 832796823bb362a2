package config

import (
	"fmt"
	"maps"
	"slices"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/osuser"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

// HasDatabaseOptions reports whether any database of a shard has options.
func (c Config) HasDatabaseOptions(s Shard) bool {
	return len(c.PgBouncer.DatabaseOptions)+len(s.Options)+len(s.DatabaseOptions)+s.PoolSize+len(s.PoolMode) > 0
}

// DatabaseOptions are the options with which PgBouncer of version has a database of a shard,
// by name. What it does not know is left out (UnknownOptions).
func (c Config) DatabaseOptions(s Shard, name string, version pgbouncer.Version) []pgbouncer.Option {
	merged := map[string]any{}
	maps.Copy(merged, c.PgBouncer.DatabaseOptions)
	if s.PoolSize > 0 {
		merged["pool_size"] = s.PoolSize
	}
	if s.PoolMode != "" {
		merged["pool_mode"] = s.PoolMode
	}
	maps.Copy(merged, s.Options)
	maps.Copy(merged, s.DatabaseOptions[name])
	return writtenOptions(pgbouncer.DatabaseOptions, merged, version)
}

// writtenOptions are options in the order and by the names in which they are written.
func writtenOptions(section pgbouncer.OptionSection, options map[string]any, version pgbouncer.Version) (list []pgbouncer.Option) {
	for _, name := range slices.Sorted(maps.Keys(options)) {
		if written, known := section.Written(name, version); known {
			list = append(list, pgbouncer.Option{Name: written, Value: settingValue(options[name])})
		}
	}
	return list
}

// UserOptions are the options of one user.
type UserOptions struct {
	Name    string
	Options []pgbouncer.Option
}

// UserOptions are the lines of the section [users] for PgBouncer of version. What it does
// not know, and a user of whom nothing is left, is left out (UnknownOptions), and so is one whom it would
// make (UsersOfNoPassword).
func (c Config) UserOptions(version pgbouncer.Version) (list []UserOptions) {
	made := c.UsersOfNoPassword(version)
	for _, name := range slices.Sorted(maps.Keys(c.PgBouncer.Users)) {
		options := writtenOptions(pgbouncer.UserOptions, c.PgBouncer.Users[name], version)
		if len(options) > 0 && pgbouncer.CheckName(name, version) == nil && !slices.Contains(made, name) {
			list = append(list, UserOptions{name, options})
		}
	}
	return list
}

// UsersOfNoPassword are those of pgbouncer.users whom auth_file does not have. PgBouncer of version would make each of them a
// user with an empty password, whom SCRAM lets in, if it read options of it; from 1.23 on it lets in nobody as
// such a user, but asks by auth_query, where it has one.
func (c Config) UsersOfNoPassword(version pgbouncer.Version) (names []string) {
	if len(c.PgBouncer.Users) == 0 || version.AtLeast(1, 23) {
		return nil
	}
	path := c.Setting("auth_file")
	var users map[string]string
	if text, err := osuser.Keeper(path).ReadFile(path); err == nil {
		users, _ = pgbouncer.ParseUserlist(text) // those before what it does not understand
	}
	for _, name := range slices.Sorted(maps.Keys(c.PgBouncer.Users)) {
		if _, found := users[name]; !found {
			names = append(names, name)
		}
	}
	return names
}

// Fallback is the line of PgBouncer's database *, for PgBouncer of version; without host and
// port where these are a shard's (FallbackShard). Empty: there is none.
func (c Config) Fallback(version pgbouncer.Version) []pgbouncer.Option {
	return writtenOptions(pgbouncer.DatabaseOptions, c.fallbackOptions(), version)
}

// FallbackShard is the shard whose primary takes the clients of databases that no shard has;
// empty: none does.
func (c Config) FallbackShard() string { return settingValue(c.PgBouncer.Fallback["shard"]) }

// IsFallback reports whether a shard is that one.
func (c Config) IsFallback(id ShardID) bool {
	namespace, scope := id.Split()
	to := c.FallbackShard()
	return to != "" && (to == string(id) || to == scope && namespace == cluster.DefaultNamespace)
}

// fallbackOptions are those that PgBouncer has.
func (c Config) fallbackOptions() map[string]any {
	options := maps.Clone(c.PgBouncer.Fallback)
	delete(options, "shard")
	return options
}

// UnknownOptions tells which options and settings of bouncer.yml are not written, as PgBouncer
// of version does not know them, by their place.
func (c Config) UnknownOptions(version pgbouncer.Version) map[string]error {
	unknown := map[string]error{}
	look := func(section pgbouncer.OptionSection, path string, options map[string]any) {
		for name := range options {
			if _, known := section.Written(name, version); !known {
				unknown[path+"."+name] = fmt.Errorf("%s.%s is not written: PgBouncer has this option from %s on, here it is %s",
					path, name, section.Since(name), version)
			}
		}
	}
	for name := range c.PgBouncer.Settings {
		if err := lacksSetting(name, version); err != nil {
			path := "pgbouncer.settings." + name
			unknown[path] = fmt.Errorf("%s is not written: %w", path, err)
		}
	}
	look(pgbouncer.DatabaseOptions, "pgbouncer.database_options", c.PgBouncer.DatabaseOptions)
	look(pgbouncer.DatabaseOptions, "pgbouncer.fallback", c.fallbackOptions())
	for _, s := range c.Shards {
		look(pgbouncer.DatabaseOptions, fmt.Sprintf("shards[%d].options", s.place), s.Options)
		for database, options := range s.DatabaseOptions {
			look(pgbouncer.DatabaseOptions, fmt.Sprintf("shards[%d].database_options.%s", s.place, database), options)
		}
	}
	for user, options := range c.PgBouncer.Users {
		look(pgbouncer.UserOptions, "pgbouncer.users."+user, options)
	}
	for name := range c.PgBouncer.Users {
		if err := pgbouncer.CheckName(name, version); err != nil {
			unknown["pgbouncer.users."+name] = fmt.Errorf("pgbouncer.users: user %w; its options are not written", err)
		}
	}
	return unknown
}

// checkOptions adds what is wrong with a map of options at path.
func checkOptions(section pgbouncer.OptionSection, path string, options map[string]any, bad *problems) {
	for _, name := range slices.Sorted(maps.Keys(options)) {
		at := path + "." + name
		switch options[name].(type) {
		case map[string]any, []any:
			bad.add(at, nil, "must be a single value")
			continue
		}
		switch name {
		case "host", "port", "dbname":
			if section == pgbouncer.DatabaseOptions {
				bad.add(at, nil, "is none to set here: it follows the shard's route, and dbname stands in shards[].databases as name=dbname")
				continue
			}
		}
		if err := section.Check(name, settingValue(options[name])); err != nil {
			bad.add(at, nil, "%v", err)
		}
	}
}

// validateOptions checks a shard's options.
func (s Shard) validateOptions(path, readers string, bad *problems) {
	checkOptions(pgbouncer.DatabaseOptions, path+"options", s.Options, bad)
	for name, set := range map[string]bool{"pool_size": s.PoolSize != 0, "pool_mode": s.PoolMode != ""} {
		if _, twice := s.Options[name]; twice && set {
			bad.add(path+"options."+name, nil, "is set in %s%s as well", path, name)
		}
	}
	databases, err := s.ParseDatabases()
	if err != nil {
		return // told already
	}
	var offered []string
	for _, d := range databases {
		offered = append(offered, d.Names(readers)...)
	}
	for _, name := range slices.Sorted(maps.Keys(s.DatabaseOptions)) {
		if !slices.Contains(offered, name) {
			bad.add(path+"database_options", name, "must be one of the shard's databases in PgBouncer: %q", offered)
		}
		checkOptions(pgbouncer.DatabaseOptions, path+"database_options."+name, s.DatabaseOptions[name], bad)
	}
}

// validateOptions checks the options of all databases and users.
func (p PgBouncer) validateOptions(bad *problems) {
	shard, follows := p.Fallback["shard"]
	if _, fixed := p.Fallback["host"]; len(p.Fallback) > 0 && fixed == follows {
		bad.add("pgbouncer.fallback", nil, "must have either shard or host")
	}
	if id := ShardID(settingValue(shard)); follows {
		if _, scope := id.Split(); cluster.CheckName(scope) != nil {
			bad.add("pgbouncer.fallback.shard", settingValue(shard), "must be the scope of a shard, or its namespace/scope")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(p.Fallback)) {
		switch {
		case name == "shard":
		case name == "port" && follows:
			bad.add("pgbouncer.fallback.port", nil, "is that of the shard's primary")
		default:
			if err := pgbouncer.DatabaseOptions.Check(name, settingValue(p.Fallback[name])); err != nil {
				bad.add("pgbouncer.fallback."+name, nil, "%v", err)
			}
		}
	}
	checkOptions(pgbouncer.DatabaseOptions, "pgbouncer.database_options", p.DatabaseOptions, bad)
	for _, name := range slices.Sorted(maps.Keys(p.Users)) {
		if err := pgbouncer.CheckUser(name, ""); err != nil {
			bad.add("pgbouncer.users", name, "%v", err)
		}
		if len(p.Users[name]) == 0 {
			bad.add("pgbouncer.users."+name, nil, "must have an option")
		}
		checkOptions(pgbouncer.UserOptions, "pgbouncer.users."+name, p.Users[name], bad)
	}
}
