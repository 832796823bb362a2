package api

import (
	"bytes"
	"context"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/config"
)

// A plain patroni.yml has no restapi.authentication: root changes things from this
// host, whatever address is used, and other users do not.
func TestChangesFromThisHost(t *testing.T) {
	node := fixed(primaryState(time.Now()))
	node.reload = func(context.Context) error { return nil }
	server := start(t, config.RestAPI{}, node)
	if got := ask(t, "POST", server.url+"/reload", ""); got.status != 202 {
		t.Errorf("ours: %d %s", got.status, got.body)
	}
	for _, header := range []string{"X-Forwarded-For", "Forwarded", "Via"} {
		got := ask(t, "POST", server.url+"/reload", "", func(r *http.Request) { r.Header.Set(header, "10.9.9.9") })
		if got.status != 403 || !strings.Contains(got.body, "a proxy sent it") {
			t.Errorf("by a proxy: %d %s", got.status, got.body)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("only root can be another user")
	}
	host, port, _ := strings.Cut(strings.TrimPrefix(server.url, "http://"), ":")
	cmd := exec.Command("bash", "-c", `exec 3<>/dev/tcp/$0/$1; printf 'POST /reload HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n' >&3; cat <&3`, host, port)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.Output()
	if err != nil || !bytes.HasPrefix(out, []byte("HTTP/1.1 403")) || !bytes.Contains(out, []byte("the user with the number 65534 sent it")) {
		t.Errorf("another user: %v %s", err, out)
	}
}
