package bouncer

import (
	"context"
	"fmt"
	"net"
)

// keptListener keeps the address that the bouncer listens on from one configuration to the
// next: nobody else gets it in between, and a health check waits instead of being refused.
// It is not safe for use by several goroutines; the zero value listens nowhere.
type keptListener struct {
	address string
	kept    *net.TCPListener
}

// listen returns a listener on address, which the caller closes. That of another address is
// let go.
func (k *keptListener) listen(ctx context.Context, address string) (net.Listener, error) {
	if k.kept == nil || k.address != address {
		l, err := openTCP(ctx, address)
		if err != nil && k.kept != nil { // it may be the same port, by another name
			k.close()
			l, err = openTCP(ctx, address)
		}
		if err != nil {
			return nil, fmt.Errorf("listen: %s: %w", address, err)
		}
		k.close()
		k.address, k.kept = address, l
	}
	file, err := k.kept.File()
	if err != nil {
		return nil, fmt.Errorf("listen: %s: %w", address, err)
	}
	defer file.Close()
	l, err := net.FileListener(file)
	if err != nil {
		return nil, fmt.Errorf("listen: %s: %w", address, err)
	}
	return l, nil
}

func openTCP(ctx context.Context, address string) (*net.TCPListener, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return l.(*net.TCPListener), nil //nolint:forcetypeassert // that is what tcp is
}

// close gives the address up.
func (k *keptListener) close() {
	if k.kept != nil {
		_ = k.kept.Close()
		k.kept = nil
	}
}
