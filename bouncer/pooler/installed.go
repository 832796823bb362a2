package pooler

import (
	"context"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/environ"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

// programBound bounds asking the program for its version.
const programBound = 2 * time.Second

// programOf finds the PgBouncer that would be started next: the one of the
// configured command, else the one of this host, if PgBouncer runs here at all.
func programOf(c config.Config) string {
	isPgBouncer := func(arg string) bool { return filepath.Base(arg) == "pgbouncer" }
	if i := slices.IndexFunc(c.PgBouncer.Command, isPgBouncer); i >= 0 {
		return c.PgBouncer.Command[i]
	}
	if !c.IsBeside() {
		return ""
	}
	for _, name := range []string{"pgbouncer", "/usr/sbin/pgbouncer"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	return ""
}

// InstalledVersion is the version of the PgBouncer that would be started next,
// zero when that is not known: then the file is one for the oldest.
func InstalledVersion(ctx context.Context, c config.Config) pgbouncer.Version {
	path := programOf(c)
	if path == "" {
		return pgbouncer.Version{}
	}
	ctx, cancel := context.WithTimeout(ctx, programBound)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "--version")
	cmd.Env = environ.For(c.PassEnvironment)
	out, err := cmd.Output()
	if err != nil {
		return pgbouncer.Version{}
	}
	first, _, _ := strings.Cut(string(out), "\n")
	version, err := pgbouncer.ParseVersion(first)
	if err != nil {
		return pgbouncer.Version{}
	}
	return version
}

// Installed is the PgBouncer that would be started next, as of the last look.
type Installed struct {
	program fs.FileInfo
	version pgbouncer.Version
	asked   bool
}

// Version is InstalledVersion. The program is asked again only when its file is another one:
// while it is stopped it may be replaced, also by an older one.
func (i *Installed) Version(ctx context.Context, c config.Config) pgbouncer.Version {
	program, err := os.Stat(programOf(c))
	if err != nil {
		program = nil
	}
	same := i.program == nil && program == nil
	if i.program != nil && program != nil {
		same = os.SameFile(i.program, program) && i.program.ModTime().Equal(program.ModTime()) && i.program.Size() == program.Size()
	}
	if !i.asked || !same {
		i.program, i.version, i.asked = program, InstalledVersion(ctx, c), true
	}
	return i.version
}

// AskVersion is the version of the PgBouncer that runs, else of the one that would
// be started.
func AskVersion(ctx context.Context, c config.Config) pgbouncer.Version {
	conn, err := dialAdmin(ctx, c)
	if err != nil {
		return InstalledVersion(ctx, c)
	}
	defer conn.Close()
	version, err := bounded(ctx, conn.Version)
	if err != nil {
		return InstalledVersion(ctx, c)
	}
	return version
}
