package ansible

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// host is one systemd host.
type host struct {
	site          *site
	name, address string

	nspawn *exec.Cmd
	ended  chan struct{} // closed when systemd-nspawn has ended
}

const bootTimeout = 2 * time.Minute

func (h *host) netns() string         { return prefix + h.name }
func (h *host) dir(sub string) string { return filepath.Join(h.site.dir, "hosts", h.name, sub) }

// make lays the host's own layer over the root and plugs it into the bridge.
func (h *host) make(ctx context.Context) error {
	for _, sub := range []string{"upper", "work", "root"} {
		if err := os.MkdirAll(h.dir(sub), 0o755); err != nil {
			return err
		}
	}
	layers := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", h.site.root, h.dir("upper"), h.dir("work"))
	if err := unix.Mount(h.netns(), h.dir("root"), "overlay", 0, layers); err != nil {
		return fmt.Errorf("overlay: %w", err)
	}
	public, err := os.ReadFile(h.site.key() + ".pub")
	if err != nil {
		return err
	}
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails
	for path, content := range map[string]string{
		"etc/hostname": h.name + "\n", "etc/machine-id": hex.EncodeToString(id) + "\n",
		"etc/hosts":                 "127.0.0.1 localhost\n" + h.address + " " + h.name + "\n",
		"root/.ssh/authorized_keys": string(public),
	} {
		path = filepath.Join(h.dir("root"), path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil { //nolint:gosec // as such files are
			return err
		}
	}
	if _, err := output(ctx, commandTimeout, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f",
		filepath.Join(h.dir("root"), "etc/ssh/ssh_host_ed25519_key")); err != nil {
		return err
	}
	ns := h.netns()
	link := "v-" + h.name
	return commands(ctx,
		"ip netns add "+ns,
		"ip link add host0 netns "+ns+" type veth peer name "+link+" netns "+h.site.netns(),
		"ip -n "+h.site.netns()+" link set "+link+" master br0 up",
		"ip -n "+ns+" link set lo up",
		"ip -n "+ns+" addr add "+h.address+"/24 dev host0",
		"ip -n "+ns+" link set host0 up",
	)
}

// cgroups makes the host's cgroup in every hierarchy: two hosts in one would take
// each other for their own.
func (h *host) cgroups() (groups []string, err error) {
	for _, hierarchy := range hierarchies() {
		group := filepath.Join(hierarchy, h.netns())
		if err := os.MkdirAll(group, 0o755); err != nil {
			return nil, err
		}
		// In version 1 no task may enter a cpuset that is not filled in.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			own := filepath.Join(group, file)
			if text, err := os.ReadFile(own); err != nil || strings.TrimSpace(string(text)) != "" {
				continue
			}
			text, err := os.ReadFile(filepath.Join(hierarchy, file))
			if err == nil {
				err = os.WriteFile(own, text, 0o644) //nolint:gosec // the kernel's file
			}
			if err != nil {
				return nil, err
			}
		}
		groups = append(groups, group)
	}
	return groups, nil
}

// start switches the host on. Its log is beside its files.
func (h *host) start(context.Context) error {
	groups, err := h.cgroups()
	if err != nil {
		return err
	}
	log, err := os.Create(h.dir("log"))
	if err != nil {
		return err
	}
	defer log.Close()
	// The shell enters the cgroups before it becomes systemd-nspawn.
	const enter = `while [ "$1" != -- ]; do echo $$ >"$1/cgroup.procs" || exit; shift; done; shift; exec "$@"`
	args := append(append([]string{"-ec", enter, "sh"}, groups...), "--",
		"systemd-nspawn", "--quiet", "--directory="+h.dir("root"), "--machine="+h.name, "--boot", "--keep-unit", "--register=no",
		"--network-namespace-path=/run/netns/"+h.netns(), "--resolv-conf=off", "--timezone=off", "--link-journal=no", "--console=pipe",
		// Bouncers close sockets, guards lock memory.
		"--capability=CAP_NET_ADMIN,CAP_IPC_LOCK,CAP_SYS_NICE")
	h.nspawn = exec.Command("sh", args...) //nolint:noctx // it runs until it is killed
	h.nspawn.Stdout, h.nspawn.Stderr = log, log
	h.nspawn.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := h.nspawn.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	h.ended = ended
	go func(cmd *exec.Cmd) {
		defer close(ended)
		_ = cmd.Wait() // killed, sooner or later
	}(h.nspawn)
	return nil
}

// awaitUp waits until ssh answers.
func (h *host) awaitUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	for {
		conn, err := h.site.dial(ctx, "tcp", net.JoinHostPort(h.address, "22"))
		if err == nil {
			_ = conn.SetReadDeadline(time.Now().Add(time.Second))
			banner := make([]byte, 4)
			_, err = conn.Read(banner)
			_ = conn.Close()
			if err == nil && string(banner) == "SSH-" {
				return nil
			}
		}
		select {
		case <-h.ended:
			log, _ := os.ReadFile(h.dir("log"))
			return fmt.Errorf("it ended while booting: %s", log)
		case <-ctx.Done():
			return fmt.Errorf("ssh does not answer: %w", errors.Join(ctx.Err(), err))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// kill is a power cut: every process is gone at once.
func (h *host) kill(ctx context.Context) error {
	if h.nspawn == nil || h.nspawn.Process == nil {
		return nil
	}
	var errs []error
	// The container's init first: with it everything in its PID namespace ends.
	if init, err := h.init(ctx); err == nil {
		_ = unix.Kill(init, unix.SIGKILL)
	}
	_ = unix.Kill(h.nspawn.Process.Pid, unix.SIGKILL)
	select {
	case <-h.ended:
	case <-ctx.Done():
		errs = append(errs, ctx.Err())
	}
	for _, hierarchy := range hierarchies() {
		if group := filepath.Join(hierarchy, h.netns()); exists(group) {
			errs = append(errs, emptyCgroup(ctx, group))
		}
	}
	h.nspawn = nil
	return errors.Join(errs...)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// init is the process that is the host's number 1.
func (h *host) init(ctx context.Context) (pid int, err error) {
	text, err := output(ctx, commandTimeout, "ps", "-o", "pid=", "--ppid", fmt.Sprint(h.nspawn.Process.Pid))
	if err == nil {
		_, err = fmt.Sscan(text, &pid)
	}
	return pid, err
}

// run runs a command in the host over ssh, as Ansible does.
func (h *host) run(ctx context.Context, command string) (string, error) {
	return output(ctx, 2*time.Minute, "ip", append([]string{"netns", "exec", h.site.netns(), "ssh", "-i", h.site.key()},
		append(sshOptions(), "root@"+h.address, command)...)...)
}

// sshOptions keep ssh from asking, and from remembering hosts that live for minutes.
func sshOptions() []string {
	return []string{
		"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5",
	}
}
