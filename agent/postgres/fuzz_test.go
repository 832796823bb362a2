package postgres

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/pg"
)

// FuzzControl: whatever a program of PostgreSQL prints, reading it ends, and what is read
// is what it says.
func FuzzControl(f *testing.F) {
	f.Add("Database system identifier:           7300000000000000001\nLatest checkpoint's TimeLineID:       3\nLatest checkpoint location:           0/3000060\n" +
		"Minimum recovery ending location:     0/0\nmax_connections setting:              100\nmax_locks_per_xact setting:           64\n")
	f.Add("Latest checkpoint's TimeLineID: 99999999999999999999\nDatabase system identifier: x")
	f.Add("postgres (PostgreSQL) 15.3 (Debian 15.3-0+deb12u1)")
	f.Add("1\t0/3000060\tno recovery target specified\n\n2\tFFFFFFFF/FFFFFFFF\tbefore 2000-01-01\n")
	f.Add("# a comment\n1\n")
	f.Add("-1/0")
	f.Fuzz(func(t *testing.T, out string) {
		if c, err := parseControl(out); err == nil {
			if c.SystemIdentifier == "" || c.Timeline == 0 {
				t.Errorf("%q: %+v", out, c)
			}
			_ = c.made()
		}
		if lsn, err := pg.ParseLSN(out); err == nil {
			if again, err := pg.ParseLSN(pg.FormatLSN(lsn)); err != nil || again != lsn {
				t.Errorf("%q is %d, written %s, which is %d %v", out, lsn, pg.FormatLSN(lsn), again, err)
			}
		}
		if major, err := parseMajor(out); err == nil && major < 12 {
			t.Errorf("%q: major version %d", out, major)
		}
		history, err := pg.ParseHistory(out)
		for _, h := range history {
			if err == nil && strings.ContainsAny(h.Reason, "\n") {
				t.Errorf("%q: a reason of several lines: %q", out, h.Reason)
			}
		}
	})
}

// FuzzConf: no line of a configuration file harms the next, and a value that is written is
// read again as it was.
func FuzzConf(f *testing.F) {
	for _, seed := range []string{
		"work_mem = 4MB # comment", "a.b='it''s'", `x = 'a\'b\n\007'`, "=", "'", "name '", "port 5432 x", "restore_command = 'cp \"%f\" %p'", "\x00", "a = \xff",
		"A\t=\tb\r", "x='\\", "x = ''''",
	} {
		f.Add(seed)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, line string) {
		name, value, ok := confLine(line)
		if ok && (name == "" || name != strings.ToLower(name)) {
			t.Errorf("%q: name %q", line, name)
		}
		_, _ = name, value
		if !strings.ContainsAny(line, "\x00\n") {
			_, back, ok := confLine("x = " + quote(line))
			if !ok || back != line {
				t.Errorf("%q is written %s and read as %q, %v", line, quote(line), back, ok)
			}
		}
		if strings.Contains(strings.ToLower(line), "include") {
			return // other files are no business of this
		}
		file := filepath.Join(dir, "f.conf")
		if err := os.WriteFile(file, []byte(strings.ReplaceAll(line, "\n", " ")+"\nlast = 'x'\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		all, err := (&installation{}).readConf(file)
		if err != nil || len(all) == 0 || all[len(all)-1].Name != "last" || all[len(all)-1].Value != "x" {
			t.Errorf("%q hides the next line: %+v %v", line, all, err)
		}
	})
}

// FuzzSlotFiles: a logical slot's files come from another host. What is taken of them is whole, of
// the slot that was asked for, and leads to no other file than its snapshot.
func FuzzSlotFiles(f *testing.F) {
	state := func(name string, restart uint64) []byte {
		b := make([]byte, restartLSNAt+8+40)
		binary.NativeEndian.PutUint32(b, slotMagic)
		binary.NativeEndian.PutUint32(b[12:], uint32(len(b)-slotHead))
		copy(b[slotHead:slotHead+slotNameSize], name)
		binary.NativeEndian.PutUint64(b[restartLSNAt:], restart)
		return b
	}
	snapshot := binary.NativeEndian.AppendUint32(nil, snapshotMagic)
	f.Add(state("cdc", 0x3000060), "cdc", append(snapshot, make([]byte, 60)...))
	f.Add(state("cdc", 1<<63), "cdc", []byte{})
	f.Add(state(strings.Repeat("x", slotNameSize), 1), strings.Repeat("x", slotNameSize), snapshot)
	f.Add([]byte{}, "", []byte{0})
	path := regexp.MustCompile(`^pg_logical/snapshots/[0-9A-F]{1,8}-[0-9A-F]{1,8}\.snap$`)
	f.Fuzz(func(t *testing.T, state []byte, name string, snapshot []byte) {
		state, snapshot = slices.Clone(state), slices.Clone(snapshot) // the fuzzer's own are not to be changed
		// A random checksum is hardly ever right.
		for _, sum := range []bool{false, true} {
			for _, b := range [][]byte{state, snapshot} {
				if sum && len(b) > slotSummed {
					binary.NativeEndian.PutUint32(b[4:], crc32.Checksum(b[slotSummed:], crc32.MakeTable(crc32.Castagnoli)))
				}
			}
			file := pg.SlotFile{Slot: cluster.Slot{Name: name}, State: state, Snapshot: snapshot}
			if checkSnapshot(file) == nil && len(snapshot) > slotHead {
				file.Snapshot = slices.Clone(snapshot)
				if file.Snapshot[len(snapshot)-1] ^= 1; checkSnapshot(file) == nil {
					t.Errorf("%x, of which the last bit was changed, is whole", file.Snapshot)
				}
			}
			if checkSlotState(file) != nil {
				continue
			}
			if lsn := restartLSN(file); lsn <= 0 || !path.MatchString(snapshotFile(file)) || len(name) > slotNameSize || !bytes.HasPrefix(state[slotHead:], []byte(name)) {
				t.Errorf("%q: %x is taken, begins at %d, and has the snapshot %s", name, state, lsn, snapshotFile(file))
			}
			file.State = slices.Clone(state)
			if file.State[len(state)-1] ^= 1; checkSlotState(file) == nil {
				t.Errorf("%x, of which the last bit was changed, is whole", file.State)
			}
			file.State = state[:len(state)-1]
			if checkSlotState(file) == nil {
				t.Errorf("%x, which was cut off, is whole", file.State)
			}
		}
	})
}
