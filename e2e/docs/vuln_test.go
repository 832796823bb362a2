package docs

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// A vulnerability fails `make lint`; a database that cannot be reached is told, and is no
// clean bill.
func TestVulnerabilitiesAreToldOrNotChecked(t *testing.T) {
	for _, c := range []struct {
		name, says string
		exits      int
		want       string
		fails      bool
	}{
		{"nothing found", "No vulnerabilities found.", 0, "No vulnerabilities found.", false},
		{"one found", "Vulnerability #1: GO-2099-0001", 3, "GO-2099-0001", true},
		{"no database", "govulncheck: fetching vulnerabilities: Get: no such host", 1, "not checked", false},
		{"another failure", "govulncheck: loading packages: broken", 1, "loading packages", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			program := filepath.Join(t.TempDir(), "govulncheck")
			script := "#!/bin/sh\necho '" + c.says + "'\nexit " + string(rune('0'+c.exits)) + "\n"
			if err := os.WriteFile(program, []byte(script), 0o700); err != nil { //nolint:gosec // it is a program
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), filepath.Join(root, "e2e/tools/vuln.sh"), "./...")
			cmd.Env = append(os.Environ(), "GOVULNCHECK_BIN="+program)
			out, err := cmd.CombinedOutput()
			if (err != nil) != c.fails || !strings.Contains(string(out), c.want) {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}
