package config

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/cluster/settings"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

// Refused is a shard of bouncer.yml that is not served as it says there, as something of it
// is wrong.
type Refused struct {
	// Name is the shard's id or, where that is wrong as well, its place: shards[2].
	Name string
	// ID is empty where no shard is served by that id.
	ID  ShardID
	Err error
}

// LoadServable is Load for whoever serves, or asks the bouncer that does: what is wrong with
// single shards is no error, but stands in Refused, and keeps no other shard from being served.
// Such a shard is served with what the installed pgbouncer.ini has of it, as it was good once;
// what cannot be served so stays as PgBouncer has it (Unfollowed). For a file with which anything else
// is wrong stands what was last followed of it (StandsFor), if that was kept.
func LoadServable(source settings.Source) (Config, []cluster.Warning, error) {
	c, warnings, err := load(source)
	var refused *settings.Refused
	if errors.As(err, &refused) && c.refuseShards(cluster.Problems(refused.Err)) {
		return c, warnings, nil
	}
	if err != nil {
		return loadLastGood(source, err)
	}
	return c, warnings, nil
}

// Refused are the shards that are not served as they stand in the file.
func (c Config) Refused() []Refused { return c.refused }

// Unfollowed are databases that are, or may be, those of such shards, and stay as PgBouncer has them.
func (c Config) Unfollowed() []string { return c.unfollowed }

// ServesAll reports whether all shards under the routes prefix are served.
func (c Config) ServesAll() bool { return len(c.Shards)+len(c.refused) == 0 }

// RefusedShard is what is wrong with a shard that is served all the same.
func (c Config) RefusedShard(id ShardID) error {
	for _, r := range c.refused {
		if r.ID == id {
			return r.Err
		}
	}
	return nil
}

func shardPath() *regexp.Regexp { return regexp.MustCompile(`^shards\[(\d+)\](\.\w+)?`) }

// refuseShards takes the shards that have problems out of Shards, or puts what can be served of
// them in their place. False: not every problem is one of a single shard.
func (c *Config) refuseShards(problems []cluster.Problem) bool {
	wrong, fields := map[int][]error{}, map[int][]string{}
	for _, p := range problems {
		at := shardPath().FindStringSubmatch(p.Path)
		if at == nil {
			return false
		}
		i, err := strconv.Atoi(at[1])
		if err != nil || i >= len(c.Shards) {
			return false
		}
		wrong[i], fields[i] = append(wrong[i], p), append(fields[i], at[2])
	}
	// Two shards want one name: who of them has it, the file does not say.
	owners := map[string][]int{}
	for i, s := range c.Shards {
		for _, name := range c.Names(s) {
			owners[name] = append(owners[name], i)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(owners)) {
		for _, i := range owners[name] {
			if len(owners[name]) > 1 && !slices.Contains(fields[i], ".databases") {
				wrong[i] = append(wrong[i], cluster.Problem{Path: fmt.Sprintf("shards[%d].databases", i), Value: strconv.Quote(name), Rule: "is PgBouncer's database of another shard, too"})
				fields[i] = append(fields[i], ".databases")
			}
		}
	}
	installed := c.installed()
	var shards []Shard
	served, taken := map[ShardID]bool{}, map[string]bool{}
	for i, s := range c.Shards {
		one := s
		if wrong[i] != nil {
			free := func(name string) bool { return len(owners[name]) == 1 }
			one = c.asInstalled(s, installed, fields[i], free)
			twice := slices.ContainsFunc(c.Shards[:i], func(o Shard) bool { return o.ID() == s.ID() })
			c.refused = append(c.refused, refusedShard(i, s, twice, len(one.Databases) > 0, c.Each()[0].PgBouncer.Config, wrong[i]))
			if twice || len(one.Databases) == 0 {
				continue
			}
		}
		shards, served[one.ID()] = append(shards, one), true
		for _, name := range c.Names(one) {
			taken[name] = true
		}
	}
	for name := range owners {
		c.unfollowed = append(c.unfollowed, name)
	}
	for _, e := range installed.Databases { // a shard's whose names cannot be read, perhaps
		if e.Name != "*" {
			c.unfollowed = append(c.unfollowed, e.Name)
		}
	}
	c.unfollowed = slices.DeleteFunc(c.unfollowed, func(name string) bool { return taken[name] })
	slices.Sort(c.unfollowed)
	c.unfollowed = slices.Compact(c.unfollowed)
	c.Shards = shards
	return true
}

func refusedShard(i int, s Shard, twice, servable bool, file string, wrong []error) Refused {
	r := Refused{Name: fmt.Sprintf("shards[%d]", i)}
	var said []string
	for _, err := range wrong {
		said = append(said, err.Error())
	}
	why := strings.Join(said, "; ")
	if !twice && cluster.CheckName(s.Scope) == nil && cluster.CheckNamespace(s.Namespace) == nil {
		r.Name = string(s.ID())
		if servable {
			r.ID = s.ID()
			r.Err = fmt.Errorf("shard %s is served with the options that %s has of it, as bouncer.yml is wrong: %s", r.Name, file, why)
			return r
		}
	}
	r.Err = fmt.Errorf("shard %s is not offered, and what PgBouncer has of it stays as it is: %s", r.Name, why)
	return r
}

// Names are all names that PgBouncer may have of a shard, as far as they can be read.
func (c Config) Names(s Shard) (names []string) {
	for _, entry := range s.Databases {
		if d, err := parseDatabase(entry); err == nil {
			names = append(names, d.Names(c.ReadersOf(s))...)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// installed is the file that PgBouncer has, empty where there is none that can be read.
func (c Config) installed() pgbouncer.File {
	text, err := os.ReadFile(c.Each()[0].PgBouncer.Config)
	if err != nil {
		return pgbouncer.File{}
	}
	file, err := pgbouncer.ParseFile(text)
	if err != nil {
		return pgbouncer.File{}
	}
	return file
}

// asInstalled is a shard whose fields are wrong with the databases and options that PgBouncer's
// file has of it; without databases where it cannot be followed. free reports whether a name is
// that of no other shard.
func (c Config) asInstalled(s Shard, installed pgbouncer.File, fields []string, free func(string) bool) Shard {
	kept := Shard{
		Scope: s.Scope, Namespace: s.Namespace, Patroni: s.Patroni, MaxReplicaLag: max(0, s.MaxReplicaLag), Readers: s.Readers,
		DatabaseOptions: map[string]map[string]any{}, place: s.place,
	}
	for _, field := range fields {
		switch field {
		case "", ".scope", ".namespace", ".patroni": // whom to follow is not known
			return kept
		}
	}
	readers := false
	for _, entry := range s.Databases {
		d, err := parseDatabase(entry)
		if err != nil || !free(d.Name) {
			continue
		}
		e, found := installed.Database(d.Name)
		if !found {
			continue
		}
		if dbname := e.Params()["dbname"]; dbname != "" {
			d.DBName = dbname
		}
		kept.Databases = append(kept.Databases, d.Name+"="+d.DBName)
		kept.DatabaseOptions[d.Name] = optionsOf(e)
		e, found = installed.Database(d.ReadOnlyName())
		if found && free(d.ReadOnlyName()) {
			kept.DatabaseOptions[d.ReadOnlyName()], readers = optionsOf(e), true
		}
	}
	if slices.Contains(fields, ".readers") {
		kept.Readers = ReadersPrimaryFallback
	}
	mode := c.ReadersOf(kept)
	if !readers && mode != ReadersStrict || slices.ContainsFunc(c.Names(kept), func(name string) bool { return !free(name) }) {
		kept.Readers = ReadersOff
		maps.DeleteFunc(kept.DatabaseOptions, func(name string, _ map[string]any) bool { return !slices.Contains(c.Names(kept), name) })
	}
	var bad problems
	kept.validateOptions("", c.ReadersOf(kept), &bad)
	if len(bad) > 0 { // somebody else's file
		kept.Databases = nil
	}
	return kept
}

// optionsOf are the options of a line but for where it leads.
func optionsOf(e pgbouncer.Entry) map[string]any {
	options := map[string]any{}
	for name, value := range e.Params() {
		switch name {
		case "host", "port", "dbname":
		case "reserve_pool":
			options["reserve_pool_size"] = value
		default:
			options[name] = value
		}
	}
	return options
}
