package ansible

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestPackages builds all packages twice, in different places: the same bytes must
// come out, with everything in them that docs/packages.md says.
func TestPackages(t *testing.T) {
	if os.Getenv("LICTOR_TEST_ANSIBLE") == "" {
		t.Skip("set LICTOR_TEST_ANSIBLE=1, or run make test-ansible: two builds for two architectures")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	var sums []string
	var dist string
	for range 2 {
		dist = t.TempDir()
		cmd := exec.CommandContext(ctx, "../../packages/build.sh", "1.2.3", dist)
		// Neither the clock nor where it is built may show.
		cmd.Env = append(os.Environ(), "TMPDIR="+t.TempDir(), "SOURCE_DATE_EPOCH=1700000000")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("building: %v: %s", err, out)
		}
		text, err := os.ReadFile(filepath.Join(dist, "SHA256SUMS"))
		if err != nil {
			t.Fatal(err)
		}
		sums = append(sums, string(text))
	}
	if sums[0] != sums[1] {
		t.Errorf("two builds of one source differ:\n%s\n%s", sums[0], sums[1])
	}
	for _, name := range []string{
		"lictor_1.2.3_amd64.deb", "lictor_1.2.3_arm64.deb", "lictor-1.2.3-1.x86_64.rpm", "lictor-1.2.3-1.aarch64.rpm",
		"lictor-1.2.3-linux-amd64.cdx.json", "lictor-1.2.3-linux-arm64.cdx.json",
	} {
		if !strings.Contains(sums[0], "  "+name+"\n") {
			t.Errorf("%s is not among the checksums:\n%s", name, sums[0])
		}
	}
	bill, err := os.ReadFile(filepath.Join(dist, "lictor-1.2.3-linux-arm64.cdx.json"))
	if err != nil || !strings.Contains(string(bill), `"pkg:golang/github.com/hashicorp/consul/api@`) || !strings.Contains(string(bill), `"bomFormat": "CycloneDX"`) {
		t.Errorf("the bill of materials does not name Consul's client: %v", err)
	}
	for _, kind := range []struct {
		tool []string
		pkg  string
		own  []string // where this family of distributions wants it
	}{
		{
			tool: []string{"dpkg-deb", "--contents"}, pkg: "lictor_1.2.3_amd64.deb",
			own: []string{"usr/share/zsh/vendor-completions/_lictor"},
		},
		{
			tool: []string{"rpm", "--query", "--package", "--list"}, pkg: "lictor-1.2.3-1.x86_64.rpm",
			own: []string{"usr/share/zsh/site-functions/_lictor", "usr/lib/systemd/system/lictor-bouncer.service.d/10-user.conf"},
		},
	} {
		if _, err := exec.LookPath(kind.tool[0]); err != nil {
			t.Logf("no %s here: the content of %s is not looked at", kind.tool[0], kind.pkg)
			continue
		}
		listed, err := output(ctx, time.Minute, kind.tool[0], append(kind.tool[1:], filepath.Join(dist, kind.pkg))...)
		if err != nil {
			t.Fatal(err)
		}
		content := map[string]bool{}
		for line := range strings.Lines(listed) {
			fields := strings.Fields(line) // the path comes last
			content[strings.TrimLeft(fields[len(fields)-1], "./")] = true
		}
		for _, want := range append([]string{
			"usr/bin/lictor", "usr/lib/systemd/system/lictor-agent@.service", "usr/lib/systemd/system/lictor-bouncer.service",
			"usr/lib/systemd/system/lictor-softdog.service", "usr/lib/systemd/system/lictor-web.service", "usr/lib/sysusers.d/lictor.conf", "usr/lib/udev/rules.d/60-lictor-watchdog.rules",
			"usr/share/lictor/modules-load.d/softdog.conf", "usr/share/bash-completion/completions/lictor",
			"usr/share/fish/vendor_completions.d/lictor.fish", "usr/share/man/man1/lictor.1.gz", "usr/share/man/man1/lictor-agent.1.gz",
			"usr/share/doc/lictor/examples/agent.yml", "usr/share/doc/lictor/examples/bouncer.yml", "usr/share/doc/lictor/examples/web.yml", "usr/share/doc/lictor/sbom.cdx.json",
		}, kind.own...) {
			if !content[want] {
				t.Errorf("%s lacks %s", kind.pkg, want)
			}
		}
	}
}
