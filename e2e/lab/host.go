package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// The directories below a lab's own.
const (
	hostsDir = "hosts"
	logDir   = "log"
	// dataDir is PostgreSQL's data directory below its host's.
	dataDir = "data"
)

// Host is a machine of the lab: an address, a directory, and processes that can
// all be lost at once.
type Host struct {
	Name    string
	Address string // IPv4; 127.0.0.1 on Loopback
	Dir     string

	lab *Lab
	ns  *namespace // nil on Loopback

	mu        sync.Mutex
	processes []*Process
	powerOff  bool
}

// addHost makes the directory and, on Netns, the namespace of a host.
func (l *Lab) addHost(ctx context.Context, name string) (*Host, error) {
	h := &Host{Name: name, Address: "127.0.0.1", Dir: filepath.Join(l.Dir, hostsDir, name), lab: l}
	if err := os.Mkdir(h.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("directory of host %s: %w", name, err)
	}
	if err := l.owner.own(h.Dir); err != nil {
		return nil, err
	}
	if l.network != nil {
		var err error
		if h.ns, err = l.network.addHost(ctx, name); err != nil {
			return nil, fmt.Errorf("host %s: %w", name, err)
		}
		h.Address = h.ns.address
	}
	l.hosts = append(l.hosts, h)
	return h, nil
}

// AddHost adds a host of the caller's own to a lab that is not started yet. specs is told of
// it and gives what runs there; Start starts that with all else.
func (l *Lab) AddHost(ctx context.Context, name string, specs func(*Host) ([]Spec, error)) (*Host, error) {
	h, err := l.addHost(ctx, name)
	if err != nil {
		return nil, err
	}
	processes, err := specs(h)
	if err != nil {
		return nil, fmt.Errorf("host %s: %w", name, err)
	}
	h.install(processes)
	return h, nil
}

// port returns the port that a service of this host listens on: the usual one
// where the host has an address of its own, else one of the lab's block.
func (h *Host) port(usual int) (int, error) {
	if h.ns != nil {
		return usual, nil
	}
	return h.lab.ports.take()
}

// install defines the host's processes, in order of start.
func (h *Host) install(specs []Spec) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, spec := range specs {
		h.processes = append(h.processes, &Process{Spec: spec, host: h})
	}
}

// Processes lists what runs, or is to run, on the host.
func (h *Host) Processes() []*Process {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]*Process(nil), h.processes...)
}

// Process returns the process of that name, nil when there is none.
func (h *Host) Process(name string) *Process {
	for _, p := range h.Processes() {
		if p.Name == name {
			return p
		}
	}
	return nil
}

// Start brings the host up: its network first, if PowerOff took it, then every
// process that does not run, one after another, each awaited.
func (h *Host) Start(ctx context.Context) error { return h.start(ctx, h.Processes()) }

func (h *Host) start(ctx context.Context, processes []*Process) error {
	h.mu.Lock()
	off := h.powerOff
	h.powerOff = false
	h.mu.Unlock()
	if off {
		if err := h.Heal(ctx); err != nil {
			return err
		}
	}
	for _, p := range processes {
		if p.Running() {
			continue
		}
		if err := p.Start(); err != nil {
			return err
		}
		if p.Ready == nil {
			continue
		}
		if err := p.Await(ctx, p.Ready); err != nil {
			return err
		}
	}
	return nil
}

// Run starts a process on the host beside those that belong to it: Start does
// not start it again. The caller ends it, at the latest Close does.
func (h *Host) Run(spec Spec) (*Process, error) {
	p := &Process{Spec: spec, host: h}
	return p, p.Start()
}

// Kill ends every process of the host at once with SIGKILL: those that the lab
// started, their descendants, and PostgreSQL's orphans. The kernel lives, so
// peers see their connections reset.
func (h *Host) Kill(ctx context.Context) error {
	if err := killAll(ctx, h.selector()); err != nil {
		return fmt.Errorf("killing host %s: %w", h.Name, err)
	}
	// They are dead already; this is the moment at which Running says so.
	for _, p := range h.Processes() {
		select {
		case <-p.Done():
		case <-ctx.Done():
			return fmt.Errorf("killing host %s: %w", h.Name, context.Cause(ctx))
		}
	}
	return nil
}

// PowerOff is a power cut. On Netns the host falls silent before its processes
// die, so nobody is told; on Loopback it is Kill. Start brings it back.
func (h *Host) PowerOff(ctx context.Context) error {
	if h.ns != nil {
		h.mu.Lock()
		h.powerOff = true
		h.mu.Unlock()
		if err := h.Isolate(ctx); err != nil {
			return err
		}
	}
	return h.Kill(ctx)
}

// Freeze stops every process of the host (SIGSTOP) until Thaw. Its kernel goes
// on answering on the network, as that of a host with a hung disk would.
func (h *Host) Freeze(context.Context) error {
	c, err := halt(h.selector())
	c.close()
	if err != nil {
		return fmt.Errorf("freezing host %s: %w", h.Name, err)
	}
	return nil
}

// Thaw lets a frozen host go on.
func (h *Host) Thaw(context.Context) error {
	procs, err := scanProcs()
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range h.selector().choose(procs) {
		held, err := openProc(p)
		if errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, held.signal(unix.SIGCONT), unix.Close(held.fd))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("thawing host %s: %w", h.Name, err)
	}
	return nil
}

func (h *Host) selector() selector {
	s := selector{dir: h.Dir, exact: true, roots: map[int]uint64{}, netns: map[string]bool{}}
	for _, p := range h.Processes() {
		if run := p.incarnation(); run != nil && !run.ended() {
			s.roots[run.pid] = run.started
		}
	}
	if h.ns != nil {
		s.netns[h.ns.inode] = true
	}
	return s
}

// Isolate cuts the host off from all others, silently and in both directions.
func (h *Host) Isolate(ctx context.Context) error {
	return h.changeFaults(ctx, func(f *faults) { f.isolated[h.ns.port] = true })
}

// CutTo drops what this host sends to another one; the other direction stays.
func (h *Host) CutTo(ctx context.Context, other *Host) error {
	if other.ns == nil {
		return fmt.Errorf("host %s has no network of its own", other.Name)
	}
	return h.changeFaults(ctx, func(f *faults) { f.cuts[[2]string{h.ns.port, other.ns.port}] = true })
}

// CutPorts drops what this host and another one send to or from the given ports
// of TCP and UDP, in both directions; all else passes.
func (h *Host) CutPorts(ctx context.Context, other *Host, ports ...int) error {
	if h.ns == nil || other.ns == nil {
		return fmt.Errorf("hosts %s and %s: faults of the network need the netns substrate", h.Name, other.Name)
	}
	return h.changeFaults(ctx, func(f *faults) {
		for _, port := range ports {
			f.ports[portCut{h.ns.port, other.ns.port, port}] = true
			f.ports[portCut{other.ns.port, h.ns.port, port}] = true
		}
	})
}

// Heal takes back every fault of the network that touches the host.
func (h *Host) Heal(ctx context.Context) error {
	return h.changeFaults(ctx, func(f *faults) {
		delete(f.isolated, h.ns.port)
		for cut := range f.cuts {
			if cut[0] == h.ns.port || cut[1] == h.ns.port {
				delete(f.cuts, cut)
			}
		}
		for cut := range f.ports {
			if cut.from == h.ns.port || cut.to == h.ns.port {
				delete(f.ports, cut)
			}
		}
	})
}

func (h *Host) changeFaults(ctx context.Context, edit func(*faults)) error {
	if h.ns == nil {
		return fmt.Errorf("host %s: faults of the network need the netns substrate", h.Name)
	}
	if err := h.lab.network.change(ctx, edit); err != nil {
		return fmt.Errorf("host %s: %w", h.Name, err)
	}
	return nil
}

// owner is the user that runs what must not run as root. Without root it is
// the user who runs the lab.
type owner struct {
	name     string
	uid, gid int
	asRoot   bool
}

// postgresUser is the user that Debian's PostgreSQL packages create.
const postgresUser = "postgres"

func findOwner() (owner, error) {
	if os.Geteuid() != 0 {
		u, err := user.Current()
		if err != nil {
			return owner{}, fmt.Errorf("own user: %w", err)
		}
		return owner{name: u.Username, uid: os.Geteuid(), gid: os.Getegid()}, nil
	}
	u, err := user.Lookup(postgresUser)
	if err != nil {
		return owner{}, fmt.Errorf("user for PostgreSQL, which must not run as root: %w; install the Debian package postgresql-15", err)
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	return owner{name: u.Username, uid: uid, gid: gid, asRoot: true}, errors.Join(err1, err2)
}

func (o owner) credential() *syscall.Credential {
	if !o.asRoot {
		return nil
	}
	return &syscall.Credential{Uid: uint32(o.uid), Gid: uint32(o.gid)}
}

// own gives a file or directory to the user.
func (o owner) own(path string) error {
	if !o.asRoot {
		return nil
	}
	if err := os.Chown(path, o.uid, o.gid); err != nil {
		return fmt.Errorf("giving %s to user %s: %w", path, o.name, err)
	}
	return nil
}

// write makes a file that the user owns.
func (o owner) write(path string, content []byte, mode os.FileMode) error {
	if err := os.WriteFile(path, content, mode); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return o.own(path)
}

func inodeOf(path string) (uint64, error) {
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		return 0, err
	}
	return stat.Ino, nil
}
