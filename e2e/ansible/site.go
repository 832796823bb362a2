package ansible

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lictor-ha/lictor/e2e/netns"
)

// prefix begins the name of everything that a run makes on the machine: network
// namespaces, cgroups, mounts. A lock lets one run at a time use it.
const prefix = "lictor-ansible-"

// commandTimeout bounds every short command.
const commandTimeout = time.Minute

// site is the hosts of one run, the bridge that joins them, and where their
// files are.
type site struct {
	dir   string // scratch, on a disk: overlays, keys, inventory, logs
	root  string // the Debian root that hosts start from; read only
	lock  *os.File
	hosts []*host
}

// newSite makes the bridge. What an earlier run that was killed left is removed
// first. The caller closes the site.
func newSite(ctx context.Context, dir string) (_ *site, err error) {
	s := &site{dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close(context.WithoutCancel(ctx)))
		}
	}()
	if s.lock, err = os.OpenFile(filepath.Join(os.TempDir(), prefix+"lock"), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return nil, err
	}
	if err := unix.Flock(int(s.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, fmt.Errorf("another run uses this machine's test hosts (%s): %w", s.lock.Name(), err)
	}
	if err := sweep(ctx); err != nil {
		return nil, fmt.Errorf("removing what an earlier run left: %w", err)
	}
	if s.root, err = output(ctx, 10*time.Minute, "./rootfs.sh"); err != nil {
		return nil, fmt.Errorf("making the hosts' root: %w", err)
	}
	if _, err := output(ctx, commandTimeout, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", s.key()); err != nil {
		return nil, err
	}
	return s, commands(ctx,
		"ip netns add "+s.netns(),
		"ip -n "+s.netns()+" link set lo up",
		"ip -n "+s.netns()+" link add br0 type bridge",
		"ip -n "+s.netns()+" link set br0 up",
		"ip -n "+s.netns()+" addr add 10.77.0.1/24 dev br0",
	)
}

// netns is the namespace of the bridge, where Ansible and the clients run.
func (s *site) netns() string { return prefix + "lan" }

func (s *site) key() string { return filepath.Join(s.dir, "id") }

// boot adds hosts and starts them all at once.
func (s *site) boot(ctx context.Context, names ...string) error {
	started := make([]*host, 0, len(names))
	for _, name := range names {
		h := &host{site: s, name: name, address: fmt.Sprintf("10.77.0.%d", 11+len(s.hosts))}
		s.hosts = append(s.hosts, h)
		if err := h.make(ctx); err != nil {
			return fmt.Errorf("host %s: %w", name, err)
		}
		if err := h.start(ctx); err != nil {
			return fmt.Errorf("host %s: %w", name, err)
		}
		started = append(started, h)
	}
	for _, h := range started {
		if err := h.awaitUp(ctx); err != nil {
			return fmt.Errorf("host %s: %w", h.name, err)
		}
	}
	return nil
}

func (s *site) host(name string) *host {
	for _, h := range s.hosts {
		if h.name == name {
			return h
		}
	}
	return nil
}

// close ends all hosts and removes everything.
func (s *site) close(ctx context.Context) error {
	var errs []error
	for _, h := range s.hosts {
		errs = append(errs, h.kill(ctx))
	}
	if s.lock != nil {
		errs = append(errs, sweep(ctx), s.lock.Close())
	}
	return errors.Join(errs...)
}

// sweep removes whatever bears the prefix: processes in its cgroups, mounts,
// namespaces.
func sweep(ctx context.Context) error {
	var errs []error
	for _, hierarchy := range hierarchies() {
		groups, err := filepath.Glob(filepath.Join(hierarchy, prefix+"*"))
		errs = append(errs, err)
		for _, group := range groups {
			errs = append(errs, emptyCgroup(ctx, group))
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	errs = append(errs, err)
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 1 && strings.HasPrefix(fields[0], prefix) {
			errs = append(errs, unix.Unmount(fields[1], unix.MNT_DETACH))
		}
	}
	namespaces, err := filepath.Glob("/run/netns/" + prefix + "*")
	errs = append(errs, err)
	for _, path := range namespaces {
		_, err := output(ctx, commandTimeout, "ip", "netns", "del", filepath.Base(path))
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// hierarchies are the roots of the cgroup trees: one, or one per controller.
func hierarchies() []string {
	const root = "/sys/fs/cgroup"
	if _, err := os.Stat(root + "/cgroup.controllers"); err == nil {
		return []string{root}
	}
	trees, _ := filepath.Glob(root + "/*/cgroup.procs") // the pattern is right
	for i, file := range trees {
		trees[i] = filepath.Dir(file)
	}
	return trees
}

// emptyCgroup kills what runs in a cgroup and below, and removes it.
func emptyCgroup(ctx context.Context, group string) error {
	for {
		var groups []string
		err := filepath.WalkDir(group, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				groups = append(groups, path)
			}
			return nil //nolint:nilerr // cgroups vanish while they are walked
		})
		if err != nil || len(groups) == 0 {
			return err
		}
		alive := false
		for i := len(groups) - 1; i >= 0; i-- {
			pids, err := os.ReadFile(filepath.Join(groups[i], "cgroup.procs"))
			for _, pid := range bytes.Fields(pids) {
				var n int
				if _, err := fmt.Sscan(string(pid), &n); err == nil && n > 0 {
					alive = true
					_ = unix.Kill(n, unix.SIGKILL)
				}
			}
			if err == nil && len(bytes.Fields(pids)) == 0 {
				_ = unix.Rmdir(groups[i])
			}
		}
		if _, err := os.Stat(group); errors.Is(err, os.ErrNotExist) {
			return nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("cgroup %s (processes left: %v): %w", group, alive, ctx.Err())
		}
	}
}

// dial connects from inside the bridge's namespace.
func (s *site) dial(ctx context.Context, network, address string) (net.Conn, error) {
	dialer := net.Dialer{Timeout: 5 * time.Second}
	return inside(s, func() (net.Conn, error) { return dialer.DialContext(ctx, network, address) })
}

// inside calls do inside the bridge's namespace.
func inside[T any](s *site, do func() (T, error)) (none T, err error) {
	namespace, err := os.Open("/run/netns/" + s.netns())
	if err != nil {
		return none, err
	}
	defer namespace.Close()
	return netns.In(namespace, do)
}

func commands(ctx context.Context, lines ...string) error {
	for _, line := range lines {
		words := strings.Fields(line)
		if _, err := output(ctx, commandTimeout, words[0], words[1:]...); err != nil {
			return err
		}
	}
	return nil
}

// output runs a command and returns what it prints, without the last newline.
func output(ctx context.Context, timeout time.Duration, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("%s %s: %w: %s%s", name, strings.Join(args, " "), err, stderr.String(), out)
	}
	return strings.TrimSuffix(string(out), "\n"), nil
}
