package lab

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/lictor-ha/lictor/agent/testkit/sysv"
)

// recordName is the file in a lab's directory that says what the lab made
// outside of it. It is locked while the lab lives.
const recordName = "lictor-lab.jsonl"

// entry is one line of the record.
type entry struct {
	// Boot is the kernel's boot id: after a reboot nothing of the rest holds.
	Boot string `json:"boot,omitempty"`
	// PID and Start name a process.
	PID   int    `json:"pid,omitempty"`
	Start uint64 `json:"start,omitempty"`
	Name  string `json:"name,omitempty"`
	// Netns is a network namespace of the lab.
	Netns string `json:"netns,omitempty"`
	// Mount is where a volume of the lab is mounted.
	Mount string `json:"mount,omitempty"`
}

// record is the open record of a living lab.
type record struct {
	mu   sync.Mutex
	file *os.File
}

// openRecord begins the record of a new lab in dir, which must be empty.
func openRecord(dir string) (*record, error) {
	file, err := os.OpenFile(filepath.Join(dir, recordName), os.O_CREATE|os.O_EXCL|os.O_RDWR|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lab directory %s: %w", dir, err)
	}
	r := &record{file: file}
	if err := lock(file); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	boot, err := bootID()
	if err == nil {
		err = r.add(entry{Boot: boot})
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return r, nil
}

// add writes one line. It must be on disk before the thing it names exists or
// can be lost, or at once after; a process is therefore also found by its
// environment.
func (r *record) add(e entry) error {
	line, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("record of the lab: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, err := r.file.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("record of the lab: %w", err)
	}
	return nil
}

func (r *record) close() error { return r.file.Close() }

func lock(file *os.File) error {
	err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("%s is in use by another running lab", filepath.Dir(file.Name()))
	}
	if err != nil {
		return fmt.Errorf("locking %s: %w", file.Name(), err)
	}
	return nil
}

// Clean kills and removes what a lab left in dir when its own process was
// killed. A directory that no lab ever used is left alone; one whose lab is
// alive is an error.
func Clean(ctx context.Context, dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("lab directory: %w", err)
	}
	file, err := os.OpenFile(filepath.Join(dir, recordName), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("leftovers of a lab: %w", err)
	}
	defer file.Close()
	if err := lock(file); err != nil {
		return err
	}
	content, err := os.ReadFile(file.Name())
	if err != nil {
		return fmt.Errorf("leftovers of a lab: %w", err)
	}
	boot, err := bootID()
	if err != nil {
		return err
	}
	left := parseRecord(content, boot)
	s := selector{dir: dir, roots: left.processes, netns: map[string]bool{}}
	for _, name := range left.netns {
		if inode, err := netnsInode(name); err == nil {
			s.netns[inode] = true
		}
	}
	for _, mount := range left.mounts { // what hangs in a write cannot be killed
		_ = volumeControl(mount, fiThaw, "thawing") // one that is no longer mounted says no
	}
	if err := killAll(ctx, s); err != nil {
		return fmt.Errorf("killing what a lab left in %s: %w", dir, err)
	}
	removeSharedMemory(dir)
	for _, mount := range left.mounts {
		// Emptying the directory would else empty the volume, and then fail.
		if err := unmountVolume(ctx, mount); err != nil {
			return err
		}
	}
	var errs []error
	for _, name := range left.netns {
		errs = append(errs, deleteNetns(ctx, name))
	}
	errs = append(errs, emptyDir(dir))
	return errors.Join(errs...)
}

// leftovers is what a record names, as far as it can still exist.
type leftovers struct {
	processes map[int]uint64
	netns     []string
	mounts    []string
}

// parseRecord reads a record. A line that was cut off by a crash is passed
// over, and a record from before the last boot names nothing.
func parseRecord(content []byte, boot string) leftovers {
	left := leftovers{processes: map[int]uint64{}}
	lines := bufio.NewScanner(bytes.NewReader(content))
	for first := true; lines.Scan(); first = false {
		var e entry
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			continue
		}
		if first && e.Boot != boot {
			return left
		}
		if e.PID > 1 {
			left.processes[e.PID] = e.Start
		}
		if strings.HasPrefix(e.Netns, netnsPrefix) {
			left.netns = append(left.netns, e.Netns)
		}
		if filepath.Base(e.Mount) == volumeDir {
			left.mounts = append(left.mounts, e.Mount)
		}
	}
	return left
}

func bootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("boot id: %w", err)
	}
	return strings.TrimSpace(string(id)), nil
}

// emptyDir removes everything in dir, not dir itself, the record last.
func emptyDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("emptying %s: %w", dir, err)
	}
	var errs []error
	for _, e := range entries {
		if e.Name() != recordName {
			errs = append(errs, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("emptying %s: %w", dir, err)
	}
	if err := os.Remove(filepath.Join(dir, recordName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("emptying %s: %w", dir, err)
	}
	return nil
}

// removeSharedMemory frees the System V segments that killed postmasters leave behind.
func removeSharedMemory(dir string) {
	sysv.Remove(filepath.Join(dir, hostsDir, "*", dataDir), filepath.Join(dir, hostsDir, "*", volumeDir, dataDir))
}
