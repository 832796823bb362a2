// Package templates holds the templates that Lictor ships. Operators copy and
// edit them; the functions that they may use are those of consul-template
// (https://github.com/hashicorp/consul-template/blob/main/docs/templating-language.md)
// and the bouncer's own, which each template lists at its top.
package templates

import (
	"embed"
	"fmt"
)

//go:embed *.ctmpl
var files embed.FS

// Names of the templates.
const (
	PgBouncer = "pgbouncer.ini.ctmpl"
	Userlist  = "userlist.txt.ctmpl"
	HAProxy   = "haproxy.cfg.ctmpl"
)

// Read returns the text of a template.
func Read(name string) ([]byte, error) {
	text, err := files.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("built-in template: %w", err)
	}
	return text, nil
}

// Names are those of all templates.
func Names() []string { return []string{PgBouncer, Userlist, HAProxy} }
