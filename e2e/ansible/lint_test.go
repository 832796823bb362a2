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

// tool runs one of Ansible's tools in the collection, and skips the test when the
// machine has none.
func tool(t *testing.T, name string, args ...string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("%s is not installed: make deps", name)
	}
	tree, err := collectionTree(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	// Where Ansible finds the collection by its name.
	cmd.Dir = filepath.Join(tree, "ansible_collections", "lictor_ha", "lictor")
	cmd.Env = ansibleEnvironment(tree, t.TempDir())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

func TestSyntax(t *testing.T) {
	t.Parallel()
	playbooks, err := filepath.Glob("../../ansible/playbooks/*.yml")
	if err != nil || len(playbooks) == 0 {
		t.Fatalf("no playbooks: %v", err)
	}
	args := []string{"--syntax-check", "-i", "inventory/example.yml"}
	for _, p := range playbooks {
		args = append(args, "playbooks/"+filepath.Base(p))
	}
	tool(t, "ansible-playbook", args...)
}

func TestLint(t *testing.T) {
	t.Parallel()
	tool(t, "yamllint", "--strict", ".")
	if os.Getenv("LICTOR_TEST_ANSIBLE") == "" {
		t.Skip("ansible-lint takes a minute: make test-ansible")
	}
	tool(t, "ansible-lint", "--offline", "--nocolor", "--strict")
}
