package mutants

import (
	_ "embed"
	"fmt"
	"strings"
)

//go:embed survivors.txt
var survivors string

// Survivors are the names of the mutants that nothing kills, with the reason why that is
// right: survivors.txt has a mutant in a line of its own, and above it its reason, which holds
// for all up to the next one.
func Survivors() (map[string]string, error) { return parseSurvivors(survivors) }

func parseSurvivors(text string) (map[string]string, error) {
	known, reason, mutants := map[string]string{}, "", false
	for i, line := range strings.Split(text, "\n") {
		comment, isReason := strings.CutPrefix(line, "# ")
		switch {
		case isReason && mutants:
			reason, mutants = comment, false
		case isReason:
			reason = strings.TrimSpace(reason + " " + comment)
		case line == "":
		case reason == "":
			return nil, fmt.Errorf("survivors.txt:%d: no reason stands above it", i+1)
		case known[line] != "":
			return nil, fmt.Errorf("survivors.txt:%d: it is there twice", i+1)
		default:
			known[line], mutants = reason, true
		}
	}
	return known, nil
}
