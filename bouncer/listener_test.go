package bouncer

import (
	"net"
	"strings"
	"testing"
)

func TestListenerIsKept(t *testing.T) {
	t.Parallel()
	var k keptListener
	defer k.close()
	open := func(address string) net.Listener {
		t.Helper()
		l, err := k.listen(t.Context(), address)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	taken := func(address string) bool {
		t.Helper()
		l, err := net.Listen("tcp", address) //nolint:noctx // it answers at once
		if err == nil {
			l.Close()
		}
		return err != nil
	}
	first := open("127.0.0.1:0")
	address := first.Addr().String()
	first.Close()
	if !taken(address) {
		t.Fatal("between two configurations another program gets the address")
	}
	early, err := net.Dial("tcp", address) //nolint:noctx // as above
	if err != nil {
		t.Fatalf("between two configurations: %v", err)
	}
	defer early.Close()
	second := open("127.0.0.1:0")
	if second.Addr().String() != address {
		t.Errorf("the same address is %s now, was %s", second.Addr(), address)
	}
	if c, err := second.Accept(); err != nil {
		t.Errorf("who came in between: %v", err)
	} else {
		c.Close()
	}
	second.Close()

	_, port, _ := strings.Cut(address, ":")
	named := open("localhost:" + port)
	named.Close()
	elsewhere := open("127.0.0.1:00")
	defer elsewhere.Close()
	if taken(address) {
		t.Error("an address that is not listened on any more is not free")
	}
	if _, err := k.listen(t.Context(), "192.0.2.1:1"); err == nil || !strings.Contains(err.Error(), "listen: 192.0.2.1:1: ") {
		t.Errorf("an address of another host: %v", err)
	}
}
