package postgres

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/google/renameio/v2"
)

// groupAccess is the mode of a data directory whose group may read it, for backups:
// PostgreSQL then makes all of its files readable for the group (initdb's
// --allow-group-access; GetDataDirectoryCreatePerm in src/common/file_perm.c).
const groupAccess os.FileMode = 0o750

// writeFile replaces a file in one step, as PostgreSQL's user's. In the data directory
// it gets the mode that PostgreSQL's own files have there.
func (p *Instance) writeFile(path, content string) error {
	mode := os.FileMode(0o600)
	if strings.HasPrefix(path, p.dataDir+"/") {
		mode = p.fileMode()
	}
	f, err := renameio.NewPendingFile(path, renameio.WithPermissions(mode), renameio.IgnoreUmask())
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	defer f.Cleanup() //nolint:errcheck // nothing is left to clean after a success
	if p.credential != nil {
		if err := f.Chown(int(p.credential.Uid), p.groupIn(filepath.Dir(path))); err != nil {
			return fmt.Errorf("writing %s: %w", path, err)
		}
	}
	if _, err := f.WriteString(content); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	if err := f.CloseAtomicallyReplace(); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}

// fileMode is the mode of files in the data directory.
func (p *Instance) fileMode() os.FileMode {
	if info, err := os.Stat(p.dataDir); err == nil && info.Mode().Perm()&groupAccess == groupAccess {
		return 0o640
	}
	return 0o600
}

// groupIn is the group of a file that PostgreSQL would make in a directory.
func (p *Instance) groupIn(dir string) int {
	if info, err := os.Stat(dir); err == nil && info.Mode()&os.ModeSetgid != 0 {
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			return int(st.Gid)
		}
	}
	return int(p.credential.Gid)
}

// restrict makes an empty data directory PostgreSQL's own. One that the group may read
// stays so; PostgreSQL takes no other modes.
func (p *Instance) restrict(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	if info.Mode().Perm() != groupAccess {
		if err := os.Chmod(dir, 0o700); err != nil {
			return fmt.Errorf("data directory: %w", err)
		}
	}
	if p.credential == nil {
		return nil
	}
	if err := os.Lchown(dir, int(p.credential.Uid), p.groupIn(dir)); err != nil {
		return fmt.Errorf("giving %s to PostgreSQL's user: %w", dir, err)
	}
	return nil
}

// takeOverAccess gives a cloned data directory the access that its source has, as
// pg_basebackup has given it to the files.
func (p *Instance) takeOverAccess() error {
	info, err := os.Stat(p.inData("PG_VERSION"))
	if err != nil {
		return fmt.Errorf("cloned data directory: %w", err)
	}
	here, err := os.Stat(p.dataDir)
	if err != nil {
		return fmt.Errorf("cloned data directory: %w", err)
	}
	mode := os.FileMode(0o700)
	if info.Mode().Perm()&0o040 != 0 {
		mode = groupAccess
	}
	if here.Mode().Perm() == mode {
		return nil
	}
	if err := os.Chmod(p.dataDir, mode|here.Mode()&os.ModeSetgid); err != nil {
		return fmt.Errorf("cloned data directory: %w", err)
	}
	return nil
}
