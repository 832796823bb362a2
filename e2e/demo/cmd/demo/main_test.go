package main

import (
	"errors"
	"flag"
	"strings"
	"testing"
)

// What makes no sense on the command line is said before anything is begun.
func TestOptions(t *testing.T) {
	for args, want := range map[string]string{
		"--scenario bananas": `--scenario: "bananas": there is none of that name, only host-loss`,
		"--ttl soon":         `invalid value "soon" for flag -ttl`,
		"bananas":            `["bananas"]: takes no arguments`,
	} {
		if _, err := options(strings.Fields(args), t.Output()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", args, err, want)
		}
	}
	o, err := options([]string{"--once", "--report", "r.json", "--ttl", "5"}, t.Output())
	if err != nil || !o.Once || o.Report != "r.json" || o.TTL != 5 {
		t.Errorf("%+v, %v", o, err)
	}
	var help strings.Builder
	if _, err := options([]string{"--help"}, &help); !errors.Is(err, flag.ErrHelp) || !strings.Contains(help.String(), "pooler-loss") || !strings.Contains(help.String(), "-keep") {
		t.Errorf("%v: %s", err, help.String())
	}
}
