package postgres

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// hardConf is a file with all that PostgreSQL's grammar has.
const hardConf = `
# a comment
work_mem = 8MB                 # another
  Maintenance_Work_Mem '16MB'
temp_buffers=32MB
application_name = 'it''s \'so\' \\ and \141\tb'
my.Value = 'dotted'
lc_messages C.UTF-8
jit off
search_path = '"$user", public'
random_page_cost = 1.5
log_file_mode = 0640
include 'more.conf'
include_if_exists 'nothing.conf'
include_dir = 'conf.d'
work_mem = 9MB
`

// What is read of a file is what PostgreSQL reads of it.
func TestConfFileAsPostgresReadsIt(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	s := settings(t, dir, "a")
	custom := filepath.Join(dir, "custom.conf")
	s.Postgres.CustomConf = custom
	p := newInstance(t, s)
	put(t, custom, hardConf)
	put(t, filepath.Join(dir, "more.conf"), "log_line_prefix = '%m = # '\r\n")
	put(t, filepath.Join(dir, "conf.d", "b.conf"), "temp_buffers 64MB\n")
	put(t, filepath.Join(dir, "conf.d", "a.conf"), "temp_buffers 48MB\ninclude '../deep.conf'\n")
	put(t, filepath.Join(dir, "conf.d", ".c.conf"), "temp_buffers 1MB\n")
	put(t, filepath.Join(dir, "conf.d", "d.txt"), "temp_buffers 2MB\n")
	put(t, filepath.Join(dir, "deep.conf"), "log_statement='ddl'\n")
	for _, name := range []string{"custom.conf", "more.conf", "deep.conf", "conf.d", "conf.d/a.conf", "conf.d/b.conf"} {
		must(t, os.Chmod(filepath.Join(dir, name), 0o755))
	}
	bootstrapped(ctx, t, p)
	must(t, p.Start(ctx, StartAs{Role: Primary}))
	conn, err := p.dedicated(ctx)
	must(t, err)
	defer hangUpOn(conn)
	rows, err := conn.Query(ctx, `SELECT lower(name), setting, sourcefile, sourceline FROM pg_file_settings WHERE sourcefile NOT LIKE '%auto.conf' ORDER BY seqno`)
	must(t, err)
	var want []string
	for rows.Next() {
		var s confSetting
		must(t, rows.Scan(&s.Name, &s.Value, &s.File, &s.Line))
		want = append(want, fmt.Sprintf("%+v", s))
	}
	must(t, rows.Err())
	found, err := p.readConf(p.inData("postgresql.conf"))
	must(t, err)
	var got []string
	for _, s := range found {
		s.File = filepath.Clean(s.File)
		got = append(got, fmt.Sprintf("%+v", s))
	}
	if !slices.Equal(got, want) {
		t.Errorf("read:\n%s\nPostgreSQL:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
