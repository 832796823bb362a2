package bouncer

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster/settings"
	"github.com/lictor-ha/lictor/agent/osuser"
	"github.com/lictor-ha/lictor/bouncer/config"
)

// Another user of the host has the bouncer's port while it is down, and asks for the password as
// the bouncer would. No command tells it, unless that user can read it in bouncer.yml.
func TestPasswordIsToldToTheBouncerAlone(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs a second user")
	}
	const stranger = 65534
	dir, err := os.MkdirTemp("", "bouncer")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil { // nobody's user may look for the file
		t.Fatal(err)
	}
	file := filepath.Join(dir, "bouncer.yml")
	for _, tt := range []struct {
		name   string
		port   int // whose user answers
		owner  int // of bouncer.yml
		mode   os.FileMode
		listen string
		told   bool
	}{
		{"a stranger", stranger, 0, 0o600, "127.0.0.1:0", false},
		{"a stranger at an address of this host", stranger, 0, 0o600, "127.0.0.2:0", false},
		{"a stranger, by IPv6", stranger, 0, 0o600, "[::1]:0", false},
		{"a stranger, and the bouncer's file is another's", stranger, stranger - 1, 0o600, "127.0.0.1:0", false},
		{"the user whose file it is", stranger, stranger, 0o600, "127.0.0.1:0", true},
		{"a user of the file's group", stranger, 0, 0o640, "127.0.0.1:0", true},
		{"root", 0, 0, 0o600, "127.0.0.1:0", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, err := net.Listen("tcp", tt.listen)
			if err != nil {
				t.Skip(err) // no IPv6 here
			}
			heard := impostor(t, l, tt.port)
			text := fmt.Sprintf("name: b1\nlisten: %q\nauthentication: {username: operator, password: tell-nobody}\npgbouncer: {config: /nowhere/pgbouncer.ini, admin: \"127.0.0.1:6432\"}\nshards: [{scope: s1}]\n", l.Addr())
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.Remove(file) })
			group := 0
			if tt.mode&0o040 != 0 {
				group = stranger
			}
			if err := os.Chown(file, tt.owner, group); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(file, tt.mode); err != nil {
				t.Fatal(err)
			}
			c, _, err := config.Load(settings.Source{Path: file})
			if err != nil {
				t.Fatal(err)
			}
			pausing := func(p Pausing) func(context.Context) error {
				return func(ctx context.Context) error {
					_, err := p.Do(ctx, c, "s1", "operator")
					return err
				}
			}
			for command, run := range map[string]func(context.Context) error{
				"drain": func(ctx context.Context) error { return Drain(ctx, c, true) }, "undrain": func(ctx context.Context) error { return Drain(ctx, c, false) },
				"pause": pausing(Pause), "resume": pausing(Resume), "release": pausing(Release),
				"status": func(ctx context.Context) error { _, err := AskStatus(ctx, c); return err },
			} {
				err := run(t.Context())
				told := false
				for _, r := range heard() {
					_, password, ok := r.BasicAuth()
					told = told || ok && password == "tell-nobody"
				}
				if command == "status" {
					if told {
						t.Errorf("status tells the password, which it need not")
					}
					continue
				}
				if told != tt.told {
					t.Errorf("%s told the password: %v, want %v (%v)", command, told, tt.told, err)
				}
				if !tt.told && (err == nil || !strings.Contains(err.Error(), "65534") || !strings.Contains(err.Error(), "set certfile")) {
					t.Errorf("%s: %v, want an error that says who answers and what to do", command, err)
				}
				if err != nil && strings.Contains(err.Error(), "tell-nobody") {
					t.Errorf("%s: %v", command, err)
				}
			}
		})
	}
}

// impostor answers on a listener, as a user, every request with a demand for a login. heard returns
// what it was asked since it was called last.
func impostor(t *testing.T, l net.Listener, uid int) (heard func() []*http.Request) {
	t.Helper()
	requests := make(chan *http.Request, 100)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		// Connections belong to the user whose rights accept has.
		_ = osuser.Numbered(uint32(uid)).Do(func() error { //nolint:gosec // one of the two above
			for {
				conn, err := l.Accept()
				if err != nil {
					return err
				}
				for in := bufio.NewReader(conn); ; {
					r, err := http.ReadRequest(in)
					if err != nil {
						break
					}
					requests <- r
					fmt.Fprint(conn, "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"lictor bouncer\"\r\nContent-Length: 2\r\n\r\n{}")
				}
				conn.Close()
			}
		})
	}()
	t.Cleanup(func() { l.Close(); <-ended })
	return func() (all []*http.Request) {
		for {
			select {
			case r := <-requests:
				all = append(all, r)
			default:
				return all
			}
		}
	}
}
