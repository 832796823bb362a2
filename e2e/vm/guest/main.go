// The guest is the first process of the virtual machines of package vm. It makes
// the machine a host: file systems, modules, network; then a child of it plays
// the scenario that the kernel's command line names, and the machine is switched
// off, unless a watchdog resets it first.
package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/fence"
	"github.com/lictor-ha/lictor/e2e/vm/event"
)

// What the kernel passes on to its first process as environment.
const (
	scenarioVariable = "scenario"
	driverVariable   = "driver" // softdog, i6300esb, none
	nowayoutVariable = "way"    // "no": the driver has no way out
	// The disk's file system, ext4 unless it is given, and how it is mounted.
	filesystemVariable = "filesystem"
	optionsVariable    = "options"
)

// root is where the disk is mounted.
const root = "/r"

func main() {
	var err error
	switch {
	case len(os.Args) > 1 && os.Args[1] == protectCommand:
		err = protect()
	case os.Getpid() == 1:
		first()
	default:
		err = play(os.Getenv(scenarioVariable))
	}
	if err != nil {
		tell(event.Trouble, event.Event{Text: err.Error()})
		os.Exit(1)
	}
}

// tell writes an event, with the time.
func tell(name event.Name, e event.Event) {
	e.Name, e.At = name, milliseconds(fence.Now())
	_ = event.Write(os.Stdout, e) // one write, so one line
}

func milliseconds(i cluster.Instant) int64 { return time.Duration(i).Milliseconds() }

// first is the first process: it must not end, or the kernel panics.
func first() {
	if err := makeHost(); err != nil {
		tell(event.Trouble, event.Event{Text: err.Error()})
	} else if err := child(); err != nil {
		tell(event.Trouble, event.Event{Text: err.Error()})
	}
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {}
}

// child plays the scenario in a process of its own, while this one takes in all
// that lose their parent.
func child() error {
	cmd := exec.Command("/init") //nolint:noctx // it lasts as long as the machine
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stdout
	if err := cmd.Start(); err != nil {
		return err
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("waiting for children: %w", err)
		case pid == cmd.Process.Pid && !status.Exited():
			return fmt.Errorf("the scenario was ended by signal %d", status.Signal())
		case pid == cmd.Process.Pid:
			return nil
		}
	}
}

func play(scenario string) error {
	tell(event.Booted, event.Event{Text: scenario})
	switch scenario {
	case "device-freeze", "device-stop", "device-kill", "device-nowayout":
		return playDevice(scenario)
	case "power-cut", "power-careless":
		return playPower(scenario)
	case "power-return":
		return powerReturns()
	case "freeze", "stop", "refuse", "kill", "return":
		return playNode(scenario)
	}
	return fmt.Errorf("there is no scenario %q", scenario)
}

type mount struct {
	source, target, kind string
	flags                uintptr
	options              string
}

func makeHost() error {
	if err := mountAll([]mount{
		{"proc", "/proc", "proc", 0, ""},
		{"sysfs", "/sys", "sysfs", 0, ""},
		{"devtmpfs", "/dev", "devtmpfs", 0, ""},
	}); err != nil {
		return err
	}
	if err := loadModules(); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte("db1")); err != nil {
		return fmt.Errorf("hostname: %w", err)
	}
	if err := loopbackUp(); err != nil {
		return err
	}
	if _, err := os.Stat("/dev/vda"); err != nil {
		return nil //nolint:nilerr // this scenario has no disk
	}
	if err := mountAll([]mount{
		{"/dev/vda", root, cmp.Or(os.Getenv(filesystemVariable), "ext4"), 0, os.Getenv(optionsVariable)},
		{"proc", root + "/proc", "proc", 0, ""},
		{"sysfs", root + "/sys", "sysfs", 0, ""},
		{"/dev", root + "/dev", "", unix.MS_BIND, ""},
		{"shm", root + "/dev/shm", "tmpfs", 0, ""},
		{"run", root + "/run", "tmpfs", 0, "mode=755"},
		{"tmp", root + "/tmp", "tmpfs", 0, "mode=1777"},
	}); err != nil {
		return err
	}
	const everybody = 0o777
	for _, dir := range []string{root + "/run/postgresql", root + "/var/lib/postgresql"} {
		if err := errors.Join(os.MkdirAll(dir, everybody), os.Chmod(dir, everybody)); err != nil {
			return err
		}
	}
	return nil
}

func mountAll(list []mount) error {
	for _, m := range list {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, m.options); err != nil {
			return fmt.Errorf("mounting %s on %s: %w", m.source, m.target, err)
		}
	}
	return nil
}

// loadModules loads all modules of the initramfs but the watchdogs that the
// scenario does not want. It goes round until no more can be loaded: which needs
// which is known to depmod alone.
func loadModules() error {
	files, err := filepath.Glob("/modules/*.ko")
	if err != nil {
		return err
	}
	parameters := map[string]string{}
	left := files[:0]
	for _, file := range files {
		name := filepath.Base(file)
		if name == "softdog.ko" || name == "i6300esb.ko" {
			if name != os.Getenv(driverVariable)+".ko" {
				continue
			}
			if os.Getenv(nowayoutVariable) == "no" {
				parameters[file] = "nowayout=1"
			}
		}
		left = append(left, file)
	}
	for {
		var failed []string
		var problems []error
		for _, file := range left {
			if err := loadModule(file, parameters[file]); err != nil && !errors.Is(err, unix.EEXIST) {
				failed = append(failed, file)
				problems = append(problems, err)
			}
		}
		if len(failed) == len(left) && len(left) > 0 {
			return errors.Join(problems...)
		}
		if left = failed; len(left) == 0 {
			return nil
		}
	}
}

func loadModule(file, parameters string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), parameters, 0); err != nil {
		return fmt.Errorf("loading %s: %w", file, err)
	}
	return nil
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	request.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request); err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	return nil
}
