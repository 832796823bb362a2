package docs

import (
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	p := parse("x.md", "# Where `it` stands, now\n\nSee [a](b.md#c) and `lictor list`, not `[x](y)`.\n\n## Again\n## Again\n\n"+
		"```sh run\nlictor fleet\n```\n\n    make demo\n\n1. a list\n")
	if diff := cmp.Diff([]string{"again", "again-1", "where-it-stands-now"}, slices.Sorted(maps.Keys(p.anchors))); diff != "" {
		t.Error(diff)
	}
	if len(p.links) != 1 || p.links[0] != (mark{3, "b.md#c"}) {
		t.Error(p.links)
	}
	var code []string
	p.code(func(_ int, text string) { code = append(code, text) })
	if diff := cmp.Diff([]string{"it", "lictor list", "[x](y)", "make demo", "lictor fleet"}, code); diff != "" {
		t.Error(diff)
	}
	if len(p.fences) != 1 || p.fences[0].info != "sh run" {
		t.Error(p.fences)
	}
}

func TestProblem(t *testing.T) {
	known := commandFlags{"list": {"config": true, "c": true, "watch": true}, "bouncer": {"help": true}, "bouncer drain": {"wait": true}}
	for line, want := range map[string]string{
		"lictor list -c db.yml --watch=2":            "",
		"lictor list -c db.yml   # the --members":    "",
		"lictor list | grep --color x":               "",
		"lictor bouncer drain --wait 5m FILE":        "",
		"lictor bouncer FILE":                        "",
		"lictor lists":                               "there is no command lictor lists",
		"lictor list --wach 2":                       "lictor list has no flag --wach",
		"lictor bouncer drain -x /etc/lictor/x.yml":  "lictor bouncer drain has no flag -x",
		"lictor bouncer --wait 5m":                   "lictor bouncer has no flag --wait",
		"lictor switch-over orders --candidate db2":  "there is no command lictor switch-over",
		"lictor list > /tmp/x --not-looked-at-there": "",
	} {
		if got := known.problem(line); got != want {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
}

func TestMatches(t *testing.T) {
	all := tests{"agent/ha": {"TestLease"}, "agent/ha/deep": {"TestDeep"}}
	for _, tt := range []struct {
		folder, pattern string
		want            bool
	}{
		{"agent/ha", "TestLease", true},
		{"agent/ha", "TestLease/one", true},
		{"agent/ha", "TestDeep", false},
		{"agent/...", "TestDeep", true},
		{"agent/ha", "TestLoose", false},
	} {
		if got, err := all.matches(tt.folder, tt.pattern); err != nil || got != tt.want {
			t.Errorf("%v: %v, %v", tt, got, err)
		}
	}
}

func TestMeaningOf(t *testing.T) {
	for _, tt := range []struct{ comment, meaning, fallback string }{
		{"TTL is how long it takes. Default: ttl/4. It matters.", "How long it takes. It matters.", "ttl/4"},
		{"TTL keeps it. Default: none.", "Keeps it.", "none"},
		{"", "", ""},
	} {
		if meaning, fallback := meaningOf(tt.comment, "TTL"); meaning != tt.meaning || fallback != tt.fallback {
			t.Errorf("%q: %q, %q", tt.comment, meaning, fallback)
		}
	}
	if got := snake("MemberSlotsTTL") + " " + snake("TTL") + " " + snake("PrimaryStartTimeout"); got != "member_slots_ttl ttl primary_start_timeout" {
		t.Error(got)
	}
}

func TestClaims(t *testing.T) {
	got := claims("`TestA`, `FuzzB` in `agent/api`, `TestC/part` in `e2e`; `TestD`")
	want := []claim{{"TestA", "agent/api"}, {"FuzzB", "agent/api"}, {"TestC", "e2e"}, {"TestD", ""}}
	if !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
}
