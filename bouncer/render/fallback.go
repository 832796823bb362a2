package render

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

// WithRoutes is a good file with the routes of views in it: settings and everything else
// that a template has made stay as PgBouncer took them, the databases lead to the
// primaries that are known now. So a setting or a template that PgBouncer refuses keeps
// no shard at an old primary.
func WithRoutes(good []byte, views []*Shard, version pgbouncer.Version) ([]byte, error) {
	file, err := pgbouncer.ParseFile(good)
	if err != nil {
		return nil, fmt.Errorf("last good configuration: %w", err)
	}
	lines := strings.Split(string(good), "\n")
	moves := moves{}
	put := func(e pgbouncer.Entry, host string, port int) error {
		params := e.Params()
		params["host"], params["port"] = host, strconv.Itoa(port)
		line, err := databaseLine(e.Name, params, version)
		if err == nil && (e.Host() != host || e.Port() != port) {
			lines[e.Line-1] = line
		}
		return err
	}
	remark(lines, views)
	offered := map[string]bool{}
	var added []string
	add := func(v *Shard, d config.Database, name string, to Readers) error {
		line, err := databaseLine(name, newParams(v, name, d, to), version)
		added = append(added, line)
		return err
	}
	for _, v := range views {
		leader := v.Route.Leader
		for _, d := range v.Databases {
			for _, name := range d.Names(v.mode) {
				offered[name] = true
			}
			e, found := file.Database(d.Name)
			if !found {
				if err := add(v, d, d.Name, Readers{Host: leader.Host, Port: leader.Port}); err != nil {
					return nil, err
				}
				if v.readers.unserved {
					continue
				}
				if err := add(v, d, d.ReadOnlyName(), v.readers); err != nil {
					return nil, err
				}
				continue
			}
			moves.add(e, leader.Host, leader.Port)
			if err := put(e, leader.Host, leader.Port); err != nil {
				return nil, err
			}
			e, found = file.Database(d.ReadOnlyName())
			switch {
			case found && v.readers.unserved && v.mode != config.ReadersOff:
				lines[e.Line-1] = "; " + d.ReadOnlyName() + ": no replica takes readers"
			case found && !v.readers.unserved:
				if err := put(e, v.readers.Host, v.readers.Port); err != nil {
					return nil, err
				}
			case v.mode == config.ReadersStrict && !v.readers.unserved: // there was no replica
				if err := add(v, d, d.ReadOnlyName(), v.readers); err != nil {
					return nil, err
				}
			}
		}
	}
	if e, found := file.Database("*"); found {
		for _, v := range views {
			if leader := v.Route.Leader; v.Fallback { // it may have been another's
				offered[e.Name] = true
				if err := put(e, leader.Host, leader.Port); err != nil {
					return nil, err
				}
			}
		}
	}
	for _, e := range file.Databases { // a template's own names for primaries
		if to, moved := moves.of(e); moved && !offered[e.Name] {
			if err := put(e, to.Host, to.Port); err != nil {
				return nil, err
			}
		}
	}
	if len(added) > 0 {
		slices.Sort(added)
		lines = append(lines, append([]string{"[databases]"}, added...)...)
		lines = append(lines, "")
	}
	return []byte(strings.Join(lines, "\n")), nil
}

// remark has the comments of shards say what their lines will.
func remark(lines []string, views []*Shard) {
	marks := make(map[config.ShardID]string, len(views))
	for _, v := range views {
		marks[v.ID] = v.template.Mark
	}
	for i, line := range lines {
		if id, _, _, ok := parseMark(line); ok && marks[id] != "" {
			lines[i] = markPrefix + string(id) + ": " + marks[id]
		}
	}
}

// moves says where primaries have gone, by where they were.
type moves map[pgbouncer.Address]*pgbouncer.Address

// add notes one; two primaries that were at one place say nothing.
func (m moves) add(e pgbouncer.Entry, host string, port int) {
	from, to := pgbouncer.Address{Host: e.Host(), Port: e.Port()}, pgbouncer.Address{Host: host, Port: port}
	if before, twice := m[from]; twice && (before == nil || *before != to) {
		m[from] = nil
		return
	}
	m[from] = &to
}

func (m moves) of(e pgbouncer.Entry) (to pgbouncer.Address, moved bool) {
	if one := m[pgbouncer.Address{Host: e.Host(), Port: e.Port()}]; one != nil {
		return *one, true
	}
	return pgbouncer.Address{}, false
}

// newParams are those of a database, by its name in PgBouncer, that the good file does not
// have.
func newParams(v *Shard, name string, d config.Database, to Readers) map[string]string {
	params := map[string]string{"host": to.Host, "port": strconv.Itoa(to.Port), "dbname": d.DBName}
	for _, o := range v.options[name] {
		params[o.Name] = o.Value
	}
	return params
}

// databaseLine writes one database, host and port first.
func databaseLine(name string, params map[string]string, version pgbouncer.Version) (string, error) {
	if name != "*" {
		var err error
		if name, err = pgbouncer.QuoteName(name, version); err != nil {
			return "", fmt.Errorf("last good configuration: database %w", err)
		}
	}
	first := []string{"port", "host"}
	keys := slices.SortedFunc(maps.Keys(params), func(a, b string) int {
		return cmp.Or(slices.Index(first, b)-slices.Index(first, a), strings.Compare(a, b))
	})
	for i, key := range keys {
		keys[i] = key + "=" + pgbouncer.QuoteValue(params[key])
	}
	return name + " = " + strings.Join(keys, " "), nil
}
