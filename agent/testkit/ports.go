package testkit

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
)

const (
	// span is how many ports below the kernel's own range are tried, in blocks.
	span     = 11000
	block    = 40
	fallback = 32768 // Linux's default for the beginning of that range
	// labs have the ports from here on for themselves (e2e/lab).
	labs = 21000
)

// ports are those that this process may give out. None is given out twice: a server of another
// test, which runs at the same time, may be stopped just now and be started there again. Nor does
// another process give them out: a block belongs to whoever listens on the socket of its name, which
// ends with the process.
var ports struct { //nolint:gochecknoglobals // ports are the process's, too
	sync.Mutex
	left   []int
	blocks []net.Listener
}

// FreePorts returns n ports of 127.0.0.1 on which nobody listens. The kernel gives them to
// no outgoing connection either (ip_local_port_range of ip(7)): one that it chose for
// us might be gone by the time that the server listens there.
func FreePorts(n int) ([]int, error) {
	ports.Lock()
	defer ports.Unlock()
	var free []int
	for len(free) < n {
		if len(ports.left) == 0 {
			if err := claim(); err != nil {
				return nil, fmt.Errorf("found %d of %d free ports: %w", len(free), n, err)
			}
		}
		port := ports.left[0]
		ports.left = ports.left[1:]
		l, err := listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			continue // taken
		}
		if err := l.Close(); err != nil {
			return nil, fmt.Errorf("port %d: %w", port, err)
		}
		free = append(free, port)
	}
	return free, nil
}

// claim makes a block of ports this process's own.
func claim() error {
	low := fallback
	if text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		if fields := strings.Fields(string(text)); len(fields) == 2 {
			if v, err := strconv.Atoi(fields[0]); err == nil && v > 2*span {
				low = v
			}
		}
	}
	low = min(low, labs)
	for _, i := range rand.Perm(span / block) { //nolint:gosec // no secret
		first := low - span + i*block
		// Abstract (unix(7)): it is of this network namespace, as ports are, and leaves no file.
		l, err := listen("unix", "@lictor-test-ports-"+strconv.Itoa(first))
		if err != nil {
			continue // another process's
		}
		ports.blocks = append(ports.blocks, l)
		for port := first; port < first+block; port++ {
			ports.left = append(ports.left, port)
		}
		return nil
	}
	return fmt.Errorf("other processes have all blocks of ports from %d to %d", low-span, low-1)
}

func listen(network, address string) (net.Listener, error) {
	return new(net.ListenConfig).Listen(context.Background(), network, address)
}
