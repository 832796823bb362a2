package render

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/testkit"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
	"github.com/lictor-ha/lictor/templates"
)

// haproxyOf is the configuration for shards with these leaders, whose REST APIs are at that port.
func haproxyOf(t *testing.T, api int, leaders ...cluster.RouteMember) string {
	t.Helper()
	source, err := templates.Read(templates.HAProxy)
	testkit.Must(t, err)
	known := map[config.ShardID]ShardRoute{}
	for i, m := range leaders {
		known[config.ShardID(fmt.Sprintf("service/s%d", i))] = ShardRoute{Route: cluster.Route{Leader: m}}
	}
	var c config.Config
	data := newTemplateData(nil)
	t.Cleanup(data.close)
	views, _ := View(c, known, pgbouncer.Version{})
	for _, v := range views {
		d := newMemberPorts(v)
		data.brain.Remember(d, map[string]memberPort{v.Route.Leader.Name: {port: api}})
		data.followed[d.String()] = &followed{dependency: d, cancel: func() {}}
	}
	r := &Renderer{config: c, data: data, label: templates.HAProxy}
	text, err := r.Render(source, views, pgbouncer.Version{})
	testkit.Must(t, err)
	return string(text)
}

// Whoever says where one shard's members are names hosts whose zone answers nothing: HAProxy reads its file all the
// same, at once. With addresses alone it needs no name server's address either.
func TestSlowNamesHoldUpNoConfiguration(t *testing.T) {
	if _, err := exec.LookPath("haproxy"); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	silent := filepath.Join(dir, "resolv.conf")
	testkit.Must(t, os.WriteFile(silent, []byte("nameserver 127.0.0.1\n"), 0o644))
	// A name server that answers nothing, for as long as HAProxy reads.
	const python = `import socket,sys,time; s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.bind(("127.0.0.1",53)); print(flush=True); time.sleep(60)`
	network := "ip link set lo up && mount --bind " + silent + " /etc/resolv.conf && coproc python3 -c '" + python + "' && read -ru ${COPROC[0]} && trap 'kill $COPROC_PID' EXIT"
	if out, err := exec.Command("unshare", "-nm", "bash", "-c", network).CombinedOutput(); err != nil {
		t.Skipf("a network without a name server takes root: %v: %s", err, out)
	}
	file := filepath.Join(dir, "haproxy.cfg")
	read := func(text string) error { // within 5 s
		t.Helper()
		testkit.Must(t, os.WriteFile(file, []byte(text), 0o644))
		out, err := exec.Command("unshare", "-nm", "bash", "-c", network+" && timeout 5 haproxy -c -f "+file).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return err
	}
	names := []cluster.RouteMember{
		{Name: "m1", Host: "h1.elsewhere.example", Port: 5432},
		{Name: "m2", Host: "h2.elsewhere.example", Port: 5432},
		{Name: "m3", Host: "10.0.0.3", Port: 5432},
		{Name: "m4", Host: "localhost", Port: 5432},
	}
	if err := read(haproxyOf(t, 8008, names...)); err != nil {
		t.Error(err)
	}
	if text := haproxyOf(t, 8008, names[2:]...); strings.Contains(text, "resolv") {
		t.Errorf("no name is looked up:\n%s", text)
	}
	slow := strings.ReplaceAll(haproxyOf(t, 8008, names[0]), "last,none resolvers lictor", "last,libc,none")
	if read(slow) == nil {
		t.Error("the names of this test are not slow")
	}
}

// A name that HAProxy looks up while it runs gets clients as soon as it is found and healthy.
func TestHAProxyFindsNames(t *testing.T) {
	if _, err := exec.LookPath("haproxy"); err != nil {
		t.Skip(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "it is here") }))
	defer server.Close()
	port := server.Listener.Addr().(*net.TCPAddr).Port
	names, err := net.ListenPacket("udp", "127.0.0.1:0")
	testkit.Must(t, err)
	var serving sync.WaitGroup
	defer serving.Wait()
	defer func() { _ = names.Close() }()
	serving.Go(func() { answerNames(names) })
	ports, err := testkit.FreePorts(2)
	testkit.Must(t, err)
	text := strings.NewReplacer(
		"parse-resolv-conf", "nameserver one "+names.LocalAddr().String(),
		"bind *:5000", fmt.Sprintf("bind 127.0.0.1:%d", ports[0]), "bind *:5001", fmt.Sprintf("bind 127.0.0.1:%d", ports[1]),
	).Replace(haproxyOf(t, port, cluster.RouteMember{Name: "m1", Host: "db1.site.example", Port: port}))
	file := filepath.Join(t.TempDir(), "haproxy.cfg")
	testkit.Must(t, os.WriteFile(file, []byte(text), 0o644))
	cmd := exec.Command("haproxy", "-db", "-f", file)
	testkit.Must(t, cmd.Start())
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	client := &http.Client{Timeout: time.Second}
	testkit.Await(t.Context(), t, "the server by its name", func() error {
		answer, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/", ports[0]))
		if err == nil {
			err = answer.Body.Close()
		}
		return err
	})
}

// answerNames says of each name that it is 127.0.0.1.
func answerNames(conn net.PacketConn) {
	query := make([]byte, 4096)
	for {
		n, from, err := conn.ReadFrom(query)
		if err != nil {
			return
		}
		end := 12
		for end < n && query[end] != 0 {
			end += int(query[end]) + 1
		}
		if end += 5; end > n {
			continue
		}
		answer := append([]byte(nil), query[:end]...)
		answer[2], answer[3] = 0x81, 0x80
		copy(answer[6:12], []byte{0, 0, 0, 0, 0, 0})
		if binary.BigEndian.Uint16(query[end-4:]) == 1 { // A
			answer[7] = 1
			answer = append(answer, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1)
		}
		_, _ = conn.WriteTo(answer, from)
	}
}
