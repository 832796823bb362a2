package fence

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// watchdogDevice is an open, running watchdog: a device of the kernel, or a fifo.
type watchdogDevice interface {
	// describe tells what the device is.
	describe() watchdogDescription
	// setTimeout sets the timeout, which also counts as a keepalive, and returns
	// the one that the device has taken.
	setTimeout(time.Duration) (time.Duration, error)
	// timeLeft is the time until the reset; errors.ErrUnsupported where the
	// device cannot tell.
	timeLeft() (time.Duration, error)
	keepAlive() error
	// stop stops the countdown; errNoWayOut: it cannot be stopped, and the device
	// stays open.
	stop() error
	// abandon closes the device and leaves the countdown running.
	abandon() error
}

// watchdogDescription is what a device says of itself.
type watchdogDescription struct {
	identity string
	// stops says that the device stops counting when it is closed without the
	// magic character, so that an agent that is killed switches it off.
	stops      bool
	nowayout   *bool // nil: not known
	bootStatus []string
}

// kernelWatchdog is a device of the Linux watchdog API
// (Documentation/watchdog/watchdog-api.rst).
type kernelWatchdog struct {
	path    string
	fd      int
	options uint32
	about   watchdogDescription
}

// openKernelWatchdog opens a device, which starts its countdown.
func openKernelWatchdog(_ context.Context, path string) (watchdogDevice, error) {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w%s", path, err, openAdvice(err))
	}
	d := &kernelWatchdog{path: path, fd: fd}
	info, err := unix.IoctlGetWatchdogInfo(fd)
	if err != nil {
		_ = unix.Close(fd) // what is no watchdog counts nothing
		return nil, fmt.Errorf("%s is not a watchdog device (WDIOC_GETSUPPORT: %w): see watchdog.device", path, err)
	}
	d.options = info.Options
	d.about = watchdogDescription{
		identity: unix.ByteSliceToString(info.Identity[:]),
		stops:    info.Options&unix.WDIOF_MAGICCLOSE == 0,
		nowayout: sysfsNowayout(path),
	}
	if status, err := unix.IoctlGetUint32(fd, unix.WDIOC_GETBOOTSTATUS); err == nil {
		d.about.bootStatus = bootCauses(status)
	}
	if info.Options&unix.WDIOF_SETTIMEOUT == 0 {
		err := d.stop()
		if err != nil {
			_ = unix.Close(fd)
		}
		return nil, errors.Join(fmt.Errorf("the timeout of %s (%s) cannot be set: use another watchdog.device, or watchdog.mode: off", path, d.about.identity), err)
	}
	return d, nil
}

// openAdvice says what to do about the usual reasons.
func openAdvice(err error) string {
	switch {
	case errors.Is(err, unix.EBUSY):
		return ": another program holds it (systemd's RuntimeWatchdogSec? the watchdog daemon?); stop that, or name another watchdog.device"
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return ": load the driver of the host's watchdog, or softdog (modprobe softdog), or see watchdog.device"
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return ": the agent's user must be allowed to write to it (a udev rule, or chown)"
	}
	return ""
}

func (d *kernelWatchdog) describe() watchdogDescription { return d.about }

func (d *kernelWatchdog) setTimeout(timeout time.Duration) (time.Duration, error) {
	if err := unix.IoctlSetPointerInt(d.fd, unix.WDIOC_SETTIMEOUT, int(timeout/watchdogUnit)); err != nil {
		return 0, fmt.Errorf("%s: setting the timeout to %s: %w", d.path, timeout, err)
	}
	// Some drivers round to what the hardware can do.
	got, err := unix.IoctlGetUint32(d.fd, unix.WDIOC_GETTIMEOUT)
	if unsupported(err) {
		return timeout, nil
	}
	if err != nil {
		return 0, fmt.Errorf("%s: reading the timeout: %w", d.path, err)
	}
	return time.Duration(got) * watchdogUnit, nil
}

func (d *kernelWatchdog) timeLeft() (time.Duration, error) {
	left, err := unix.IoctlGetUint32(d.fd, unix.WDIOC_GETTIMELEFT)
	if err != nil {
		return 0, fmt.Errorf("%s: reading the time left: %w", d.path, errors.Join(errors.ErrUnsupported, err))
	}
	return time.Duration(left) * watchdogUnit, nil
}

func (d *kernelWatchdog) keepAlive() error {
	err := unix.IoctlWatchdogKeepalive(d.fd)
	if unsupported(err) { // any write is a keepalive, too
		_, err = unix.Write(d.fd, []byte{'1'})
	}
	if err != nil {
		return fmt.Errorf("%s: keepalive: %w", d.path, err)
	}
	return nil
}

// stop asks the driver to stop before it closes the device: a driver that has no
// way out says so (EBUSY), while a close would only say it to the kernel's log.
func (d *kernelWatchdog) stop() error {
	if d.about.nowayout != nil && *d.about.nowayout {
		return fmt.Errorf("%s: %w", d.path, errNoWayOut)
	}
	if err := unix.IoctlSetPointerInt(d.fd, unix.WDIOC_SETOPTIONS, unix.WDIOS_DISABLECARD); errors.Is(err, unix.EBUSY) {
		yes := true
		d.about.nowayout = &yes
		return fmt.Errorf("%s: %w", d.path, errNoWayOut)
	}
	if _, err := unix.Write(d.fd, []byte{'V'}); err != nil {
		return fmt.Errorf("%s: magic close: %w", d.path, err)
	}
	if err := unix.Close(d.fd); err != nil {
		return fmt.Errorf("%s: closing: %w", d.path, err)
	}
	return nil
}

func (d *kernelWatchdog) abandon() error { return unix.Close(d.fd) }

// unsupported reports whether a driver lacks an ioctl.
func unsupported(err error) bool {
	return errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP)
}

// sysfsDir is what sysfs says about a device: it is found by the device's number,
// and /dev/watchdog is the first device under an older number.
func sysfsDir(path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR {
		return "", fmt.Errorf("%s is no device", path)
	}
	const legacyMajor, legacyMinor = 10, 130
	if unix.Major(st.Rdev) == legacyMajor && unix.Minor(st.Rdev) == legacyMinor {
		return "/sys/class/watchdog/watchdog0", nil
	}
	return filepath.EvalSymlinks(fmt.Sprintf("/sys/dev/char/%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)))
}

// sysfsValue reads one attribute of a device (ABI/testing/sysfs-class-watchdog);
// kernels may lack them.
func sysfsValue(path, attribute string) (string, bool) {
	dir, err := sysfsDir(path)
	if err != nil {
		return "", false
	}
	b, err := os.ReadFile(filepath.Join(dir, attribute))
	return strings.TrimSpace(string(b)), err == nil
}

func sysfsNowayout(path string) *bool {
	value, ok := sysfsValue(path, "nowayout")
	if !ok {
		return nil
	}
	nowayout := value != "0"
	return &nowayout
}

// sysfsBootStatus is the cause of the last reset, without opening the device.
func sysfsBootStatus(path string) []string {
	value, _ := sysfsValue(path, "bootstatus")
	status, err := strconv.ParseUint(value, 0, 32)
	if err != nil {
		return nil
	}
	return bootCauses(uint32(status))
}

// bootCauses puts the flags of WDIOC_GETBOOTSTATUS into words.
func bootCauses(status uint32) []string {
	var causes []string
	for _, c := range []struct {
		flag uint32
		name string
	}{
		{unix.WDIOF_CARDRESET, "watchdog"},
		{unix.WDIOF_OVERHEAT, "overheat"},
		{unix.WDIOF_FANFAULT, "fan fault"},
		{unix.WDIOF_POWERUNDER, "power under"},
		{unix.WDIOF_POWEROVER, "power over"},
		{unix.WDIOF_EXTERN1, "external relay 1"},
		{unix.WDIOF_EXTERN2, "external relay 2"},
	} {
		if status&c.flag != 0 {
			causes = append(causes, c.name)
		}
	}
	return causes
}
