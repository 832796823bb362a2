package postgres

import (
	"fmt"
	"os"
	"strings"
)

// groupAccess is the mode of a data directory whose group may read it, for backups:
// PostgreSQL then makes all of its files readable for the group (initdb's
// --allow-group-access; GetDataDirectoryCreatePerm in src/common/file_perm.c).
const groupAccess os.FileMode = 0o750

// writeFile replaces a file in one step, as PostgreSQL's user's. In the data directory
// it gets the mode that PostgreSQL's own files have there.
func (p *installation) writeFile(path, content string) error {
	mode := os.FileMode(0o600)
	if strings.HasPrefix(path, p.dataDir+"/") {
		mode = p.fileMode()
	}
	if err := p.disk.Replace(path, []byte(content), mode); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}

// fileMode is the mode of files in the data directory.
func (p *installation) fileMode() os.FileMode {
	if info, err := p.disk.Stat(p.dataDir); err == nil && info.Mode().Perm()&groupAccess == groupAccess {
		return 0o640
	}
	return 0o600
}

// restrict makes an empty data directory PostgreSQL's own. One that the group may read
// stays so; PostgreSQL takes no other modes.
func (p *installation) restrict(dir string) error {
	info, err := p.disk.Stat(dir)
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	mode := os.FileMode(0o700)
	if info.Mode().Perm() == groupAccess {
		mode = groupAccess
	}
	if err := p.disk.OwnDirectory(dir, mode|info.Mode()&os.ModeSetgid); err != nil {
		return fmt.Errorf("data directory (give it to PostgreSQL's user yourself): %w", err)
	}
	return nil
}

// takeOverAccess gives a cloned data directory the access that its source has, as
// pg_basebackup has given it to the files.
func (p *installation) takeOverAccess() error {
	info, err := p.disk.Stat(p.inData("PG_VERSION"))
	if err != nil {
		return fmt.Errorf("cloned data directory: %w", err)
	}
	here, err := p.disk.Stat(p.dataDir)
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
	if err := p.disk.Do(func() error { return os.Chmod(p.dataDir, mode|here.Mode()&os.ModeSetgid) }); err != nil {
		return fmt.Errorf("cloned data directory: %w", err)
	}
	return nil
}
