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
	// span is how many ports below the kernel's own range are tried.
	span     = 11000
	fallback = 32768 // Linux's default for the beginning of that range
	// labs have the ports from here on for themselves (e2e/lab).
	labs = 21000
)

// given are the ports that this process has given out: a server of another test, which runs
// at the same time, may be stopped just now and be started there again.
var given sync.Map //nolint:gochecknoglobals // ports are the process's, too

// FreePorts returns n ports of 127.0.0.1 on which nobody listens. The kernel gives them to
// no outgoing connection either (ip_local_port_range of ip(7)): one that it chose for
// us might be gone by the time that the server listens there.
func FreePorts(n int) ([]int, error) {
	low := fallback
	if text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		if fields := strings.Fields(string(text)); len(fields) == 2 {
			if v, err := strconv.Atoi(fields[0]); err == nil && v > 2*span {
				low = v
			}
		}
	}
	low = min(low, labs)
	var ports []int
	for range 100 * n {
		port := low - 1 - rand.IntN(span) //nolint:gosec // no secret
		if _, taken := given.LoadOrStore(port, true); taken {
			continue
		}
		l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			continue // taken
		}
		if err := l.Close(); err != nil {
			return nil, fmt.Errorf("port %d: %w", port, err)
		}
		if ports = append(ports, port); len(ports) == n {
			return ports, nil
		}
	}
	return nil, fmt.Errorf("found %d of %d free ports", len(ports), n)
}
