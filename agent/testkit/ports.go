package testkit

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
)

const (
	// span is how many ports below the kernel's own range are tried.
	span     = 15000
	fallback = 32768 // Linux's default for the beginning of that range
)

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
	var ports []int
	for range 100 * n {
		port := low - 1 - rand.IntN(span) //nolint:gosec // no secret
		if slices.Contains(ports, port) {
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
