package postgres

import (
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
)

// What the configuration weakens is held back in the files of a primary, as long as that is asked for, whoever writes them.
func TestHoldCommits(t *testing.T) {
	p := unwired(15, config.Postgres{}, cluster.DynamicPostgres{})
	p.dataDir, p.configDir, p.stateDir = newDir(t), newDir(t), newDir(t)
	base := p.inConf("postgresql.base.conf")
	put(t, base, "")
	says := func(name, want string) {
		t.Helper()
		lines, err := p.readConf(p.inConf("postgresql.conf"))
		must(t, err)
		got := "on"
		if line, set := lastOf(lines, name); set {
			got = line.Value
		}
		if got != want {
			t.Errorf("%s is %s in the file, want %s", name, got, want)
		}
	}
	parameters := func(all map[string]any) { p.Apply(cluster.Dynamic{Postgres: cluster.DynamicPostgres{Parameters: all}}) }
	write := func(as as) { t.Helper(); must(t, p.writeConfigToRun(as)) }
	primary := as{role: Primary}

	write(primary)
	p.HoldCommits(true)
	parameters(map[string]any{"synchronous_commit": "local", "fsync": false})
	if p.SynchronousCommit() != "local" || p.Fsync() {
		t.Error("what is configured is not told")
	}
	write(primary)
	must(t, p.rewriteConfig())
	says("synchronous_commit", "on")
	says("fsync", "on")
	if p.LetGo() {
		t.Error("it is to be written while it is held back")
	}
	p.HoldCommits(false)
	if !p.LetGo() || p.LetGo() {
		t.Error("it is not written, once, when nothing holds it back any more")
	}
	must(t, p.rewriteConfig())
	says("synchronous_commit", "local")
	says("fsync", "off")

	// What is weak already stays so, and what is made stronger is not held back.
	p.HoldCommits(true)
	parameters(map[string]any{"synchronous_commit": "off", "fsync": true})
	write(primary)
	says("synchronous_commit", "off")
	says("fsync", "on")
	parameters(map[string]any{"synchronous_commit": "remote_apply"})
	write(primary)
	says("synchronous_commit", "remote_apply")

	// The file of the operator's own that is left when a parameter goes.
	put(t, base, "synchronous_commit = off\n")
	parameters(nil)
	write(primary)
	says("synchronous_commit", "remote_apply")
	if got := p.SynchronousCommit(); got != "off" {
		t.Errorf("with the parameter gone it is configured as %s", got)
	}
	// A replica commits nothing.
	write(as{role: Replica})
	says("synchronous_commit", "off")
}

func TestKeeps(t *testing.T) {
	for value, want := range map[string][2]bool{
		"on": {true, true}, "TRUE": {true, true}, "remote_apply": {true, false}, "tr": {false, true},
		"off": {}, "0": {}, "local": {}, "remote_write": {}, "": {},
	} {
		if got := [2]bool{keeps(synchronousCommit, value), keeps(fsyncParameter, value)}; got != want {
			t.Errorf("%q: %v", value, got)
		}
	}
}

// Who began before commits were made to wait may not wait yet.
func TestStillWeaker(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	old := at(90)
	var w weaker
	look := func(commit string, fsync bool, loaded, now int, oldest *time.Time, want string) {
		t.Helper()
		if got := w.still(State{StartTime: at(1), SynchronousCommit: commit, Fsync: fsync}, at(loaded), at(now), oldest); got != want {
			t.Errorf("at %d: %q, want %q", now, got, want)
		}
	}
	look("on", true, 1, 100, &old, "on")    // it was started so
	look("off", true, 101, 102, nil, "off") // weaker
	look("on", true, 103, 104, &old, "")    // a statement is older than that
	mid := at(103)
	look("on", true, 103, 105, &mid, "") // and one is younger than the reload, which it may have met late
	late := at(104)
	look("on", true, 103, 106, &late, "on")
	look("on", true, 107, 108, &old, "") // the old one is still there
	look("on", false, 107, 109, nil, "on")
	look("on", true, 107, 110, &late, "")
	look("on", true, 107, 111, nil, "on")
	// An agent that begins anew does not know what was in force before the last reload.
	w = weaker{}
	look("remote_apply", true, 107, 112, &late, "")
	look("remote_apply", true, 107, 113, nil, "remote_apply")
}
