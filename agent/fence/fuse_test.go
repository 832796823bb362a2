package fence

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// fuse is a file system with one directory, "data", in its root (the kernel's
// Documentation/filesystems/fuse, include/uapi/linux/fuse.h). It can be made to
// hang, and to fail with EIO. It is served by a process of its own: a process that is
// just being made may wait for it, for which all of this one waits.
type fuse struct {
	t        *testing.T
	commands io.Writer
	done     *bufio.Reader
}

// asFuse makes the test binary serve the file system of the file descriptor 3.
const asFuse = "LICTOR_TEST_FUSE"

// How a file system is broken.
const (
	hangs = "hangs"
	fails = "answers EIO"
)

// Requests that are answered, and the nodes that there are.
const (
	fuseLookup  = 1
	fuseForget  = 2
	fuseGetattr = 3
	fuseStatfs  = 17
	fuseInit    = 26

	fuseRoot = 1
	fuseData = 2
)

// mountFuse mounts it; whoever cannot open /dev/fuse, or not mount, skips.
func mountFuse(t *testing.T, dir string) *fuse {
	t.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skip("/dev/fuse: " + err.Error())
	}
	options := fmt.Sprintf("fd=%d,rootmode=40755,user_id=%d,group_id=%d,allow_other", fd, os.Getuid(), os.Getgid())
	if err := unix.Mount("lictor-test", dir, "fuse", unix.MS_NOSUID|unix.MS_NODEV, options); errors.Is(err, unix.EPERM) {
		_ = unix.Close(fd)
		t.Skip("mounting: " + err.Error())
	} else if err != nil {
		_ = unix.Close(fd)
		t.Fatal(err)
	}
	device := os.NewFile(uintptr(fd), "/dev/fuse")
	defer device.Close()
	server := exec.Command(os.Args[0])
	server.Env, server.ExtraFiles, server.Stderr = append(os.Environ(), asFuse+"=1"), []*os.File{device}, os.Stderr
	commands, err := server.StdinPipe()
	must(t, err)
	done, err := server.StdoutPipe()
	must(t, err)
	must(t, server.Start())
	t.Cleanup(func() {
		// The end of the connection ends whoever waits for an answer.
		_ = server.Process.Kill()
		must(t, unix.Unmount(dir, unix.MNT_DETACH|unix.MNT_FORCE))
		_ = server.Wait()
	})
	return &fuse{t: t, commands: commands, done: bufio.NewReader(done)}
}

func (f *fuse) becomes(broken string) {
	f.t.Helper()
	_, err := fmt.Fprintln(f.commands, broken)
	must(f.t, err)
	_, err = f.done.ReadString('\n')
	must(f.t, err)
}

// fuseServer is the process that serves it.
type fuseServer struct {
	mu     sync.Mutex
	broken string
}

// serveFuse serves until the file system is gone.
func serveFuse() {
	f := &fuseServer{}
	go func() {
		commands := bufio.NewScanner(os.Stdin)
		for commands.Scan() {
			f.mu.Lock()
			f.broken = commands.Text()
			f.mu.Unlock()
			fmt.Println("done")
		}
		os.Exit(0)
	}()
	f.serve(3)
}

func (f *fuseServer) serve(fd int) {
	buffer := make([]byte, 1<<20)
	for {
		n, err := unix.Read(fd, buffer)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil || n < 40 {
			return // ENODEV: unmounted
		}
		order := binary.NativeEndian
		opcode, unique, node := order.Uint32(buffer[4:]), order.Uint64(buffer[8:]), order.Uint64(buffer[16:])
		f.mu.Lock()
		broken := f.broken
		f.mu.Unlock()
		errno, answer := unix.ENOSYS, []byte(nil)
		switch {
		case opcode == fuseForget, broken == hangs:
			continue // neither is answered
		case broken == fails:
			errno = unix.EIO
		case opcode == fuseInit:
			answer = make([]byte, 24) // fuse_init_out of the protocol's version 7.22
			order.PutUint32(answer[0:], 7)
			order.PutUint32(answer[4:], 22)
			order.PutUint32(answer[20:], 4096) // max_write
		case opcode == fuseGetattr:
			answer = append(make([]byte, 16), fuseAttr(node)...)
		case opcode == fuseLookup && string(buffer[40:n-1]) == "data":
			answer = append(make([]byte, 40), fuseAttr(fuseData)...)
			order.PutUint64(answer, fuseData)
		case opcode == fuseLookup:
			errno = unix.ENOENT
		case opcode == fuseStatfs:
			answer = make([]byte, 80)
		}
		head := make([]byte, 16, 16+len(answer))
		order.PutUint32(head, uint32(16+len(answer)))
		order.PutUint64(head[8:], unique)
		if answer == nil {
			order.PutUint32(head[4:], uint32(-int32(errno)))
		}
		_, _ = unix.Write(fd, append(head, answer...)) // who asked may be gone
	}
}

// fuseAttr is a directory of everybody's.
func fuseAttr(node uint64) []byte {
	attr := make([]byte, 88)
	binary.NativeEndian.PutUint64(attr, node)
	binary.NativeEndian.PutUint32(attr[60:], unix.S_IFDIR|0o777)
	binary.NativeEndian.PutUint32(attr[64:], 2)
	return attr
}
