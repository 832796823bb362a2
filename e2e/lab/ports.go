package lab

import (
	"fmt"
	"net"
	"strconv"
)

// Loopback labs take their ports from blocks below the range that the kernel
// uses for outgoing connections: a port of a host that is down for a while must
// not be taken by somebody's client meanwhile.
const (
	firstBlock = 21000
	blockSize  = 200
	lastPort   = 32000
)

// portBlock is a range of ports that one lab has for itself. Its first port is
// held open as long as the lab lives: that is the claim that other labs see.
type portBlock struct {
	claim net.Listener
	next  int
	end   int
}

// claimPorts finds a block whose ports are all free.
func claimPorts() (*portBlock, error) {
	var last error
	for base := firstBlock; base+blockSize <= lastPort; base += blockSize {
		claim, err := net.Listen("tcp", loopback(base)) //nolint:noctx // a local bind does not wait
		if err != nil {
			last = err
			continue
		}
		if err := allFree(base+1, base+blockSize); err != nil {
			last = err
			_ = claim.Close()
			continue
		}
		return &portBlock{claim: claim, next: base + 1, end: base + blockSize}, nil
	}
	return nil, fmt.Errorf("no %d free ports in a row between %d and %d on 127.0.0.1: %w", blockSize, firstBlock, lastPort, last)
}

func allFree(from, to int) error {
	for port := from; port < to; port++ {
		l, err := net.Listen("tcp", loopback(port)) //nolint:noctx // a local bind does not wait
		if err != nil {
			return err
		}
		_ = l.Close()
	}
	return nil
}

// take hands out the block's next port.
func (b *portBlock) take() (int, error) {
	if b.next >= b.end {
		return 0, fmt.Errorf("the lab needs more than %d ports", blockSize-1)
	}
	b.next++
	return b.next - 1, nil
}

func (b *portBlock) release() {
	if b != nil {
		_ = b.claim.Close()
	}
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
