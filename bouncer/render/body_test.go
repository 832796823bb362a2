package render

import (
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
	"github.com/lictor-ha/lictor/templates"
)

// Whatever a template says, its text is the same whether that of the shards is kept or not.
func TestKeptText(t *testing.T) {
	t.Parallel()
	c := testConfig(t)
	shipped, err := templates.Read(templates.PgBouncer)
	if err != nil {
		t.Fatal(err)
	}
	const all = `{{range shards}}[{{.Label}} {{.Timeline}}{{range .Databases}} {{.Name}}{{end}}]{{end}}`
	for _, test := range []struct {
		name, template string
		kept           int
	}{
		{"the shipped one", string(shipped), 1},
		{"none", "text", 0},
		{"a dot", all, 1},
		{"twice", all + "\n" + all, 2},
		{"a variable", `{{range $s := shards}}{{(primary $s).Host}} {{$n := $s.Scope}}{{$n}}{{with readers $s}}{{.Host}}{{end}}{{end}}`, 1},
		{"what is trimmed", "a {\n{{- range shards -}}\n x {{- .Scope -}} \n{{- end -}}\n}", 1},
		{"a brace before", "{ {{- range shards}}}{{.Scope}}{{end}}}", 1},
		{"a brace within", "{{range shards}}}{{.Scope}}{ {{- end}}}", 0},
		{"an index", `{{range $i, $s := shards}}{{$i}}{{$s.Scope}}{{end}}`, 0},
		{"an else", `{{range shards}}{{.Scope}}{{else}}none{{end}}`, 0},
		{"something of outside", `{{$v := "x"}}{{range shards}}{{$v}}{{.Scope}}{{end}}`, 0},
		{"something of outside that changes", `{{$v := ""}}{{range shards}}{{$v}}{{$v = .Scope}}{{end}}`, 0},
		{"the root", `{{range shards}}{{$}}{{.Scope}}{{end}}`, 0},
		{"another's name", `{{range shards}}{{(primary "users").Host}}{{end}}`, 1},
		{"what is not the shard's", `{{range shards}}{{range settings}}{{.Name}}{{end}}{{end}}`, 0},
		{"all shards in a shard", `{{range shards}}{{range shards}}{{.Scope}}{{end}}{{end}}`, 0},
		{"a break", `{{range shards}}{{.Scope}}{{break}}{{end}}`, 0},
		{"a function of consul-template", `{{range shards}}{{.Scope | toUpper}}{{end}}`, 0},
		{"the environment", `{{range shards}}{{env "HOME"}}{{end}}`, 0},
		{"a template", `{{define "x"}}{{.Scope}}{{end}}{{range shards}}{{template "x" .}}{{end}}`, 0},
		{"within a condition", `{{if true}}` + all + `{{end}}`, 0},
		{"printf", `{{range shards}}{{if eq .Scope "users"}}{{printf "%-9s|" .Scope}}{{else}}{{len .Databases}}{{end}}{{end}}`, 1},
		{"an error", "\n\n{{range shards}}{{options . \"nobody\"}}{{end}}", 1},
		{"no field", `{{range shards}}{{.Nothing}}{{end}}`, 1},
		{"no template", `{{range shards}}`, 0},
		{"no function", `{{range shards}}{{nothing .}}{{end}}`, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			views, version := goldenViews(c), pgbouncer.Version{1, 24}
			whole, keeping := NewRenderer(c, nil, ""), NewRenderer(c, nil, "")
			defer whole.Close()
			defer keeping.Close()
			compare := func() {
				t.Helper()
				want, wantErr := whole.execute(test.template, views, version)
				got, err := keeping.Render([]byte(test.template), views, version)
				if string(got) != string(want) || (err == nil) != (wantErr == nil) || err != nil && err.Error() != wantErr.Error() {
					t.Errorf("%q %v, want %q %v", got, err, want, wantErr)
				}
				if n := len(keeping.bodies.list); n != test.kept {
					t.Errorf("%d loops are kept", n)
				}
			}
			compare()
			compare()
			views[0] = goldenViews(c)[0]
			views[0].Route.Leader.Host, views[0].template.Timeline = "10.9.9.9", 77
			compare()
			views = views[:1]
			compare()
			views = goldenViews(c)
			compare()
			version = pgbouncer.Version{1, 18}
			compare()
		})
	}
}

// What stands around the loops is kept as well, and follows the primary of pgbouncer.fallback.
func TestFrameFollowsFallback(t *testing.T) {
	t.Parallel()
	c := testConfig(t)
	c.PgBouncer.Fallback = map[string]any{"shard": "service/orders", "pool_size": 5}
	whole, keeping := NewRenderer(c, nil, ""), NewRenderer(c, nil, "")
	defer whole.Close()
	defer keeping.Close()
	shipped, err := templates.Read(templates.PgBouncer)
	if err != nil {
		t.Fatal(err)
	}
	version, hosts := pgbouncer.Version{1, 24}, map[string]bool{}
	for _, host := range []string{"10.7.0.1", "10.7.0.2", "10.7.0.1"} {
		views := goldenViews(c)
		for _, v := range views {
			if v.Fallback = v.ID == "service/orders"; v.Fallback {
				v.Route.Leader.Host = host
			}
		}
		want, err := whole.execute(string(shipped), views, version)
		if err != nil {
			t.Fatal(err)
		}
		got, err := keeping.Render(shipped, views, version)
		if err != nil || string(got) != string(want) {
			t.Errorf("%v: %s, want %s", err, got, want)
		}
		if cap(got) != len(got) {
			t.Errorf("%d bytes take %d", len(got), cap(got))
		}
		hosts[host] = strings.Contains(string(got), "\n* = host="+host+" ")
	}
	if !hosts["10.7.0.1"] || !hosts["10.7.0.2"] || keeping.bodies.frame == nil {
		t.Errorf("the database * follows %v", hosts)
	}
}

// Only what depends on nothing else is kept around the loops.
func TestFrames(t *testing.T) {
	t.Parallel()
	const loop = `{{range shards}}{{.Scope}}{{end}}`
	for text, framed := range map[string]bool{
		loop: true,
		"x {{range settings}}{{.Name}} = {{.Value}}{{end}}" + loop + "{{with peers}}{{range .}}{{.ID}}{{end}}{{end}}": true,
		loop + `{{ key "x" }}`:     false,
		loop + `{{ env "HOME" }}`:  false,
		loop + `{{ timestamp }}`:   false,
		loop + `{{ len shards }}`:  false,
		loop + `{{ primary "s" }}`: false,
	} {
		if got := findBodies(text, pgbouncer.Version{1, 18}); got.framed != framed || got.rest == "" {
			t.Errorf("%s: %v", text, got.framed)
		}
	}
}

// The text of a shard that has not changed is not made again.
func TestTextIsKept(t *testing.T) {
	t.Parallel()
	c := testConfig(t)
	r := NewRenderer(c, nil, "")
	defer r.Close()
	source, views := []byte(`{{range shards}}{{.Scope}} {{(primary .).Host}}`+"\n"+`{{end}}`), goldenViews(c)
	render := func() string {
		t.Helper()
		text, err := r.Render(source, views, pgbouncer.Version{1, 24})
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	before := render()
	for _, v := range views { // no change, by its address
		v.Route.Leader.Host = "elsewhere"
	}
	if after := render(); after != before || strings.Contains(after, "elsewhere") {
		t.Errorf("%q, before %q", after, before)
	}
	views = goldenViews(c)[1:]
	render()
	if kept := r.bodies.list[0].made; len(kept) != 1 {
		t.Errorf("%d are kept of 1", len(kept))
	}
}
