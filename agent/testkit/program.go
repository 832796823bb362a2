package testkit

import (
	"os"
	"syscall"
	"testing"
)

// WriteProgram writes a program that every user may run. Nothing is forked meanwhile: until
// it runs its own program, a process that another test starts would have the file open for
// writing, too, and nobody could run it (ETXTBSY of execve(2)).
func WriteProgram(t testing.TB, path string, content []byte) {
	t.Helper()
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	Must(t, os.WriteFile(path, content, 0o755)) //nolint:gosec // others run it
}
