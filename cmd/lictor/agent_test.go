package main

import (
	"strings"
	"testing"
)

func TestSetOfOneSettingTwice(t *testing.T) {
	if _, err := configSource(nil, []string{"log.level=info", "name=a", "log.level=debug"}); err == nil || !strings.Contains(err.Error(), "--set log.level: is given twice") {
		t.Error(err)
	}
	source, err := configSource([]string{"f"}, []string{"name=a=b"})
	if err != nil || source.Flags["name"] != "a=b" || source.Path != "f" {
		t.Error(source, err)
	}
}
