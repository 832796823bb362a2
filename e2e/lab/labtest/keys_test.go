package labtest

import (
	"os"
	"path/filepath"
	"testing"
)

func TestRepeatedKeys(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "log"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"good.log": "no JSON\n{\"a\":1,\"b\":{\"a\":2}}\n{\"a\n",
		"bad.log":  "{\"a\":1}\n{\"action\":\"start\",\"action\":\"ask\"}\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, "log", name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got := repeatedKeys(dir); len(got) != 1 {
		t.Errorf("%q", got)
	}
}
