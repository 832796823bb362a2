package vm

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
)

// archive is an initramfs: a cpio archive in the format newc
// (Documentation/driver-api/early-userspace/buffer-format.rst).
type archive struct {
	buf   bytes.Buffer
	inode int
}

const (
	modeDirectory  = 0o040755
	modeExecutable = 0o100755
	newcAlign      = 4
)

func (a *archive) add(name string, mode uint32, content []byte) {
	a.inode++
	fmt.Fprintf(&a.buf, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		a.inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0)
	a.buf.WriteString(name)
	a.buf.WriteByte(0)
	a.pad()
	a.buf.Write(content)
	a.pad()
}

func (a *archive) pad() {
	for a.buf.Len()%newcAlign != 0 {
		a.buf.WriteByte(0)
	}
}

// writeInitramfs writes an archive with the guest's program as /init and the
// kernel's modules.
func writeInitramfs(path, initProgram, modules string) error {
	var a archive
	for _, dir := range []string{"dev", "proc", "sys", "modules", "r"} {
		a.add(dir, modeDirectory, nil)
	}
	program, err := os.ReadFile(initProgram)
	if err != nil {
		return fmt.Errorf("initramfs: %w", err)
	}
	a.add("init", modeExecutable, program)
	files, err := filepath.Glob(filepath.Join(modules, "*.ko"))
	if err != nil || len(files) == 0 {
		return fmt.Errorf("initramfs: no modules in %s", modules)
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("initramfs: %w", err)
		}
		a.add("modules/"+filepath.Base(file), modeExecutable, content)
	}
	a.add("TRAILER!!!", 0, nil)
	if err := os.WriteFile(path, a.buf.Bytes(), 0o600); err != nil {
		return fmt.Errorf("initramfs: %w", err)
	}
	return nil
}
