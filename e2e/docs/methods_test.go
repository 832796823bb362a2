package docs

import (
	"maps"
	"os"
	"path/filepath"
	"testing"
)

// No type of the agent does everything.
func TestNoTypeOfTheAgentHasTooManyMethods(t *testing.T) {
	counted, err := methods(root, []string{"agent"})
	if err != nil {
		t.Fatal(err)
	}
	for name, n := range counted {
		if n > mostMethods {
			t.Errorf("%s has %d methods, and may have %d: give a story of its own, with its state, to a type of its own", name, n, mostMethods)
		}
	}
}

func TestMethodsAreCounted(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"a.go":      "package a\ntype A struct{}\nfunc (A) one() {}\nfunc (a *A) two() {}\ntype B[T any] struct{ A }\nfunc (b *B[T]) one() {}\nfunc three() {}\n",
		"more.go":   "package a\nfunc (a *A) three() {}\n",
		"a_test.go": "package a\nfunc (b B[T]) two() {}\nfunc (b B[T]) three() {}\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	counted, err := methods(dir, []string{"."})
	if err != nil || !maps.Equal(counted, map[string]int{". A": 3, ". B": 1}) {
		t.Errorf("%v (%v)", counted, err)
	}
}
