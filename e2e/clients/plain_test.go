package clients

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/lictor-ha/lictor/e2e/lab"
	"github.com/lictor-ha/lictor/e2e/lab/labtest"
)

// A plain patroni.yml has no restapi.authentication: root switches over on the
// leader's own host, and nobody else does.
func TestPlainPatroniFile(t *testing.T) {
	labtest.RequireNetns(t)
	l := labtest.New(t, lab.Options{
		Substrate: lab.Netns, Members: 2, Bouncers: -1, ConsulServers: 1,
		Database: lab.Lictor{Edit: func(_ *lab.Member, config map[string]any) { delete(config["restapi"].(map[string]any), "allowlist") }},
	})
	ctx := within(t)
	patronictl, err := exec.LookPath("patronictl")
	must(t, err)
	must(t, l.Start(ctx))
	s := l.Shard(0)
	leader, err := s.AwaitHealthy(ctx)
	must(t, err)
	must(t, s.AwaitSync(ctx))
	other := s.Members()[0]
	if other == leader {
		other = s.Members()[1]
	}
	dir := t.TempDir()
	must(t, os.Chmod(filepath.Dir(dir), 0o755)) //nolint:gosec // another user reads the file
	must(t, os.Chmod(dir, 0o755))               //nolint:gosec // as above
	file := filepath.Join(dir, "patroni.yml")
	config, err := yaml.Marshal(map[string]any{"scope": s.Name, "consul": map[string]any{"host": l.ConsulHosts()[0]}})
	must(t, err)
	must(t, os.WriteFile(file, config, 0o644)) //nolint:gosec // no secret is in it
	run := func(on *lab.Host, before ...string) string {
		t.Helper()
		args := append(before, patronictl, "-c", file, "switchover", s.Name, "--leader", leader.Name, "--candidate", other.Name, "--force")
		cmd := on.Command(ctx, args[0], args[1:]...)
		cmd.Env = []string{"PATH=/usr/bin:/bin:/usr/sbin:/sbin", "HOME=" + dir, "LANG=C.UTF-8"}
		out, err := cmd.CombinedOutput()
		t.Logf("on %s: %v\n%s", on.Name, err, out)
		return string(out)
	}
	const line = "restapi: {authentication: {username: ..., password: ...}}"
	if out := run(other.Host); !strings.Contains(out, "403") || !strings.Contains(out, line) {
		t.Error("another member's host: not refused, or without the line to add")
	}
	if out := run(leader.Host, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"); !strings.Contains(out, "403") || !strings.Contains(out, "65534") {
		t.Error("another user of the leader's host: not refused")
	}
	if out := run(leader.Host); !strings.Contains(out, `Successfully switched over to "`+other.Name+`"`) {
		t.Error("root on the leader's host was refused")
	}
	if now, err := s.AwaitHealthy(ctx); err != nil || now != other {
		t.Errorf("%v leads, %v", now, err)
	}
}
