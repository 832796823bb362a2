// Command grafana reads dashboards as strictly as Grafana's own schema has them (its foundation
// SDK, which is made of that schema): a field that Grafana does not know, or one of another type, is an error.
package main

import (
	"fmt"
	"os"

	"github.com/grafana/grafana-foundation-sdk/go/cog/plugins"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

func main() {
	plugins.RegisterDefaultPlugins()
	failed := false
	for _, path := range os.Args[1:] {
		if err := check(path); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", path, err)
			failed = true
		}
	}
	if failed {
		os.Exit(1)
	}
}

func check(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var d dashboard.Dashboard
	for _, err := range []error{d.UnmarshalJSONStrict(text), d.Validate()} {
		if err != nil && err.Error() != "" { // a list of no errors is what the SDK has of a part that is right
			return err
		}
	}
	return nil
}
