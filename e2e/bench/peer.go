package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/lictor-ha/lictor/e2e/lab"
)

// consulTemplate keeps PgBouncer's routes as Patroni's users do today:
// consul-template renders pgbouncer.ini from keys in Consul and reloads PgBouncer.
// PgBouncer has the settings that Lictor's template gives it.
type consulTemplate struct {
	program string
	// databases is the template of the section [databases].
	databases func(*lab.Lab) string
}

// tuned are Lictor's settings of PgBouncer (design 7.4), besides
// those that the lab gives every PgBouncer.
const tuned = `pidfile = %s
tcp_keepalive = 1
tcp_keepidle = 1
tcp_keepintvl = 1
tcp_keepcnt = 30
tcp_user_timeout = 0
query_wait_timeout = 60
dns_max_ttl = 1
server_check_delay = 1
ignore_startup_parameters = extra_float_digits
`

const patroniRoute = `{{ with $leader := keyOrDefault "service/%[1]s/leader" "" }}{{ with keyOrDefault (printf "service/%[1]s/members/%%s" $leader) "" }}` +
	`{{ $u := (. | parseJSON).conn_url | split "/" }}{{ $a := index $u 2 | split ":" }}%[1]s = host={{ index $a 0 }} port={{ index $a 1 }}{{ end }}{{ end }}`

// patroniRoutes leads to the primaries by Patroni's keys.
func patroniRoutes(l *lab.Lab) string {
	var routes []string
	for _, s := range l.Shards() {
		routes = append(routes, fmt.Sprintf(patroniRoute, s.Name))
	}
	return strings.Join(routes, "\n")
}

const everyRouteTemplate = `{{ range tree "lictor/routes/service" }}{{ $r := .Value | parseJSON }}` +
	`{{ .Key }} = host={{ $r.leader.host }} port={{ $r.leader.port }} dbname={{ .Key }}
{{ .Key }}_ro = host={{ range $i, $m := $r.replicas }}{{ if $i }},{{ end }}{{ $m.host }}{{ end }} port={{ $r.leader.port }} dbname={{ .Key }}
{{ end }}`

// lictorRoutes leads to the same databases as Lictor's bouncer, by the same keys.
func lictorRoutes(*lab.Lab) string { return everyRouteTemplate }

func (c consulTemplate) Install(l *lab.Lab, b *lab.Bouncer) ([]lab.Spec, error) {
	spec, err := b.PgBouncerSpec()
	if err != nil {
		return nil, err
	}
	content, err := os.ReadFile(b.ConfigPath)
	if err != nil {
		return nil, err
	}
	pid := filepath.Join(b.Dir, "pgbouncer.pid")
	settings := fmt.Sprintf(tuned, pid)
	if err := os.WriteFile(b.ConfigPath, append(content, settings...), 0o644); err != nil {
		return nil, err
	}
	template := strings.Replace(string(content), "[databases]\n", "[databases]\n"+c.databases(l)+"\n", 1) + settings
	source := filepath.Join(b.Dir, "pgbouncer.ini.ctmpl")
	if err := os.WriteFile(source, []byte(template), 0o644); err != nil {
		return nil, err
	}
	return []lab.Spec{spec, {
		Name: "consul-template", Path: c.program, Args: []string{
			"-consul-addr", l.ConsulHosts()[0], "-template", source + ":" + b.ConfigPath + ":kill -HUP $(cat " + pid + ") || true",
		},
	}}, nil
}

// Health is empty: the balancer tries PgBouncer itself.
func (consulTemplate) Health(*lab.Bouncer) string { return "" }
