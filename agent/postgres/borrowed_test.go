package postgres

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/config"
)

// A program that copies a data directory copies its links. If it succeeds PostgreSQL would
// write into the original's WAL and tablespaces, and a reinit would empty them (I7).
func TestCopiedLinksAreRefused(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	src, id, space := withLinks(ctx, t, dir)
	originals := []string{src.dataDir, filepath.Join(dir, "src-wal"), space}
	content := func(t *testing.T) (all []string) {
		t.Helper()
		for _, path := range originals {
			all = append(all, listing(t, path)...)
		}
		return all
	}
	before := content(t)
	unharmed := func(t *testing.T, after string) {
		t.Helper()
		if !slices.Equal(content(t), before) {
			t.Fatalf("%s: something of the original has changed", after)
		}
	}
	// What the originals were made of is older than any method.
	made, err := madeAt(src.inData("pg_tblspc"))
	must(t, err)
	for _, path := range before {
		if at, err := madeAt(path); err == nil && at.After(made) {
			made = at
		}
	}
	time.Sleep(time.Until(made.Add(clocksDiffer + 100*time.Millisecond)))

	var (
		wholly    = "rm -rf $d; cp -a " + src.dataDir + " $d\n"
		ownWAL    = "mkdir $d-wal; cp -a " + originals[1] + "/. $d-wal; ln -sfn $d-wal $d/pg_wal\n"
		ownSpace  = "mkdir $d-space; cp -a " + space + "/. $d-space; for l in $d/pg_tblspc/*; do ln -sfn $d-space $l; done\n"
		keepTimes = "touch -d 2001-01-01 $d-wal/* $d-space/* $d/base/*\n" // as restore programs do
		baseOut   = "mv $d/base $d-base; ln -s $d-base $d/base\n"
	)
	for _, test := range []struct {
		name, does string
		prepare    string // by somebody, before
		want       string // of the error; empty: it is taken
	}{
		{"all", wholly, "", "src-"},
		{"the tablespace", wholly + ownWAL, "", "src-space"},
		{"the WAL", wholly + ownSpace, "", "src-wal"},
		{"by way of another link", wholly + ownSpace + "ln -s " + originals[1] + " $d-way; ln -sfn $d-way $d/pg_wal\n", "", "src-wal"},
		{"hard links", "rm -rf $d; cp -al " + src.dataDir + " $d\n" + ownWAL + ownSpace, "", "global/"},
		{"base", wholly + ownWAL + ownSpace + "rm -r $d/base; ln -s " + src.inData("base") + " $d/base\n", "", "src/base"},
		{"all tablespaces", wholly + ownWAL + "rm -r $d/pg_tblspc; ln -s " + src.inData("pg_tblspc") + " $d/pg_tblspc\n", "", "src"},
		{"nothing", wholly + ownWAL + ownSpace + baseOut + keepTimes, "", ""},
		{"nothing, with directories that were there", wholly + strings.ReplaceAll(ownWAL+ownSpace, "mkdir", "mkdir -p"), "mkdir $d-wal $d-space; chown postgres: $d-wal $d-space\n", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.name != "hard links" { // it makes the originals hard links, too, for all others
				t.Parallel()
			}
			ctx := within(t) // the time that others take does not count
			at := newDir(t)
			p := newInstance(t, settings(t, at, "a"))
			if test.prepare != "" {
				if p.credential == nil {
					t.Skip("not root")
				}
				out, err := exec.Command("sh", "-ec", "d="+p.dataDir+"\n"+test.prepare).CombinedOutput()
				if err != nil {
					t.Fatalf("%v: %s", err, out)
				}
			}
			command := writeScript(t, at, "copy", "set -e\nd="+p.dataDir+"\nrm -rf $d-way $d-base\n"+test.does)
			methods := map[string]any{"copy": map[string]any{"command": command, "no_params": true, "no_leader": true}}
			judge := func(what string, err error) {
				t.Helper()
				if test.want == "" {
					must(t, err)
				} else if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "the command has left ") {
					t.Errorf("%s: %v, want %s", what, err, test.want)
				}
				unharmed(t, what)
			}
			if test.name == "all" || test.name == "nothing" {
				_, err := p.Bootstrap(ctx, config.Bootstrap{Method: "copy", Methods: methods})
				judge("a bootstrap", err)
				must(t, p.Kill(ctx))
				must(t, p.DiscardIncomplete(ctx))
				unharmed(t, "a bootstrap that was thrown away")
				for _, own := range []string{p.dataDir + "-wal", p.dataDir + "-space", p.dataDir + "-base"} {
					must(t, os.RemoveAll(own))
				}
			}
			local := *p.local.Load()
			local.CreateReplica, local.Methods = []string{"copy"}, methods
			p.Reconfigure(local)
			judge("a clone", p.MakeReplica(ctx, nil, id, nil))
			d, err := p.DataDir(ctx)
			must(t, err)
			if want := map[bool]DataState{true: Valid, false: Empty}[test.want == ""]; d.State != want {
				t.Errorf("%+v, want %s", d, want)
			}
			must(t, p.RemoveForReinit(ctx, allowed(t, p)))
			unharmed(t, "a reinit")
			if left, _ := filepath.Glob(p.dataDir + "-wal/0*"); test.want == "" && len(left) > 0 {
				t.Errorf("its own WAL is left: %v", left)
			}
		})
	}

	t.Run("a method that keeps data", func(t *testing.T) {
		t.Parallel()
		ctx := within(t)
		at := newDir(t)
		p := newInstance(t, settings(t, at, "a"))
		own := wholly + ownWAL + ownSpace
		methods := map[string]any{
			"first": map[string]any{"command": writeScript(t, at, "first", "set -e\nd="+p.dataDir+"\n"+own), "no_params": true, "no_leader": true},
			"keeps": map[string]any{"command": writeScript(t, at, "keeps", "exit 0"), "no_params": true, "no_leader": true, "keep_data": true},
			"copies": map[string]any{
				"command": writeScript(t, at, "copies", "set -e\nd="+p.dataDir+"\nrm -rf $d/*; cp -a "+src.dataDir+"/. $d"), "no_params": true, "no_leader": true, "keep_data": true,
			},
			"fails": map[string]any{
				"command": writeScript(t, at, "fails", "d="+p.dataDir+"\nrm -rf $d/*; cp -a "+src.dataDir+"/. $d; exit 1"), "no_params": true, "no_leader": true, "keep_data": true,
			},
		}
		with := func(names ...string) {
			local := *p.local.Load()
			local.CreateReplica, local.Methods = names, methods
			p.Reconfigure(local)
		}
		with("first")
		must(t, p.MakeReplica(ctx, nil, id, nil))
		made, err := madeAt(p.dataDir + "-wal")
		must(t, err)
		time.Sleep(time.Until(made.Add(clocksDiffer + 100*time.Millisecond)))
		with("keeps")
		must(t, p.RemoveForReinit(ctx, allowed(t, p)))
		must(t, p.MakeReplica(ctx, nil, id, nil)) // its own links are as they were
		for _, name := range []string{"copies", "fails"} {
			with("keeps")
			if d, err := p.DataDir(ctx); err != nil || d.State != Valid {
				t.Fatalf("%+v %v", d, err)
			}
			with(name)
			must(t, p.RemoveForReinit(ctx, allowed(t, p)))
			if err := p.MakeReplica(ctx, nil, id, nil); err == nil {
				t.Errorf("%s: a replica was made", name)
			}
			unharmed(t, name)
			must(t, os.RemoveAll(p.dataDir+"-wal"))
			must(t, os.RemoveAll(p.dataDir+"-space"))
			with("first")
			must(t, p.MakeReplica(ctx, nil, id, nil))
		}
	})
}

// pgBackRest restores links with --link-all and tablespaces with --tablespace-map; what it
// puts there has the times of the original.
func TestPgBackRestWithLinks(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("pgbackrest"); err != nil {
		t.Skip("pgbackrest is not installed")
	}
	ctx, dir := within(t), newDir(t)
	src, id, _ := withLinks(ctx, t, dir)
	options := fmt.Sprintf("--stanza=main --repo1-path=%[1]s/repo --log-path=%[1]s --lock-path=%[1]s/lock --config=/dev/null --log-level-console=warn", dir)
	for _, command := range []string{"stanza-create", "backup"} {
		words := append(strings.Fields(options), "--no-online", "--pg1-path="+src.dataDir, command)
		cmd := exec.CommandContext(ctx, "pgbackrest", words...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: src.credential}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("pgbackrest %s: %v: %s", command, err, out)
		}
	}
	s := settings(t, dir, "b")
	wal, space := filepath.Join(dir, "b-wal"), filepath.Join(dir, "b-space")
	s.Postgres.CreateReplica = []string{"pgbackrest"}
	s.Postgres.Methods = map[string]any{"pgbackrest": map[string]any{
		"no_params": true, "no_leader": true,
		"command": "pgbackrest " + options + " --pg1-path=" + s.Postgres.DataDir + " --type=none --link-all --link-map=pg_wal=" + wal + " --tablespace-map-all=" + space + " restore",
	}}
	p := newInstance(t, s)
	must(t, p.MakeReplica(ctx, nil, id, nil))
	for _, path := range []string{wal, space} {
		if entries, err := os.ReadDir(path); err != nil || len(entries) == 0 {
			t.Errorf("%s: %v %v", path, entries, err)
		}
	}
}
