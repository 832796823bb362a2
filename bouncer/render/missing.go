package render

import (
	"strconv"

	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

// WithMissing adds to a text the databases whose shards cannot be followed, by their names, as
// PgBouncer or its installed file has them: a database that is left out is dropped with
// all its clients.
func WithMissing(
	text []byte, file pgbouncer.File, installed []byte, standing map[string]pgbouncer.Database, names []string, version pgbouncer.Version,
) ([]byte, pgbouncer.File, error) {
	old, err := pgbouncer.ParseFile(installed)
	if err != nil {
		old = pgbouncer.File{} // somebody else's: PgBouncer itself will tell
	}
	kept := ""
	for _, name := range names {
		if _, has := file.Database(name); has {
			continue // the template's own
		}
		params := paramsOf(name, old, standing)
		if params == nil {
			continue
		}
		line, err := databaseLine(name, params, version)
		if err != nil {
			continue // PgBouncer could not read it
		}
		kept += line + "\n"
	}
	if kept == "" {
		return text, file, nil
	}
	text = append(append(text[:len(text):len(text)], "\n[databases]\n; their shards cannot be followed: as they were\n"...), kept...)
	file, err = pgbouncer.ParseFile(text)
	return text, file, err
}

// paramsOf is how a database is known, nil: not at all.
func paramsOf(name string, installed pgbouncer.File, standing map[string]pgbouncer.Database) map[string]string {
	e, written := installed.Database(name)
	d, stands := standing[name]
	switch {
	case written && (!stands || d.Host == e.Host() && (e.Host() == "" || d.Port == e.Port())):
		return e.Params()
	case !stands:
		return nil
	}
	params := map[string]string{"dbname": d.Database}
	if d.Host != "" {
		params["host"], params["port"] = d.Host, strconv.Itoa(d.Port)
	}
	if d.PoolMode != "" {
		params["pool_mode"] = d.PoolMode
	}
	return params
}
