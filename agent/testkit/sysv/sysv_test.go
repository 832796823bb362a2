package sysv

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParse(t *testing.T) {
	pid, shm, ok := parse("4711\n/data\n1700000000\n5432\n/run\n127.0.0.1\n  12345678    99\nready   \n")
	if !ok || pid != 4711 || shm != 99 {
		t.Errorf("pid %d, segment %d, %v", pid, shm, ok)
	}
	for _, content := range []string{"", "4711\n", "x\n\n\n\n\n\n1 2\n", "4711\n\n\n\n\n\n\n"} {
		if _, _, ok := parse(content); ok {
			t.Errorf("%q was understood", content)
		}
	}
}

func TestRemove(t *testing.T) {
	left := func(name string, maker int) int {
		id, err := unix.SysvShmGet(unix.IPC_PRIVATE, 56, unix.IPC_CREAT|0o600)
		if err != nil {
			t.Skip(err)
		}
		t.Cleanup(func() { _, _ = unix.SysvShmCtl(id, unix.IPC_RMID, nil) })
		dir := filepath.Join(t.TempDir(), name)
		content := fmt.Sprintf("%d\n%s\n1700000000\n5432\n\n\n  1 %d\nready\n", maker, dir, id)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "postmaster.pid"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		Remove(filepath.Join(filepath.Dir(dir), "*"))
		return id
	}
	exists := func(id int) bool {
		_, err := unix.SysvShmCtl(id, unix.IPC_STAT, new(unix.SysvShmDesc))
		return err == nil
	}
	if exists(left("data", os.Getpid())) {
		t.Error("the segment of a postmaster that has ended is there")
	}
	if !exists(left("data", os.Getpid()+1)) {
		t.Error("a segment that another process made is gone")
	}
}
