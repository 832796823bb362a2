package vm

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/e2e/vm/event"
)

const (
	powerCuts  = 2
	powerFiles = 48 // guest/power.go
	// The power is cut so long after the first installation.
	cutLeast = time.Second
	cutMost  = 6 * time.Second
)

// powerDisk is a file system, by how the guest mounts it and how it is made.
type powerDisk struct{ arguments, make []string }

// powerDisks are those on which RELOAD waits for no fsync.
func powerDisks() map[string]powerDisk {
	ext4 := []string{"mke2fs", "-q", "-F", "-t", "ext4"}
	return map[string]powerDisk{
		"ext4":           {nil, ext4},
		"ext4-writeback": {[]string{"options=data=writeback,noauto_da_alloc"}, ext4},
		"xfs":            {[]string{"filesystem=xfs"}, []string{"mkfs.xfs", "-q", "-f"}},
	}
}

// A power cut at any time leaves a pgbouncer.ini that is whole, the old one or the new one,
// though nothing waits for fsync; and what Keep has made last is not lost.
func TestPowerCut(t *testing.T) {
	w := open(t)
	for name, disk := range powerDisks() {
		t.Run(name, func(t *testing.T) {
			for range powerCuts {
				lasting, found := w.cutPower(t, disk, "power-cut")
				for i, e := range found {
					if e.Generation < lasting[i] {
						t.Errorf("file %d is of generation %d, %d was made to last: %s", i, e.Generation, lasting[i], e.Text)
					}
				}
			}
		})
	}
	// The same with nothing but a new name shows that this test would see it.
	t.Run("careless", func(t *testing.T) {
		disk, broken := powerDisks()["ext4-writeback"], 0
		for range powerCuts {
			_, found := w.cutPower(t, disk, "power-careless")
			for _, e := range found {
				if e.Generation < 0 {
					broken++
				}
			}
		}
		if broken == 0 {
			t.Error("a careless program's files are all whole after power cuts: this test shows nothing")
		}
		t.Logf("%d files of a careless program are broken after %d power cuts", broken, powerCuts)
	})
}

// cutPower runs a machine until its power is cut, and returns the generation to which
// each file was made to last, and what the next machine finds of them.
func (w *workshop) cutPower(t *testing.T, d powerDisk, scenario string) (lasting map[int]int, found map[int]event.Event) {
	t.Helper()
	ctx := within(t)
	t.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	path := filepath.Join(t.TempDir(), "disk")
	run(t, "truncate", "-s", "400M", path)
	run(t, d.make[0], append(d.make[1:], path)...)
	boot := func(scenario string) *Machine {
		return w.start(ctx, t, variant{"generic", "none"}, MachineOptions{Disk: path, KeepDisk: true}, append(d.arguments, "scenario="+scenario)...)
	}
	m := boot(scenario)
	await(ctx, t, m, event.Acted)
	until, cancel := context.WithTimeout(ctx, cutLeast+rand.N(cutMost-cutLeast))
	defer cancel()
	lasting, found = map[int]int{}, map[int]event.Event{}
	for {
		e, err := m.next(until)
		if until.Err() != nil {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if e.Name == event.Lasts {
			lasting[e.File] = e.Generation
		}
	}
	m.Close()

	m = boot("power-return")
	for {
		e, err := m.next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		switch e.Name {
		case event.Found:
			found[e.File] = e.Event
		case event.Survived:
			if _, last := end(ctx, t, m); last[event.Trouble].Text != "" || len(found) != powerFiles {
				t.Fatalf("%d files were found", len(found))
			}
			changed, most := 0, 0
			for _, e := range found {
				most = max(most, e.Generation)
				if e.Generation != 0 {
					changed++
				}
			}
			t.Logf("%d files of up to generation %d; %d were made to last", len(found), most, len(lasting))
			if changed == 0 {
				t.Error("nothing was installed before the cut: this shows nothing")
			}
			return lasting, found
		}
	}
}
