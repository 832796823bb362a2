package ansible

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/testkit"
)

// TestImages builds the container images and runs what is in them, as the user that they name: the
// bouncer with its PgBouncer, and an agent that makes a shard of one member.
func TestImages(t *testing.T) {
	if os.Getenv("LICTOR_TEST_IMAGES") == "" {
		t.Skip("set LICTOR_TEST_IMAGES=1: two root file systems are made, for minutes")
	}
	for _, program := range []string{"buildah", "mmdebstrap"} {
		if _, err := exec.LookPath(program); err != nil || os.Geteuid() != 0 {
			t.Skipf("%s is needed, as root: %v", program, err)
		}
	}
	consul := os.Getenv("CONSUL_BIN")
	if consul == "" {
		t.Skip("Consul is needed: set CONSUL_BIN")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	dist := t.TempDir()
	build := exec.CommandContext(ctx, "../../packages/images.sh", "1.2.3+test", dist)
	build.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1700000000")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building: %v: %s", err, out)
	}
	ports, err := testkit.FreePorts(7)
	testkit.Must(t, err)
	runUntilEnd(t, exec.CommandContext(ctx, consul, "agent", "-dev", "-log-level=warn", "-data-dir", t.TempDir(), "-bind=127.0.0.1",
		fmt.Sprintf("-http-port=%d", ports[0]), fmt.Sprintf("-serf-lan-port=%d", ports[1]), fmt.Sprintf("-server-port=%d", ports[2]),
		"-serf-wan-port=-1", "-dns-port=-1", "-grpc-port=-1", "-hcl=ports { grpc_tls = -1 }"))
	i := &images{t: t, dist: dist, storage: t.TempDir()}

	agent := i.from(ctx, "agent")
	i.start(ctx, agent, "agent", fmt.Sprintf(`
scope: orders
name: db1
consul: {host: 127.0.0.1:%d}
restapi: {listen: 127.0.0.1:%d}
postgresql:
  listen: 127.0.0.1:%d
  data_dir: /var/lib/postgresql/data
  bin_dir: /usr/lib/postgresql/15/bin
  parameters: {unix_socket_directories: /tmp}
  authentication: {superuser: {username: postgres, password: s}, replication: {username: replicator, password: r}}
`, ports[0], ports[3], ports[4]))
	awaitAnswer(ctx, t, "the agent to lead", fmt.Sprintf("http://127.0.0.1:%d/primary", ports[3]), func(answer map[string]any) bool { return answer["role"] == "primary" })

	bouncer := i.from(ctx, "bouncer")
	i.start(ctx, bouncer, "bouncer", fmt.Sprintf(`
name: pooler1
consul: {host: 127.0.0.1:%d}
listen: 127.0.0.1:%d
pgbouncer:
  config: /etc/pgbouncer/pgbouncer.ini
  admin: 127.0.0.1:%d
  password: p
  command: [pgbouncer, /etc/pgbouncer/pgbouncer.ini]
`, ports[0], ports[5], ports[6]))
	awaitAnswer(ctx, t, "the bouncer and its PgBouncer to serve", fmt.Sprintf("http://127.0.0.1:%d/health", ports[5]), func(answer map[string]any) bool { return answer["healthy"] == true })
}

// images are containers in a storage of their own.
type images struct {
	t             *testing.T
	dist, storage string
}

func (i *images) buildah(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "buildah", append([]string{"--root", filepath.Join(i.storage, "root"), "--runroot", filepath.Join(i.storage, "run"), "--storage-driver", "vfs"}, args...)...)
}

func (i *images) must(ctx context.Context, args ...string) string {
	i.t.Helper()
	cmd := i.buildah(ctx, args...)
	out, err := cmd.Output()
	if err != nil {
		i.t.Fatalf("%v: %v %s", cmd.Args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// from makes a container of an image, whose rights it looks at.
func (i *images) from(ctx context.Context, which string) (container string) {
	i.t.Helper()
	archives, err := filepath.Glob(filepath.Join(i.dist, "lictor-"+which+"-1.2.3+test-*.oci.tar"))
	if err != nil || len(archives) != 1 {
		i.t.Fatalf("images of %s: %v %v", which, archives, err)
	}
	container = i.must(ctx, "from", "--pull-never", "oci-archive:"+archives[0])
	var image struct {
		OCIv1 struct {
			Config struct {
				User       string
				Entrypoint []string
				Labels     map[string]string
			}
		}
	}
	testkit.Must(i.t, json.Unmarshal([]byte(i.must(ctx, "inspect", container)), &image))
	config := image.OCIv1.Config
	if config.User == "" || strings.HasPrefix(config.User, "0") || strings.Join(config.Entrypoint, " ") != "tini -- lictor "+which+" /etc/lictor/"+which+".yml" {
		i.t.Errorf("%s: %+v", which, config)
	}
	said := i.must(ctx, "run", "--isolation", "chroot", container, "--", "sh", "-c", `id -un; lictor version; touch "$PWD/x" && rm "$PWD/x" && echo writes; touch /etc/x 2>/dev/null || echo "not elsewhere"; find / -xdev -type f -perm /6000 2>/dev/null`)
	if said != "postgres\nlictor version 1.2.3+test\nwrites\nnot elsewhere" || config.Labels["org.opencontainers.image.version"] != "1.2.3+test" {
		i.t.Errorf("%s: %q, labels %v", which, said, config.Labels)
	}
	return container
}

// start runs what the image runs, with a file of settings.
func (i *images) start(ctx context.Context, container, which, settings string) {
	i.t.Helper()
	file := filepath.Join(i.t.TempDir(), which+".yml")
	testkit.Must(i.t, os.WriteFile(file, []byte(settings), 0o600))
	i.must(ctx, "copy", "--chown", "postgres:postgres", container, file, "/etc/lictor/"+which+".yml")
	if which == "bouncer" {
		users := filepath.Join(i.t.TempDir(), "userlist.txt")
		testkit.Must(i.t, os.WriteFile(users, []byte("\"pgbouncer\" \"p\"\n"), 0o600))
		i.must(ctx, "copy", "--chown", "postgres:postgres", container, users, "/etc/pgbouncer/userlist.txt")
	}
	runUntilEnd(i.t, i.buildah(ctx, "run", "--isolation", "chroot", container, "--", "tini", "--", "lictor", which, "/etc/lictor/"+which+".yml"))
}

// runUntilEnd runs a program until the test ends.
func runUntilEnd(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	testkit.Must(t, err)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // what it has begun ends with it
	testkit.Must(t, cmd.Start())
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) // it may have ended
		ended := make(chan struct{})
		go func() { defer close(ended); _ = cmd.Wait() }()
		select {
		case <-ended:
		case <-time.After(30 * time.Second):
		}
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-ended
		if text, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			t.Logf("%v: %s", cmd.Args, text[max(0, len(text)-6000):])
		}
		log.Close()
	})
}

// awaitAnswer asks until the answer is as wanted.
func awaitAnswer(ctx context.Context, t *testing.T, what, address string, is func(map[string]any) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	testkit.Await(ctx, t, what, func() error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
		if err != nil {
			return err
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		var answer map[string]any
		if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
			return err
		}
		if !is(answer) {
			return fmt.Errorf("%d: %v", response.StatusCode, answer)
		}
		return nil
	})
}
