package operator

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/backup"
	"github.com/lictor-ha/lictor/agent/cluster"
)

// repositoryWith is a pgBackRest that has one backup of the cluster 77, which ended at a moment and
// is of that size, and WAL that came later. It notes what it is asked for.
func repositoryWith(t *testing.T, ended, archived time.Time, size int64) (r backup.Repository, asked func() string) {
	t.Helper()
	dir := t.TempDir()
	info := fmt.Sprintf(`[{"name":"orders","db":[{"id":1,"repo-key":1,"system-id":77,"version":"15"}],"repo":[{"key":1,"status":{"code":0,"message":"ok"}}],
"status":{"code":0,"lock":{"backup":{"held":false}},"message":"ok"},
"archive":[{"database":{"id":1,"repo-key":1},"id":"15-1","max":"000000010000000000000005","min":"000000010000000000000001"}],
"backup":[{"label":"20261129-222932F","type":"full","error":false,"database":{"id":1,"repo-key":1},
"info":{"delta":1,"repository":{"delta":1,"size":1},"size":%d},"timestamp":{"start":%d,"stop":%d}}]}]`, size, ended.Unix()-9, ended.Unix())
	segments := fmt.Sprintf(`{"000000010000000000000005-bb.zst":{"type":"file","size":1,"time":%d}}`, archived.Unix())
	const top = `{".":{"type":"path"},"0000000100000000":{"type":"path"},"00000002.history":{"type":"file","size":1,"time":1}}`
	log, program := filepath.Join(dir, "asked"), filepath.Join(dir, "pgbackrest")
	script := "#!/bin/sh\necho \"$*\" >>" + log + "\ncase \"$*\" in\n"
	for pattern, out := range map[string]string{
		"repo-ls archive/orders/15-1": top, "repo-ls archive/orders/15-1/0000000100000000": segments,
		"repo-get archive/orders/15-1/00000002.history": "1\t0/1000000\tno recovery target specified", " info": info,
	} {
		script += "*'" + pattern + "') cat <<'END'\n" + out + "\nEND\n;;\n"
	}
	script += "*) exit 1;; esac\n"
	if err := os.WriteFile(program, []byte(script), 0o700); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	return backup.Repository{Command: []string{program}, Stanza: "orders"}, func() string {
		content, err := os.ReadFile(log)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		return string(content)
	}
}

// What cannot be restored is refused before anything is touched: pgBackRest is asked what there
// is, and that alone.
func TestRestoreIsRefused(t *testing.T) {
	ended, now := time.Now().Add(-time.Hour), time.Now()
	for name, test := range map[string]struct {
		target   time.Time
		label    string
		archived time.Time
		size     int64
		edit     func(*cluster.Snapshot)
		want     string // empty: it can be
	}{
		"between the backup and the last WAL": {target: ended.Add(time.Minute)},
		"from that backup":                    {target: ended.Add(time.Minute), label: "20261129-222932F"},
		"before the first backup":             {target: ended.Add(-time.Minute), want: "earlier than the end of the first good backup"},
		"after the last WAL":                  {target: ended.Add(time.Minute), archived: ended.Add(30 * time.Second), want: "is later than the last WAL of timeline 2 in the archive"},
		"in the future":                       {target: now.Add(time.Hour), want: "is in the future"},
		"from another shard's backup":         {target: ended.Add(time.Minute), label: "20261129-222933F", want: "--from-backup: "},
		"where the backups are another cluster's": {
			target: ended.Add(time.Minute), edit: func(s *cluster.Snapshot) { s.Initialize.Value = "78" }, want: "--to: ",
		},
		"where the cluster is not known": {
			target: ended.Add(time.Minute), edit: func(s *cluster.Snapshot) { s.Initialize.Value = "" }, want: "does not know the system identifier",
		},
		"where there is no room": {target: ended.Add(time.Minute), size: 1 << 60, want: "MB free"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if test.archived.IsZero() {
				test.archived = now
			}
			r, asked := repositoryWith(t, ended, test.archived, max(test.size, 1))
			snapshot := shardOf(func(s *cluster.Snapshot) {
				s.Members[0].Value.ConnURL = "postgres://127.0.0.1:1/postgres" // nobody answers: the archive is as it is
				if test.edit != nil {
					test.edit(s)
				}
			})
			s := &Shard{Scope: "orders", site: &Site{}}
			_, err := s.check(t.Context(), &Console{Out: io.Discard, Err: io.Discard}, r, snapshot, test.target, test.label, t.TempDir())
			if test.want == "" && err != nil || test.want != "" && (ExitCode(err) != ExitRefused || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("%v, want %q; pgBackRest was asked %s", err, test.want, asked())
			}
			for line := range strings.Lines(asked()) {
				if !strings.HasSuffix(line, " info\n") && !strings.Contains(line, " repo-ls ") && !strings.Contains(line, " repo-get ") {
					t.Errorf("pgBackRest was asked for %s", line)
				}
			}
		})
	}
}

// A repository that cannot be read is told at once: nobody is asked to archive anything for it.
func TestRestoreWithoutARepository(t *testing.T) {
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	asked := make(chan struct{}, 1)
	go func() { // ends with the listener
		if conn, err := l.Accept(); err == nil {
			conn.Close()
			asked <- struct{}{}
		}
	}()
	snapshot := shardOf(func(s *cluster.Snapshot) {
		s.Members[0].Value.ConnURL = "postgres://" + l.Addr().String() + "/postgres"
	})
	s := &Shard{Scope: "orders", site: &Site{}}
	r := backup.Repository{Command: []string{"false"}, Stanza: "orders"}
	_, err = s.check(t.Context(), &Console{Out: io.Discard, Err: io.Discard}, r, snapshot, time.Now().Add(-time.Hour), "", t.TempDir())
	if err == nil || !strings.Contains(err.Error(), "pgBackRest cannot read the repository") {
		t.Errorf("%v", err)
	}
	select {
	case <-asked:
		t.Error("the leader was asked to archive")
	default:
	}
}

// Neither the shard nor its keys are looked at where the moment is not clear.
func TestRestoreToAnUnclearMoment(t *testing.T) {
	for to, want := range map[string]string{
		"2026-11-29 10:00":     "has no zone",
		"2026-11-29 10:00 CST": "a zone's name may stand for several offsets",
		"yesterday":            "must be a date and a time of day",
	} {
		if err := Restore(t.Context(), &Console{}, &Shard{}, RestoreOptions{To: to}); ExitCode(err) != ExitUsage || !strings.Contains(err.Error(), "--to: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", to, err)
		}
	}
}

// A shard is put back on its leader's host, with the leader's own file.
func TestRestoreElsewhere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "orders.yml")
	missing := filepath.Join(t.TempDir(), "missing")
	if err := os.WriteFile(path, []byte(strings.Replace(livingFile, "/srv/orders", missing, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	s := &Shard{Scope: "orders", site: &Site{Settings: Settings{Path: path}}}
	leads := func(name string) func(*cluster.Snapshot) {
		return func(s *cluster.Snapshot) { s.Leader.Value, s.Members[0].Value.Name = name, name }
	}
	for name, test := range map[string]struct {
		edit func(*cluster.Snapshot)
		want string
	}{
		"nobody leads":      {leads(""), "has no leader"},
		"another leads":     {leads("db2"), "db2 leads orders, and --config is the file of db1: run this on the leader's host"},
		"no data directory": {leads("db1"), "the data directory of db1"},
	} {
		if _, err := s.inPlace(t.Context(), &Console{}, shardOf(test.edit), time.Now(), RestoreOptions{}); ExitCode(err) != ExitRefused || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
