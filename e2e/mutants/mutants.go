// Package mutants finds out which test notices that a rule of the decision core, or of the
// state machine that carries its decisions out, is missing.
//
// Every condition, assignment, field and bound in agent/ha and agent/member is a mutant: it is
// changed, and the tests of its package run, and where those notice nothing the simulator.
// `make mutants` prints what kills each. Nothing is written into the tree: the woven package goes to the
// compiler by -overlay, all mutants are in one test binary, and LICTOR_MUTANT switches one on.
//
//	weave.go      code -> the same code with all mutants in it, and their list
//	mutants.go    builds the test binaries, runs the tests for each mutant
//	survivors.go  mutants that nothing kills, with the reason
//	rules.go      the rules of design 5 that the simulator switches off as a whole
package mutants

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Cores are the packages that may be changed.
func Cores() []string { return []string{"agent/ha", "agent/member"} }

// Tests that run longer with a mutant than so many times what they need without one, on a machine
// that may have become busier, have noticed it.
const (
	slower   = 5
	leastOf  = 2 * time.Minute
	baseEnds = 30 * time.Minute
)

// Suite are built tests with all mutants in them.
type Suite struct {
	Mutants []Mutant
	// Core is the package that is changed.
	Core string
	// Seeds is how many random schedules the simulator plays of those that the
	// tables do not kill; 0: it plays none.
	Seeds int

	root, dir string
	limits    map[string]time.Duration // by package
}

// Build weaves a core and builds its tests, and the simulator, into dir.
func Build(ctx context.Context, root, dir, core string, seeds int) (*Suite, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, fmt.Errorf("the tree: %w", err)
	}
	files, list, err := weave(root, core)
	if err != nil {
		return nil, err
	}
	s := &Suite{Mutants: list, Core: core, Seeds: seeds, root: root, dir: dir, limits: map[string]time.Duration{}}
	replace := map[string]string{}
	for path, content := range files {
		replace[path] = filepath.Join(dir, filepath.Base(path))
		if err := os.WriteFile(replace[path], content, 0o600); err != nil {
			return nil, fmt.Errorf("woven file: %w", err)
		}
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return nil, fmt.Errorf("overlay: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600); err != nil {
		return nil, fmt.Errorf("overlay: %w", err)
	}
	for _, pkg := range []string{core, simulator} {
		build := exec.CommandContext(ctx, "go", "test", "-c", "-overlay", filepath.Join(dir, "overlay.json"), "-o", s.binary(pkg), "./"+pkg) //nolint:gosec // our own packages
		build.Dir = root
		if out, err := build.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("building the tests of %s: %w\n%s", pkg, err, out)
		}
		s.limits[pkg] = baseEnds
		began := time.Now()
		if by, err := s.run(ctx, 0, pkg); err != nil || by != "" {
			return nil, fmt.Errorf("%s fails without a mutant: %s (%w)", pkg, by, err)
		}
		s.limits[pkg] = max(leastOf, slower*time.Since(began))
	}
	return s, nil
}

const simulator = "agent/simulation"

func (s *Suite) binary(pkg string) string { return filepath.Join(s.dir, filepath.Base(pkg)+".test") }

// Kill runs the tests with the mutant n of the list, and says what kills it: empty is nothing.
func (s *Suite) Kill(ctx context.Context, n int) (by string, err error) {
	if by, err = s.run(ctx, n+1, s.Core); by != "" || err != nil || s.Seeds == 0 {
		return by, err
	}
	return s.run(ctx, n+1, simulator)
}

var failForm = regexp.MustCompile(`--- FAIL: (\S+)|panic: (.*)`)

func (s *Suite) run(ctx context.Context, number int, pkg string) (by string, err error) {
	args := []string{"-test.failfast"}
	switch {
	case pkg == simulator && s.Seeds == 0:
		return "", nil
	case pkg == simulator:
		args = append(args, "-test.short", "-sim.seeds", strconv.Itoa(s.Seeds), "-sim.timings", "30")
	case number > 0 && !strings.HasSuffix(s.Mutants[number-1].File, "/sync.go"):
		// They try all that sync.go's rules can meet, and take most of the time.
		args = append(args, "-test.skip", "^TestSynchronous(NeverPromisesTooMuch|Settles)$")
	}
	limited, cancel := context.WithTimeout(ctx, s.limits[pkg])
	defer cancel()
	cmd := exec.CommandContext(limited, s.binary(pkg), args...) //nolint:gosec // built above
	cmd.Dir = filepath.Join(s.root, pkg)
	cmd.Env = append(os.Environ(), "LICTOR_MUTANT="+strconv.Itoa(number))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return "", nil
	case ctx.Err() != nil:
		return "", fmt.Errorf("running the tests of %s: %w", pkg, ctx.Err())
	case limited.Err() != nil:
		return filepath.Base(pkg) + ": it does not end", nil
	case !errors.As(err, &exit):
		return "", fmt.Errorf("running the tests of %s: %w", pkg, err)
	}
	by = "a failure"
	if m := failForm.FindStringSubmatch(out.String()); m != nil {
		by = m[1] + m[2]
	}
	return filepath.Base(pkg) + ": " + by, nil
}
