package install

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"syscall"
)

// spareRoom is by how much a spare file should be larger than the file that it stands in
// for, a fileBlock the unit in which file systems give room.
const (
	spareRoom = 64 << 10
	fileBlock = 4 << 10
)

// sparePath is where a file lies whose room is there when the disk is full.
func sparePath(path string) string { return path + ".spare" }

// keepSpare has room for the next text of a file at hand: as much as there is, if there is
// enough for one like this.
func (p place) keepSpare(text []byte) error {
	spare := place{p.named, sparePath(p.path), p.keeper} // whoever can change where that is gets no more by it
	least := (len(text)/fileBlock + 1) * fileBlock
	var size int64
	err := spare.as(func() error {
		info, err := os.Stat(spare.path)
		if err == nil {
			size = info.Size()
		}
		return err
	})
	if err == nil && size >= int64(least) {
		return nil
	}
	// Written, not only reserved: a hole would want room when it is filled.
	if _, err = spare.install(bytes.Repeat([]byte("\n"), least+spareRoom), unchecked); err != nil {
		_, err = spare.install(bytes.Repeat([]byte("\n"), least), unchecked)
	}
	if err != nil {
		return fmt.Errorf("the file that is kept for a full disk: %w", err)
	}
	return nil
}

// putSpare puts text into place without new room: into the spare file, filled up with
// empty lines, which then takes the place of the old one.
func (p place) putSpare(text []byte) error {
	return p.as(func() error { return p.fillSpare(text) })
}

func (p place) fillSpare(text []byte) error {
	file, err := os.OpenFile(sparePath(p.path), os.O_WRONLY|syscall.O_NOFOLLOW, 0)
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
	if live, err := os.Stat(p.path); err == nil {
		if err := errors.Join(file.Chmod(live.Mode().Perm()), keepOwner(file, p.path, p.keeper)); err != nil {
			return err
		}
	}
	filled := append(bytes.Clone(text), bytes.Repeat([]byte("\n"), int(info.Size())-len(text))...)
	if _, err := file.WriteAt(filled, 0); err != nil {
		return err
	}
	if err := writeOut(file); err != nil {
		return err
	}
	return os.Rename(file.Name(), p.path)
}
