package postgres

import (
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/testkit"
)

// The loop asks for settings while configuration files are written, and the data directory's
// disk, where postgresql.auto.conf lies, gives nothing back: it does not wait.
func TestSettingsWhileADiskHangs(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	p := unwired(15, config.Postgres{}, cluster.DynamicPostgres{})
	p.dataDir, p.configDir, p.stateDir = newDir(t), newDir(t), newDir(t)
	put(t, p.inConf("postgresql.conf"), "work_mem = 1MB\n")
	hangs := p.inData("postgresql.auto.conf")
	must(t, unix.Mkfifo(hangs, 0o600))
	written := make(chan error, 1)
	go func() { written <- p.rewriteConfig() }()
	var pipe int
	testkit.Await(ctx, t, "the reading of "+hangs, func() (err error) {
		pipe, err = unix.Open(hangs, unix.O_WRONLY|unix.O_NONBLOCK, 0)
		return err
	})
	answered := make(chan bool, 1)
	go func() { answered <- p.UseSlots() }()
	select {
	case <-answered:
	case err := <-written:
		t.Fatalf("the files are written already: this tests nothing (%v)", err)
	case <-time.After(5 * time.Second):
		t.Error("the loop waits for the disk")
	}
	must(t, unix.Close(pipe))
	must(t, os.Remove(hangs))
	if err := <-written; err != nil {
		t.Log(err) // the directory is no cluster's
	}
}
