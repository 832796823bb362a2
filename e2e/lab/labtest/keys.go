package labtest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// repeatedKeys looks through all logs of a lab for lines of JSON with a key twice,
// one for each log.
func repeatedKeys(dir string) (problems []string) {
	paths, _ := filepath.Glob(filepath.Join(dir, "log", "*.log"))
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			continue // the lab may not have come so far
		}
		lines := bufio.NewScanner(f)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			if key := repeatedKey(lines.Text()); key != "" {
				problems = append(problems, fmt.Sprintf("%s has the key %q twice in a line: %s", filepath.Base(path), key, lines.Text()))
				break
			}
		}
		f.Close()
	}
	return problems
}

// repeatedKey is a key that an object of JSON has twice; empty: none, or no object.
func repeatedKey(line string) string {
	decoder := json.NewDecoder(strings.NewReader(line))
	if start, err := decoder.Token(); err != nil || start != json.Delim('{') {
		return ""
	}
	seen := map[string]bool{}
	for decoder.More() {
		key, err := decoder.Token()
		name, ok := key.(string)
		if err != nil || !ok {
			return ""
		}
		if seen[name] {
			return name
		}
		seen[name] = true
		var value json.RawMessage
		if decoder.Decode(&value) != nil {
			return ""
		}
	}
	return ""
}
