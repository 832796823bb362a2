package postgres

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What pg_rewind tells, in the forms of versions before and after 15.
func TestRewindPlan(t *testing.T) {
	t.Parallel()
	const said = `pg_rewind: base/1/1259 (NONE)
pg_rewind: block 3
pg_rewind: debug: block 17
pg_rewind: pg_wal/000000020000000000000004 (COPY)
pg_rewind: pg_wal/00000002.history (COPY)
pg_rewind: base/5/16384 (COPY_TAIL)
pg_rewind: need to copy 68 MB (total source directory size is 87 MB)
`
	want := rewindPlan{fetched: 69 << 20, overwrite: 2 * 8192, wal: []string{"pg_wal/000000020000000000000004"}}
	if got := parseRewindPlan(said, 8192); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
	if got := parseRewindPlan("pg_rewind: no rewind required\n", 8192); !reflect.DeepEqual(got, rewindPlan{}) {
		t.Errorf("%+v", got)
	}
}

// A rewind that finds no room breaks off half-way, and what it leaves has to be cloned
// anew. So it is not begun, and done once there is room.
func TestRewindWithoutRoom(t *testing.T) {
	t.Parallel()
	for _, crashed := range []bool{false, true} {
		name := "shut down"
		if crashed {
			name = "crashed"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, dir := within(t), newDir(t)
			small := filepath.Join(dir, "small")
			must(t, os.Mkdir(small, 0o777)) //nolint:gosec // PostgreSQL's user mounts nothing
			if err := unix.Mount("lictor-test", small, "tmpfs", 0, "size=400m,mode=777"); errors.Is(err, unix.EPERM) {
				t.Skip("only root may mount a file system")
			} else {
				must(t, err)
			}
			t.Cleanup(func() { must(t, unix.Unmount(small, unix.MNT_DETACH)) })
			a := newInstance(t, settings(t, dir, "a"))
			bootstrapped(ctx, t, a)
			must(t, a.Start(ctx, StartAs{Role: Primary}))
			s := settings(t, dir, "b")
			s.Postgres.DataDir = filepath.Join(small, "b")
			s.StateDir = filepath.Join(dir, "state") // so that it is not the state that finds no room
			b := newInstance(t, s)
			must(t, b.BaseBackup(ctx, upstream(a), nil))
			// Both go their ways.
			must(t, b.Start(ctx, StartAs{Role: Primary}))
			sql(ctx, t, b, "CREATE TABLE public.other ()")
			if crashed {
				must(t, b.Kill(ctx))
			} else {
				must(t, b.Stop(ctx, Fast))
			}
			must(t, a.Stop(ctx, Fast))
			must(t, a.Start(ctx, StartAs{Role: Replica}))
			observe(ctx, t, a, "a replica", func(s State) bool { return s.InRecovery && s.Accepting })
			must(t, a.Promote(ctx, 0))
			sql(ctx, t, a, "CHECKPOINT") // or a rewind waits for that of the promotion
			sql(ctx, t, a, "CREATE TABLE public.large AS SELECT md5(n::text) FROM generate_series(1, 500000) n")

			ballast := filepath.Join(small, "ballast")
			leave := func(free int64) {
				t.Helper()
				var fs unix.Statfs_t
				must(t, unix.Statfs(small, &fs))
				file, err := os.Create(ballast)
				must(t, err)
				must(t, unix.Fallocate(int(file.Fd()), 0, 0, int64(fs.Bavail)*fs.Bsize-free))
				must(t, file.Close())
			}
			for _, free := range []int64{4 << 10, 20 << 20, 100 << 20} {
				leave(free)
				for range 2 {
					_, err := b.Rewind(ctx, upstream(a), true)
					if err == nil || strings.Contains(err.Error(), "half-written") || errors.Is(err, ErrDiverged) {
						t.Fatalf("with %d bytes free: %v", free, err)
					}
					t.Log(err)
				}
				must(t, os.Remove(ballast))
			}
			leave(240 << 20)
			outcome, err := b.Rewind(ctx, upstream(a), true)
			must(t, err)
			if outcome != Rewound {
				t.Errorf("%s", outcome)
			}
			up := upstream(a)
			must(t, b.Start(ctx, StartAs{Role: Replica, Upstream: &up}))
			observe(ctx, t, b, "a replica", func(s State) bool { return s.InRecovery && s.Accepting })
		})
	}
}
