package lab

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// netnsPrefix begins the name of every network namespace of a lab; a random id
// and the host's name follow.
const netnsPrefix = "lictor-"

const netnsDir = "/run/netns"

// networkPrefix holds the addresses of all hosts of a Netns lab.
const networkPrefix = "10.77.0.0/24"

// network is the switch of a Netns lab: a bridge in a namespace of its own, so
// that nothing of it is seen from outside and several labs do not meet. Faults
// are rules on the bridge; the hosts are untouched and notice nothing.
type network struct {
	id     string
	record *record
	sw     *namespace

	mu     sync.Mutex
	hosts  []*namespace
	faults faults
}

// namespace is one host's network namespace.
type namespace struct {
	name    string
	inode   string // as /proc/PID/ns/net shows it
	file    *os.File
	port    string // its port on the bridge
	address string
}

// faults is what the bridge drops.
type faults struct {
	isolated map[string]bool    // ports
	cuts     map[[2]string]bool // from port, to port
	ports    map[portCut]bool
}

// portCut drops one service between two ports of the bridge, in one direction.
type portCut struct {
	from, to string
	service  int // a port number of TCP and UDP
}

func newNetwork(ctx context.Context, rec *record) (*network, error) {
	id := make([]byte, 3)
	if _, err := rand.Read(id); err != nil {
		return nil, fmt.Errorf("id of the network: %w", err)
	}
	n := &network{
		id: hex.EncodeToString(id), record: rec,
		faults: faults{isolated: map[string]bool{}, cuts: map[[2]string]bool{}, ports: map[portCut]bool{}},
	}
	var err error
	if n.sw, err = n.addNamespace(ctx, "switch"); err != nil {
		return n, err
	}
	return n, ipCommands(
		ctx,
		[]string{"-n", n.sw.name, "link", "add", "br0", "type", "bridge"},
		[]string{"-n", n.sw.name, "link", "set", "br0", "up"},
	)
}

func (n *network) addNamespace(ctx context.Context, host string) (*namespace, error) {
	ns := &namespace{name: netnsPrefix + n.id + "-" + host}
	// Noted first: a namespace that is not there harms no cleaning.
	if err := n.record.add(entry{Netns: ns.name}); err != nil {
		return nil, err
	}
	n.mu.Lock()
	n.hosts = append(n.hosts, ns)
	n.mu.Unlock()
	err := ipCommands(
		ctx,
		[]string{"netns", "add", ns.name},
		[]string{"-n", ns.name, "link", "set", "lo", "up"},
	)
	if err != nil {
		return nil, err
	}
	if ns.file, err = os.Open(filepath.Join(netnsDir, ns.name)); err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	ns.inode, err = netnsInode(ns.name)
	return ns, err
}

// addHost makes the namespace of a host and plugs it into the bridge.
func (n *network) addHost(ctx context.Context, host string) (*namespace, error) {
	ns, err := n.addNamespace(ctx, host)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	number := len(n.hosts)
	n.mu.Unlock()
	if number > 200 {
		return nil, errors.New("a lab has room for 200 hosts")
	}
	ns.port = "p" + strconv.Itoa(number)
	ns.address = "10.77.0." + strconv.Itoa(number+10)
	return ns, ipCommands(
		ctx,
		[]string{"-n", n.sw.name, "link", "add", ns.port, "type", "veth", "peer", "name", "eth0", "netns", ns.name},
		[]string{"-n", n.sw.name, "link", "set", ns.port, "master", "br0", "up"},
		[]string{"-n", ns.name, "addr", "add", ns.address + "/24", "dev", "eth0"},
		[]string{"-n", ns.name, "link", "set", "eth0", "up"},
	)
}

// change applies a change of the faults to the bridge, in one step.
func (n *network) change(ctx context.Context, edit func(*faults)) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	edit(&n.faults)
	cmd := exec.CommandContext(ctx, "ip", "netns", "exec", n.sw.name, "nft", "-f", "-")
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	cmd.Stdin = strings.NewReader(n.faults.ruleset())
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("setting the faults of the network: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// ruleset is what nft is given: the whole table, replaced in one transaction.
func (f faults) ruleset() string {
	var rules []string
	for port := range f.isolated {
		rules = append(rules, fmt.Sprintf("    iifname %q drop", port), fmt.Sprintf("    oifname %q drop", port))
	}
	for cut := range f.cuts {
		rules = append(rules, fmt.Sprintf("    iifname %q oifname %q drop", cut[0], cut[1]))
	}
	for cut := range f.ports {
		for _, side := range []string{"dport", "sport"} {
			rules = append(rules, fmt.Sprintf("    iifname %q oifname %q meta l4proto { tcp, udp } th %s %d drop", cut.from, cut.to, side, cut.service))
		}
	}
	slices.Sort(rules)
	lines := []string{
		"table bridge faults", "delete table bridge faults", "table bridge faults {",
		"  chain forward {", "    type filter hook forward priority 0; policy accept;",
	}
	lines = append(lines, rules...)
	return strings.Join(append(lines, "  }", "}", ""), "\n")
}

// close removes every namespace; no process may be left in them.
func (n *network) close(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	var errs []error
	for _, ns := range n.hosts {
		_ = ns.file.Close() // nil, and then an error, when making it failed
		errs = append(errs, deleteNetns(ctx, ns.name))
	}
	n.hosts = nil
	return errors.Join(errs...)
}

// deleteNetns removes a namespace, if there is one of that name.
func deleteNetns(ctx context.Context, name string) error {
	if _, err := os.Stat(filepath.Join(netnsDir, name)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return ipCommands(ctx, []string{"netns", "delete", name})
}

// netnsInode is the namespace's identity, in the form of /proc/PID/ns/net.
func netnsInode(name string) (string, error) {
	inode, err := inodeOf(filepath.Join(netnsDir, name))
	if err != nil {
		return "", fmt.Errorf("network namespace %s: %w", name, err)
	}
	return fmt.Sprintf("net:[%d]", inode), nil
}

func ipCommands(ctx context.Context, commands ...[]string) error {
	for _, args := range commands {
		cmd := exec.CommandContext(ctx, "ip", args...)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}
