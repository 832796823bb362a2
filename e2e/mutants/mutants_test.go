package mutants

import (
	"slices"
	"strings"
	"testing"
)

// The list of what nothing kills names changes that can still be made.
func TestSurvivorsAreMutants(t *testing.T) {
	names := map[string]bool{}
	for _, core := range Cores() {
		_, list, err := weave("../..", core)
		if err != nil {
			t.Fatal(err)
		}
		if len(list) < 1000 {
			t.Errorf("%s: only %d mutants", core, len(list))
		}
		for _, m := range list {
			if names[m.Name()] {
				t.Errorf("two mutants are named %s", m.Name())
			}
			names[m.Name()] = true
		}
	}
	known, err := Survivors()
	if err != nil {
		t.Fatal(err)
	}
	for name := range known {
		if !names[name] {
			t.Errorf("survivors.txt: the code has no %s", name)
		}
	}
}

func TestParseSurvivors(t *testing.T) {
	known, err := parseSurvivors("# one\n# reason\na\nb\n\n# another\nc\n")
	if err != nil || len(known) != 3 || known["a"] != "one reason" || known["b"] != "one reason" || known["c"] != "another" {
		t.Errorf("%v, %v", known, err)
	}
	for _, text := range []string{"a\n", "# reason\na\na\n"} {
		if _, err := parseSurvivors(text); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}

// Every kind of place is changed, and what comes out is Go (weave formats it).
func TestWeave(t *testing.T) {
	w := weaver{file: "a.go", source: []byte(`package a

func f(a, b bool, n int) (c int) {
	if a && !b || n > 2 {
		c = max(n, 3)
	}
	switch {
	case a:
		c++
		log.Info().Msg("no rule")
	}
	use(pair{left: n, right: 7})
	return c
}
`)}
	woven, pkg, err := w.run()
	if err != nil || pkg != "a" {
		t.Fatal(pkg, err)
	}
	var names []string
	for _, m := range w.list {
		names = append(names, strings.TrimPrefix(m.Name(), "a.go f: "))
	}
	for _, want := range []string{
		"a && !b || n > 2: never", "a && !b || n > 2: always", "a: left out", "!b: left out", "n > 2: left out",
		"c = max(n, 3): left out", "max(n, 3): first", "max(n, 3): last", "a: never", "a: always", "c++: left out", "left: n: left out",
		"use(pair{left: n, right: 7}): left out",
	} {
		if slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(n, "log.") }) {
			t.Errorf("a line of the log is a mutant: %q", names)
		}
		if !slices.Contains(names, want) {
			t.Errorf("there is no mutant %q among %q in\n%s", want, names, woven)
		}
	}
}
