package pgbouncer_test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/bouncer/bouncertest"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

// A thousand databases are released together. What PgBouncer does not take for paused keeps none of
// the others, and waiting for each answer before the next command takes longer.
func TestResumeAll(t *testing.T) {
	installed(t)
	const databases = 1000
	dir, port := bouncertest.Dir(t), bouncertest.FreePort(t)
	text := "[databases]\n"
	var names []string
	for i := range databases {
		names = append(names, fmt.Sprintf("s%d", i))
		text += names[i] + " = host=127.0.0.1\n"
	}
	text += fmt.Sprintf("[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = %d\nunix_socket_dir =\nauth_type = any\nadmin_users = pooler\n", port)
	path := filepath.Join(dir, "pgbouncer.ini")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := bouncertest.Unprivileged(exec.Command("pgbouncer", path))
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	up := make(chan struct{}, 1)
	go func() { // ends with the process
		defer close(read)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			if strings.Contains(lines.Text(), "process up") {
				up <- struct{}{}
			}
		}
	}()
	t.Cleanup(func() { _ = cmd.Process.Kill(); <-read; _ = cmd.Wait() })
	select {
	case <-up:
	case <-read:
		t.Fatal("PgBouncer does not start")
	}
	conn, err := pgbouncer.Connect(t.Context(), pgbouncer.Options{Address: pgbouncer.Address{Host: "127.0.0.1", Port: port}, User: "pooler"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	paused := func() (n int) {
		t.Helper()
		all, err := conn.Databases(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range all {
			if d.Paused {
				n++
			}
		}
		return n
	}
	pause := func() {
		t.Helper()
		if _, err := conn.StartPauses(t.Context(), names); err != nil || paused() != databases {
			t.Fatalf("%v, %d are paused", err, paused())
		}
	}
	pause()
	begun := time.Now()
	for _, name := range names {
		if err := conn.Resume(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	single := time.Since(begun)
	pause()
	if err := conn.Resume(t.Context(), "s7"); err != nil {
		t.Fatal(err)
	}
	begun = time.Now()
	refused, err := conn.ResumeAll(t.Context(), slices.Concat([]string{"nobody"}, names))
	together := time.Since(begun)
	if err != nil || paused() != 0 || len(refused) != 2 || !errors.Is(refused["s7"], pgbouncer.ErrRefused) || !errors.Is(refused["nobody"], pgbouncer.ErrRefused) {
		t.Errorf("%v, refused are %v, %d are paused", err, refused, paused())
	}
	t.Logf("one after another %v, together %v", single, together)
	if together > single {
		t.Errorf("together they take %v, one after another %v", together, single)
	}
}
