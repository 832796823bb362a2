package render

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/consul-template/template"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/consul"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
	"github.com/lictor-ha/lictor/templates"
)

// ErrWaiting says that a template needs data (a key, a secret) that has not
// come yet.
var ErrWaiting = errors.New("waiting for data")

// Renderer makes the text of pgbouncer.ini. It runs consul-template's template
// engine itself, because what is rendered must be checked before it is
// written; the data that a template asks for is templateData's.
type Renderer struct {
	config config.Config
	data   *templateData
	// label names the template in messages; empty: that of pgbouncer.ini.
	label string
	// bodies are those of the template that was rendered last.
	bodies *bodies
	// marking: the loops that are kept are marked, and not run.
	marking bool
	// left are the values that the last rendering left out.
	left []string
}

// NewRenderer makes a renderer for the template of pgbouncer.ini or, with a label, for
// another one that has this name in messages. Without a pool its functions that ask for
// data must not be used.
func NewRenderer(c config.Config, pool *consul.Pool, label string) *Renderer {
	var clients *templateClients
	if pool != nil {
		clients = newTemplateClients(c, pool)
	}
	return &Renderer{config: c, data: newTemplateData(clients), label: label}
}

// Close ends the queries for the template's data.
func (r *Renderer) Close() { r.data.close() }

// News has an element when some of the template's data has changed, arrived counts the
// changes.
func (r *Renderer) News() <-chan struct{} { return r.data.news }
func (r *Renderer) Arrived() uint64       { return r.data.arrived.Load() }

// LeftOut are the values that the last rendering left out.
func (r *Renderer) LeftOut() []string { return r.left }

// Render executes the text of a template over views. ErrWaiting: try again when the data
// says that there is news. version is that of the PgBouncer that runs, zero when
// none is known to. A view that is the same as that of an earlier call, by its address, has
// not changed.
func (r *Renderer) Render(source []byte, views []*Shard, version pgbouncer.Version) ([]byte, error) {
	if r.bodies == nil || r.bodies.source != string(source) || r.bodies.version != version {
		r.bodies = findBodies(string(source), version)
	}
	if r.bodies.rest != "" {
		text, err := r.renderKept(views, version)
		if err == nil || errors.Is(err, ErrWaiting) {
			return text, err
		}
		// As a whole it tells in which line of the file it fails.
	}
	return r.execute(string(source), views, version)
}

// renderKept makes the text with the loops that are kept.
func (r *Renderer) renderKept(views []*Shard, version pgbouncer.Version) ([]byte, error) {
	if !r.bodies.framed || len(views) == 0 {
		return r.execute(r.bodies.rest, views, version)
	}
	// What changes without the template, its data or the version.
	fallback := pgbouncer.FormatOptions(r.fallback(views, version)) + fmt.Sprint(r.config.UsersOfNoPassword(version))
	if f := r.bodies.frame; f == nil || f.fallback != fallback {
		r.marking = true
		text, err := r.execute(r.bodies.rest, views, version)
		r.marking = false
		if err != nil {
			return nil, err
		}
		if r.bodies.frame = newFrame(string(text), fallback); r.bodies.frame == nil {
			r.bodies.framed = false
			return r.execute(r.bodies.rest, views, version)
		}
	}
	return r.bodies.frame.fill(r.bodies.list, templateShards(views))
}

// templateShards are shards as templates see them.
func templateShards(views []*Shard) []*TemplateShard {
	list := make([]*TemplateShard, len(views))
	for i, v := range views {
		list[i] = &v.template
	}
	return list
}

// fallback is the line of the database *.
func (r *Renderer) fallback(views []*Shard, version pgbouncer.Version) []pgbouncer.Option {
	options := r.config.Fallback(version)
	if r.config.FallbackShard() == "" {
		return options
	}
	for _, v := range views {
		if leader := v.Route.Leader; v.Fallback {
			return append([]pgbouncer.Option{{Name: "host", Value: leader.Host}, {Name: "port", Value: strconv.Itoa(leader.Port)}}, options...)
		}
	}
	return nil // until its route is known
}

func (r *Renderer) execute(source string, views []*Shard, version pgbouncer.Version) ([]byte, error) {
	data := newConsulData(r.data.brain)
	functions := r.functions(views, version, data)
	maps.Copy(functions, data.functions())
	maps.Copy(functions, checkFunctions())
	t, err := template.NewTemplate(&template.NewTemplateInput{
		Contents: source, ExtFuncMap: functions, FunctionDenylist: []string{"nomad*"},
	})
	if err != nil {
		return nil, fmt.Errorf("template %s: %w", r.name(), err)
	}
	result, err := t.Execute(&template.ExecuteInput{Brain: r.data.brain, Env: os.Environ()})
	if data.waits != nil {
		return nil, fmt.Errorf("template %s: %w", r.name(), data.waits)
	}
	if err != nil {
		return nil, fmt.Errorf("template %s: %w", r.name(), err)
	}
	r.left = data.left
	if err := r.data.follow(slices.AppendSeq(result.Used.List(), maps.Values(data.used))); err != nil {
		return nil, fmt.Errorf("template %s: %w", r.name(), err)
	}
	if missing := slices.AppendSeq(result.Missing.List(), maps.Values(data.missing)); len(missing) > 0 {
		var names []string
		for _, d := range missing {
			names = append(names, d.String())
		}
		return nil, fmt.Errorf("template %s: %w: %s%s", r.name(), ErrWaiting, strings.Join(names, ", "), r.data.lastErr())
	}
	return result.Output, nil
}

func (r *Renderer) name() string {
	if r.label != "" {
		return r.label
	}
	if r.config.Template != "" {
		return r.config.Template
	}
	return templates.PgBouncer
}

// Template reads the template, which may be edited at any time.
func (r *Renderer) Template() ([]byte, error) {
	if r.config.Template == "" {
		return templates.Read(templates.PgBouncer)
	}
	text, err := os.ReadFile(r.config.Template)
	if err != nil {
		return nil, fmt.Errorf("template: %w", err)
	}
	if len(text) == 0 {
		return nil, fmt.Errorf("template %s is empty", r.config.Template)
	}
	return text, nil
}

// functions are the bouncer's own; each shipped template lists them.
func (r *Renderer) functions(views []*Shard, version pgbouncer.Version, data *consulData) map[string]any {
	find := func(s any) (*Shard, error) {
		if _, ok := s.(*TemplateShard); ok {
			return onlyShard(s)
		}
		name, ok := s.(string)
		if !ok {
			return nil, fmt.Errorf("%T is neither a shard nor the name of one", s)
		}
		var found []*Shard
		for _, v := range views {
			if v.template.Scope == name || string(v.ID) == name {
				found = append(found, v)
			}
		}
		switch len(found) {
		case 1:
			return found[0], nil
		case 0:
			return nil, fmt.Errorf("no route of shard %q is known", name)
		}
		return nil, fmt.Errorf("shard %q is not unique, write namespace/scope", name)
	}
	shards := func() ([]*TemplateShard, error) {
		if len(views) == 0 && r.label != "" && !r.config.AllowEmpty {
			data.waits = fmt.Errorf("%w: no route is known yet (allow_empty)", ErrWaiting)
			return nil, data.waits
		}
		return templateShards(views), nil
	}
	functions := shardFunctions(find, version)
	maps.Copy(functions, map[string]any{
		"shards": shards,
		keptCall: func(i int) (string, error) {
			list, err := shards()
			if err != nil {
				return "", err
			}
			if r.marking {
				return markOf(i), nil
			}
			texts, err := r.bodies.list[i].texts(list)
			return string(bytes.Join(texts, nil)), err
		},
		"shard": func(name string) (*TemplateShard, error) {
			v, err := find(name)
			if err != nil {
				return nil, err
			}
			return &v.template, nil
		},
		"place": func(s any) (int, error) {
			v, err := find(s)
			if err != nil {
				return 0, err
			}
			return r.place(v, views), nil
		},
		"settings": func() []config.NamedSetting { return r.config.Settings(version) },
		"peers":    func() []config.Peer { return r.config.Peers(version) },
		"api_port": func(s any, m cluster.RouteMember) (int, error) {
			v, err := find(s)
			if err != nil {
				return 0, err
			}
			return data.apiPort(v, m), nil
		},
		"fallback": func() []pgbouncer.Option { return r.fallback(views, version) },
		"haproxy_resolves": func() bool {
			return slices.ContainsFunc(views, func(v *Shard) bool {
				return slices.ContainsFunc(append([]cluster.RouteMember{v.Route.Leader}, v.Route.Replicas...), func(m cluster.RouteMember) bool { return resolvesLate(m.Host) })
			})
		},
		"user_options": func() []config.UserOptions { return r.config.UserOptions(version) },
	})
	return functions
}

// place is the number of a shard, from 0, in order of namespace and scope: among those that
// bouncer.yml lists, whether their routes are known or not, as whoever may delete one shard's
// key must not move others. Where it lists none, among those that are known.
func (r *Renderer) place(v *Shard, views []*Shard) int {
	var all []config.ShardID
	for _, s := range r.config.Shards {
		all = append(all, s.ID())
	}
	for _, s := range r.config.Refused() {
		if strings.Contains(s.Name, "/") { // else not even its name can be read
			all = append(all, config.ShardID(s.Name))
		}
	}
	if len(all) == 0 {
		for _, one := range views {
			all = append(all, one.ID)
		}
	}
	slices.Sort(all)
	return slices.Index(slices.Compact(all), v.ID)
}

// onlyShard finds a shard where it is not asked for by its name.
func onlyShard(s any) (*Shard, error) {
	if v, ok := s.(*TemplateShard); ok {
		return v.of, nil
	}
	return nil, fmt.Errorf("%T is no shard", s)
}

// shardFunctions are those that depend on a shard, or on their arguments, alone.
func shardFunctions(find func(any) (*Shard, error), version pgbouncer.Version) map[string]any {
	functions := textFunctions(version)
	maps.Copy(functions, map[string]any{
		"primary": func(s any) (cluster.RouteMember, error) {
			v, err := find(s)
			if err != nil {
				return cluster.RouteMember{}, err
			}
			return plainMember(v.Route.Leader), nil
		},
		"replicas": func(s any) ([]cluster.RouteMember, error) {
			v, err := find(s)
			if err != nil {
				return nil, err
			}
			return plainMembers(replicas(v.Route)), nil
		},
		"members": func(s any) ([]cluster.RouteMember, error) {
			v, err := find(s)
			if err != nil {
				return nil, err
			}
			return plainMembers(append([]cluster.RouteMember{v.Route.Leader}, v.Route.Replicas...)), nil
		},
		"readers": func(s any) (Readers, error) {
			v, err := find(s)
			if err != nil {
				return Readers{}, err
			}
			return v.readers, nil
		},
		"database_lines": func(s any) ([]string, error) {
			v, err := find(s)
			if err != nil {
				return nil, err
			}
			return v.lines(version)
		},
		"options": func(s any, database string) (string, error) {
			v, err := find(s)
			if err != nil || v.options == nil {
				return "", err
			}
			options, offered := v.options[database]
			if !offered {
				return "", fmt.Errorf("shard %s has no database %q", v.ID, database)
			}
			return pgbouncer.FormatOptions(options), nil
		},
	})
	return functions
}

// textFunctions are those that depend on their arguments alone.
func textFunctions(version pgbouncer.Version) map[string]any {
	return map[string]any{
		"ini_options":     pgbouncer.FormatOptions,
		"haproxy_name":    haproxyName,
		"haproxy_resolve": haproxyResolve,
		"ini_name":        func(name string) (string, error) { return pgbouncer.QuoteName(name, version) },
		"ini_value":       pgbouncer.QuoteValue,
		"userlist_quote":  pgbouncer.QuoteUserlist,
	}
}

// RenderWhenReady renders as soon as all data is there.
func (r *Renderer) RenderWhenReady(ctx context.Context, source []byte, views []*Shard, version pgbouncer.Version) ([]byte, error) {
	for {
		text, err := r.Render(source, views, version)
		if !errors.Is(err, ErrWaiting) {
			return text, err
		}
		select {
		case <-r.data.news:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", err, ctx.Err())
		}
	}
}
