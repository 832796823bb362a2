package install

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/lictor-ha/lictor/agent/osuser"
)

// spareRoom is by how much a spare file should be larger than the file that it stands in
// for, a fileBlock the unit in which file systems give room.
const (
	spareRoom = 64 << 10
	fileBlock = 4 << 10
)

// sparePath is where a file lies whose room is there when the disk is full.
func sparePath(path string) string { return path + ".spare" }

// Config is File for pgbouncer.ini. On a full disk the file that KeepSpare has made
// takes its place, so that no shard stays at its old primary for it.
func Config(path string, text []byte) (written bool, err error) {
	old, err := osuser.Keeper(path).ReadFile(path)
	if err == nil && bytes.Equal(bytes.TrimRight(old, "\n"), bytes.TrimRight(text, "\n")) {
		return false, nil
	}
	written, err = File(path, text)
	if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
		return written, err
	}
	if spare := installSpare(path, text); spare != nil {
		return written, fmt.Errorf("%w; nor could the file that is kept for a full disk be used: %w", err, spare)
	}
	return true, nil
}

// KeepSpare has room for the next text of a file at hand: as much as there is, if there is
// enough for one like this.
func KeepSpare(path string, text []byte) error {
	if target, err := osuser.Keeper(path).EvalSymlinks(path); err == nil {
		path = target
	}
	spare := sparePath(path)
	least := (len(text)/fileBlock + 1) * fileBlock
	if info, err := osuser.Keeper(spare).Stat(spare); err == nil && info.Size() >= int64(least) {
		return nil
	}
	// Written, not only reserved: a hole would want room when it is filled.
	_, err := File(spare, bytes.Repeat([]byte("\n"), least+spareRoom))
	if err != nil {
		_, err = File(spare, bytes.Repeat([]byte("\n"), least))
	}
	if err != nil {
		return fmt.Errorf("the file that is kept for a full disk: %w", err)
	}
	return nil
}

// installSpare puts text into place without new room: into the spare file, filled up with
// empty lines, which then takes the place of the old one.
func installSpare(path string, text []byte) error {
	keeper := osuser.Keeper(path)
	if target, err := keeper.EvalSymlinks(path); err == nil {
		path = target
		keeper = osuser.Keeper(path)
	}
	return keeper.For(func() error { return fillSpare(path, text, keeper) }, path)
}

func fillSpare(path string, text []byte, keeper osuser.User) error {
	file, err := os.OpenFile(sparePath(path), os.O_WRONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if info.Size() < int64(len(text)) {
		return fmt.Errorf("%s has %d bytes, not the %d that are needed", file.Name(), info.Size(), len(text))
	}
	if live, err := os.Stat(path); err == nil {
		if err := errors.Join(file.Chmod(live.Mode().Perm()), keepOwner(file, path, keeper)); err != nil {
			return err
		}
	}
	filled := append(bytes.Clone(text), bytes.Repeat([]byte("\n"), int(info.Size())-len(text))...)
	if _, err := file.WriteAt(filled, 0); err != nil {
		return err
	}
	if err := file.Sync(); err != nil {
		return err
	}
	if err := os.Rename(file.Name(), path); err != nil {
		return err
	}
	return keeper.Sync(filepath.Dir(path))
}
