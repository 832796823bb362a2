package postgres

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What is mounted in a data directory, and another cluster's data directory in it, keep it
// from being removed, whoever asks.
func TestWhatIsInsideIsNotRemoved(t *testing.T) {
	t.Parallel()
	ctx, dir := within(t), newDir(t)
	p := newInstance(t, settings(t, dir, "a"))
	id := bootstrapped(ctx, t, p)
	precious := filepath.Join(dir, "precious")
	put(t, filepath.Join(precious, "000000010000000000000001"), "somebody's WAL archive")
	for name, test := range map[string]struct {
		make   func(t *testing.T, p *Instance)
		remove func(p *Instance) error
		want   string
	}{
		"a mount point": {
			func(t *testing.T, p *Instance) {
				at := p.inData("my archive")
				must(t, os.Mkdir(at, 0o700))
				if err := unix.Mount(precious, at, "", unix.MS_BIND, ""); err != nil {
					t.Skipf("cannot mount: %v", err)
				}
			},
			func(p *Instance) error { return unix.Unmount(p.inData("my archive"), 0) },
			"my archive is a mount point",
		},
		"pg_wal as a mount point": {
			func(t *testing.T, p *Instance) {
				if err := unix.Mount(precious, p.inData("pg_wal"), "", unix.MS_BIND, ""); err != nil {
					t.Skipf("cannot mount: %v", err)
				}
			},
			func(p *Instance) error { return unix.Unmount(p.inData("pg_wal"), 0) },
			"pg_wal is a mount point",
		},
		"another data directory": {
			func(t *testing.T, p *Instance) { put(t, p.inData("other/15/main/global/pg_control"), "x") },
			func(p *Instance) error { return os.RemoveAll(p.inData("other")) },
			"other/15/main in ",
		},
	} {
		t.Run(name, func(t *testing.T) {
			test.make(t, p)
			removed := false
			defer func() {
				if !removed {
					_ = test.remove(p)
				}
			}()
			before := listing(t, dir)
			refused := func(what string, err error) {
				t.Helper()
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("%s: %v, want %s", what, err, test.want)
				}
				if after := listing(t, dir); !slices.Equal(before, after) {
					t.Fatalf("%s: something has changed", what)
				}
			}
			refused("a reinit", p.RemoveForReinit(ctx, allowed(t, p)))
			if d, err := p.DataDir(ctx); err != nil || d.State != Valid {
				t.Errorf("%+v %v", d, err)
			}
			for _, kind := range []string{markClone, markBootstrap, markCustom} {
				must(t, p.writeMarker(kind, id))
				before = listing(t, dir)
				refused(kind, p.DiscardIncomplete(ctx))
				must(t, p.unmark())
				before = listing(t, dir)
			}
			// What was moved aside before somebody put something into it.
			is, err := identity(p.dataDir)
			must(t, err)
			at := p.dataDir + asideInfix + "1"
			if name == "another data directory" { // a directory with a mount in it keeps that
				must(t, os.Rename(p.dataDir, at))
				refusedAside := p.removeAside(aside{Path: at, ID: is})
				must(t, os.Rename(at, p.dataDir))
				refused("what was moved aside", refusedAside)
			}
			must(t, test.remove(p))
			removed = true
		})
	}
	must(t, p.RemoveForReinit(ctx, allowed(t, p)))
	if left, err := os.ReadDir(precious); err != nil || len(left) != 1 {
		t.Errorf("%v %v", left, err)
	}
}
