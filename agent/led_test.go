package agent

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/lictor-ha/lictor/agent/member"
	"github.com/lictor-ha/lictor/agent/testkit"
)

func TestLedMark(t *testing.T) {
	path := filepath.Join(t.TempDir(), "led")
	said := func(want *member.LedMark) {
		t.Helper()
		got := (&ledMark{path: path}).read() // as a later run sees it
		if (got == nil) != (want == nil) || got != nil && *got != *want {
			t.Errorf("says %+v, want %+v", got, want)
		}
	}
	must := func(err error) { t.Helper(); testkit.Must(t, err) }
	mark := &ledMark{path: path}
	said(nil)
	must(mark.leads(0)) // there is no lease
	said(nil)
	must(mark.leads(70))
	must(mark.leads(90))
	said(&member.LedMark{Until: 70})
	must(mark.rests())
	said(&member.LedMark{Paused: true})
	must(mark.leads(120))
	said(&member.LedMark{Until: 120})
	must(mark.ends())
	must(mark.ends())
	said(&member.LedMark{Ended: true})
	must(mark.leads(130))
	said(&member.LedMark{Until: 130})
	must(mark.ends())
	// The host was lost while this member led: another one may lead since, whatever has started PostgreSQL here.
	must(os.WriteFile(path, []byte("another-boot 5 false\n"), 0o600))
	said(&member.LedMark{Until: member.LongAgo})
	must(os.WriteFile(path, []byte("another-boot 0 true\n"), 0o600))
	said(nil)
	must((&ledMark{path: path}).leads(50)) // by another run
	said(&member.LedMark{Until: 50})
	for _, broken := range []string{"", "x", "half a mark"} {
		must(os.WriteFile(path, []byte(broken), 0o600))
		said(&member.LedMark{Until: member.LongAgo})
	}

	// A pause ends while the disk is full.
	mark = &ledMark{path: path}
	must(mark.rests())
	must(os.Mkdir(path+".new", 0o700))
	must(mark.leads(80))
	said(&member.LedMark{Until: member.LongAgo})
	must(mark.leads(90))
	// A pause, and what was led with, ends while it is.
	must(os.WriteFile(path, []byte("another-boot 0 true\n"), 0o600))
	must(mark.ends())
	said(&member.LedMark{Until: member.LongAgo})
	must(os.Remove(path))
	if mark.leads(100) == nil {
		t.Error("a lease began though no mark of it could be made")
	}
	said(nil)
}

// What led here until it was stopped in an orderly way is no existing primary that was never
// Lictor's, in this boot or a later one: another member leads, most likely. What never led
// leaves no mark.
func TestEndedMark(t *testing.T) {
	path := filepath.Join(t.TempDir(), "led")
	g := &guardSupervisor{led: ledMark{path: path}}
	must := func(err error) { t.Helper(); testkit.Must(t, err) }
	must(g.led.ends())
	if r := member.Recall(member.GuardSays{}, g.led.read()); !r.Unled {
		t.Errorf("a replica that never led: %+v", r)
	}
	for name, begin := range map[string]func() error{
		"a lease": func() error { return g.led.leads(70) },
		"a pause": g.led.rests,
	} {
		must(begin())
		must(g.led.ends())
		later := &guardSupervisor{led: ledMark{path: path}}
		if r := member.Recall(member.GuardSays{}, later.led.read()); r != (member.Recalled{}) {
			t.Errorf("%s that has ended: %+v, want what is known of no deadline, and not that nobody led", name, r)
		}
	}
}
