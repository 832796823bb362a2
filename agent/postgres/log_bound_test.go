package postgres

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

// What PostgreSQL writes to stderr may be all of its log: it does not fill the disk.
func TestLogIsBounded(t *testing.T) {
	p := filesOnly(t)
	must(t, p.BoundLog()) // there is none
	path := p.stateFile("postgres.log")
	log, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640) // as PostgreSQL has it
	must(t, err)
	defer log.Close()
	write := func(text string) {
		t.Helper()
		_, err := log.WriteString(text)
		must(t, err)
	}
	write("first\n")
	must(t, p.BoundLog())
	if content, err := os.ReadFile(path); err != nil || string(content) != "first\n" {
		t.Errorf("a short one was changed: %q %v", content, err)
	}
	must(t, log.Truncate(logMost+1)) // a hole costs nothing
	write("last\n")
	offset := p.fileSize(path)
	must(t, p.BoundLog())
	if size := p.fileSize(path); size != 0 {
		t.Errorf("it has %d bytes", size)
	}
	kept, err := os.ReadFile(path + ".old")
	must(t, err)
	if len(kept) != logKept || !bytes.HasSuffix(kept, []byte("\x00last\n")) {
		t.Errorf("kept are %d bytes", len(kept))
	}
	write("PANIC:  next\n")
	if content, err := os.ReadFile(path); err != nil || string(content) != "PANIC:  next\n" {
		t.Errorf("%q %v", content, err)
	}
	// Why PostgreSQL has ended is found, though its log was longer when it was started.
	if tail := p.logTail(path, offset); !strings.Contains(tail, "next") {
		t.Errorf("%q", tail)
	}

	// What cannot be kept does not keep it from ending.
	must(t, os.Remove(path+".old"))
	must(t, os.MkdirAll(path+".old/x", 0o700))
	must(t, log.Truncate(logMost+1))
	if err := p.BoundLog(); err == nil || p.fileSize(path) != 0 {
		t.Errorf("%v, it has %d bytes", err, p.fileSize(path))
	}
}
