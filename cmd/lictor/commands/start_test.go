package commands

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// An agent shares its binary with the bouncer and the operator's commands, and has none of
// their memory for it: what they need (a regular expression, say) is made when it is used.
func TestStartMakesNothingForOthers(t *testing.T) {
	self := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^$")
	self.Env = append(os.Environ(), "GODEBUG=inittrace=1")
	out, err := self.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "init github.com/lictor-ha/lictor/agent/postgres @") {
		t.Fatalf("%v: %s", err, out)
	}
	others := regexp.MustCompile(`(?m)^init github\.com/lictor-ha/lictor/(bouncer|templates|agent/(adoption|backup|operator|placement))\b.*`)
	for _, line := range others.FindAllString(string(out), -1) {
		t.Errorf("a package-level variable is made at each start: %s", line)
	}
}
