package member

import (
	"testing"
)

func TestNosyncTag(t *testing.T) {
	given := map[string]any{"zone": "a", "sync_priority": 3}
	got := withNosync(given)
	if got["zone"] != "a" || got["nosync"] != true || got["sync_priority"] != 0 {
		t.Errorf("tags %v", got)
	}
	if given["sync_priority"] != 3 || len(given) != 2 {
		t.Errorf("the tags given have changed: %v", given)
	}
	if got := withNosync(nil); got["nosync"] != true || len(got) != 1 {
		t.Errorf("of no tags: %v", got)
	}
}
