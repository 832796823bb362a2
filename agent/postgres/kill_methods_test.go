package postgres

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// A container's process may fill a data directory of the same path, in a file system of its own.
func TestMethodsOfAContainerAreLeftAlone(t *testing.T) {
	p := filesOnly(t)
	marked := func(script string) *exec.Cmd {
		cmd := exec.Command("/bin/sh", "-c", script)
		cmd.Env = append(os.Environ(), methodMark+"="+p.dataDir)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		return cmd
	}
	ready := filepath.Join(t.TempDir(), "ready")
	other := marked("mount --make-rprivate / && mount -t tmpfs none '" + filepath.Dir(p.dataDir) + "' && mkdir '" + p.dataDir + "' && echo > '" + ready + "' && exec sleep 1000")
	other.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS
	if err := other.Start(); errors.Is(err, syscall.EPERM) {
		t.Skip("a mount namespace of its own: " + err.Error())
	} else {
		must(t, err)
	}
	defer func() { _ = other.Process.Kill(); _ = other.Wait() }()
	ours := marked("exec sleep 1000")
	same := marked("exec sleep 1000")
	same.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS // a program that has put itself into one
	must(t, ours.Start())
	must(t, same.Start())
	ends := make(chan *os.ProcessState, 2)
	for _, cmd := range []*exec.Cmd{ours, same} {
		go func() {
			_ = cmd.Wait() // it was killed
			ends <- cmd.ProcessState
		}()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	awaitFile(ctx, t, ready)
	must(t, p.killMethods(ctx))
	for range 2 {
		select {
		case state := <-ends:
			if status, ok := state.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
				t.Errorf("a method's process: %v", state)
			}
		case <-ctx.Done():
			t.Fatal("a method's process goes on")
		}
	}
	var status syscall.WaitStatus
	if pid, err := syscall.Wait4(other.Process.Pid, &status, syscall.WNOHANG, nil); pid != 0 || err != nil {
		t.Errorf("the container's process has ended: %v %v", status, err)
	}
}
