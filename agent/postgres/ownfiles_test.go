package postgres

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
)

// readable lets PostgreSQL's user read what a test has put somewhere.
func readable(t *testing.T, paths ...string) {
	t.Helper()
	for _, path := range paths {
		must(t, os.Chmod(path, 0o755))
	}
}

// No configuration file may move PostgreSQL to another data directory: agent and
// guard would look for it, and kill it, in the wrong one.
func TestNoFileMovesTheDataDirectory(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	s := settings(t, dir, "a")
	p := newInstance(t, s)
	bootstrapped(ctx, t, p)
	elsewhere := newInstance(t, settings(t, dir, "b")) // what it would run on
	bootstrapped(ctx, t, elsewhere)
	base := p.inData("postgresql.base.conf")
	original, err := os.ReadFile(base)
	must(t, err)
	other := filepath.Join(dir, "other.conf")
	put(t, other, "  Data_Directory '"+elsewhere.dataDir+"' # moved\n")
	put(t, filepath.Join(dir, "d", "x.conf"), "data_directory='"+elsewhere.dataDir+"'")
	readable(t, other, filepath.Join(dir, "d"), filepath.Join(dir, "d", "x.conf"))
	for _, test := range []struct{ name, base, custom, auto, want string }{
		{name: "carried over", base: "data_directory = '" + elsewhere.dataDir + "'\n", want: "postgresql.base.conf line "},
		{name: "include", base: "include '" + other + "'\n", want: other + " line 1"},
		{name: "include_dir", base: "include_dir = '" + filepath.Join(dir, "d") + "'\n", want: "x.conf line 1"},
		{name: "custom_conf", custom: other, want: other + " line 1"},
		{name: "auto", auto: "data_directory = '" + elsewhere.dataDir + "'\n", want: "postgresql.auto.conf line 1"},
		{name: "config_file", base: "config_file = '" + other + "'\n", want: "config_file = "},
	} {
		t.Run(test.name, func(t *testing.T) {
			local := *p.local.Load()
			local.CustomConf = test.custom
			p.Reconfigure(local)
			put(t, base, string(original)+test.base)
			put(t, p.inData("postgresql.auto.conf"), test.auto)
			readable(t, base, p.inData("postgresql.auto.conf"))
			err := p.Start(ctx, StartAs{Role: Primary})
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "remove the line") {
				t.Errorf("started: %v, want %s", err, test.want)
			}
			if p.Running() {
				must(t, p.Kill(ctx))
				must(t, elsewhere.Kill(ctx))
			}
		})
	}
	// A line that says what is so anyway does no harm: Debian's file has one.
	put(t, base, string(original)+"data_directory = '"+p.dataDir+"/'\n")
	put(t, p.inData("postgresql.auto.conf"), "")
	readable(t, base, p.inData("postgresql.auto.conf"))
	local := *p.local.Load()
	local.CustomConf = ""
	p.Reconfigure(local)
	must(t, p.Start(ctx, StartAs{Role: Primary}))
}

// A relative hba_file begins in the data directory, as PostgreSQL takes it: the agent's own
// file is not somebody else's for that.
func TestRelativeAccessFile(t *testing.T) {
	lines := []string{"local all all peer"}
	for named, ours := range map[string]bool{"pg_hba.conf": true, "./pg_hba.conf": true, "conf/pg_hba.conf": false} {
		p := unwired(15, config.Postgres{PgHBA: lines, Parameters: map[string]any{"hba_file": named}}, cluster.DynamicPostgres{})
		p.dataDir, p.configDir = "/srv/pg", "/srv/pg"
		if f := p.hbaFile(nil); (len(f.lines) > 0) != ours || ours && f.path != "/srv/pg/pg_hba.conf" {
			t.Errorf("%s: %+v", named, f)
		}
	}
}

// The operator's own hba_file, ident_file and external_pid_file are used, whichever
// layer names them: a role that the file rejects does not log in.
func TestOwnAccessFiles(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	s := settings(t, dir, "a")
	p := newInstance(t, s)
	bootstrapped(ctx, t, p)
	hba, pid := filepath.Join(dir, "own hba's.conf"), filepath.Join(dir, "pid")
	put(t, hba, "host all \"Rewinder\" all reject\nhost all all all scram-sha-256\n")
	ident := filepath.Join(dir, "ident.conf")
	put(t, ident, "m root postgres\n")
	readable(t, hba, ident)
	names := map[string]any{"hba_file": hba, "Ident_File": ident, "external_pid_file": pid}
	var inFile strings.Builder
	for name, value := range names {
		inFile.WriteString(name + " = " + quote(value.(string)) + "\n")
	}
	base := p.inData("postgresql.base.conf")
	original, err := os.ReadFile(base)
	must(t, err)
	lines := []string{"host all all all trust"}
	for _, test := range []struct {
		name  string
		local config.Postgres
		dyn   bool
		base  string
	}{
		{name: "local", local: config.Postgres{Parameters: names, PgHBA: lines}},
		{name: "dynamic", dyn: true},
		{name: "carried over", base: inFile.String()},
	} {
		t.Run(test.name, func(t *testing.T) {
			local := *p.local.Load()
			local.PgHBA, local.Parameters = test.local.PgHBA, map[string]any{"fsync": "off", "unix_socket_directories": dir}
			for name, value := range test.local.Parameters {
				local.Parameters[name] = value
			}
			p.Reconfigure(local)
			d := p.dynamic
			d.Postgres.Parameters = nil
			if test.dyn {
				d.Postgres.Parameters = names
			}
			p.Apply(d)
			put(t, base, string(original)+test.base)
			readable(t, base)
			must(t, p.Start(ctx, StartAs{Role: Primary}))
			conn, err := p.dedicated(ctx)
			must(t, err)
			var gotHBA, gotIdent string
			must(t, conn.QueryRow(ctx, "SELECT current_setting('hba_file'), current_setting('ident_file')").Scan(&gotHBA, &gotIdent))
			hangUpOn(conn)
			if gotHBA != hba || gotIdent != ident {
				t.Errorf("hba_file %s, ident_file %s", gotHBA, gotIdent)
			}
			if _, err := os.Stat(pid); err != nil {
				t.Error(err)
			}
			rejected, err := p.connect(ctx, "127.0.0.1", p.port, p.local.Load().Authentication.Rewind, "postgres", "test")
			if err == nil {
				hangUpOn(rejected)
				t.Error("a role that the operator's file rejects has logged in")
			}
			must(t, p.Stop(ctx, Fast))
		})
	}
}
