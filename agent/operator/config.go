package operator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/aymanbagabas/go-udiff"
	"github.com/google/shlex"
	"go.yaml.in/yaml/v3"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/consul"
	"github.com/lictor-ha/lictor/agent/printable"
)

// ShowConfig shows the dynamic configuration as YAML, or as JSON.
func ShowConfig(ctx context.Context, c *Console, s *Shard) error {
	snapshot, err := s.Read(ctx)
	if err != nil {
		return err
	}
	config, err := parseStored(snapshot.Config.Value)
	if err != nil {
		return fmt.Errorf("the key %s: %w", s.Keys.Config(), err)
	}
	out, err := configText(config)
	if c.Format == JSON {
		out, err = cluster.CanonicalJSON(config)
		out = append(out, '\n')
	}
	if err != nil {
		return err
	}
	_, err = c.Out.Write(out)
	return err
}

// EditOptions say how edit-config changes the dynamic configuration: by what Set
// and Pg say, by a file, or by hand.
type EditOptions struct {
	Set []string // path=value; the value is YAML, null removes the key
	Pg  []string // the same, below postgresql.parameters
	// Apply merges a YAML file, Replace takes its content for all; "-" is the
	// standard input.
	Apply, Replace string
	// Editor is the command to edit with.
	Editor string
	// Unknown takes settings that are not known, too.
	Unknown bool
	Quiet   bool // show no diff
	Force   bool // do not ask
}

func (o EditOptions) byHand() bool {
	return len(o.Set) == 0 && len(o.Pg) == 0 && o.Apply == "" && o.Replace == ""
}

// EditConfig changes the dynamic configuration: it shows what will change, refuses
// what the agents would not take, asks, and writes it if nobody else has changed
// it meanwhile.
func EditConfig(ctx context.Context, c *Console, s *Shard, o EditOptions) error {
	snapshot, err := s.Read(ctx)
	if err != nil {
		return err
	}
	if !snapshot.Config.Exists() {
		return refusedf("shard %s has no dynamic configuration yet: its first leader writes it", s.Scope)
	}
	before, err := parseStored(snapshot.Config.Value)
	if err != nil && o.Replace == "" {
		return fmt.Errorf("the key %s: %w; put it right with edit-config --replace", s.Keys.Config(), err)
	}
	after, err := o.change(ctx, c, before)
	if err != nil {
		return err
	}
	rules := s.site.rules()
	if snapshot.Status.Exists() && snapshot.Status.Value.Lictor == nil {
		rules = taken() // Patroni lowers it itself
	}
	next, warnings, err := rules.Parse(after)
	if err == nil { // where no member can be asked, who knows it by other names, too
		old, _, _ := rules.Parse(before) // what is wrong with it keeps nobody from changing the rest
		err = errors.Join(ownSites(snapshot, old, next), snapshot.CheckTakeover(old, next))
	}
	if err == nil && !o.Unknown && !o.byHand() { // who edits by hand is shown them, and asked
		err = unknownSettings(rules, before, warnings)
	}
	if err != nil {
		return refusedf("the new configuration is not valid, nothing has changed:\n%w", err)
	}
	diff, err := configDiff(before, after)
	if err != nil {
		return err
	}
	if diff == "" || before != nil && len(cluster.PatchBetween(before, after)) == 0 {
		c.Say("Not changed")
		return nil
	}
	if !o.Quiet {
		fmt.Fprint(c.Out, colourDiff(diff, c.Colour))
	}
	for _, w := range warnings {
		c.Warn("warning: %s", w)
	}
	if !o.Force {
		question := "Apply these changes to all members of " + s.Scope + "?"
		if snapshot.LeaderName() == "" {
			question = "Nobody leads " + s.Scope + " now. " + question
		}
		if err := c.Confirm(question); err != nil {
			return err
		}
	}
	if err := s.writeConfig(ctx, c, snapshot, before, after); err != nil {
		return err
	}
	c.Say("Configuration changed")
	return nil
}

// unknownSettings returns an error if a change sets what is no setting, most likely a mistyped one.
func unknownSettings(rules cluster.Rules, before map[string]any, warnings []cluster.Warning) error {
	_, known, _ := rules.Parse(before) // what was there stays
	var errs []error
	for _, w := range warnings {
		if w.Unknown && !slices.Contains(known, w) {
			errs = append(errs, fmt.Errorf("%s (--unknown sets it all the same)", w))
		}
	}
	return errors.Join(errs...)
}

// ownSites returns an error if a shard is to follow one of its own members, or to take one for the other site.
func ownSites(snapshot cluster.Snapshot, old, next cluster.Dynamic) error {
	standby, site := next.StandbyCluster, next.OtherSite
	if err := snapshot.CheckSite(standby.Host, standby.Port); err != nil && standby.Upstream() != old.StandbyCluster.Upstream() {
		return fmt.Errorf("standby_cluster: a shard does not follow itself: %w", err)
	}
	if err := snapshot.CheckSite(site.Host, site.Port); err != nil && site.Known() && site != old.OtherSite {
		return fmt.Errorf("other_site: a shard is not its own other site: %w", err)
	}
	return nil
}

// taken are the rules for reading what agents have taken.
func taken() cluster.Rules { return cluster.Rules{LowerTiming: true} }

// rules are those of the agents, as far as this file says it.
func (s *Site) rules() cluster.Rules { return cluster.Rules{LowerTiming: s.Lictor.Compat != ""} }

// writeConfig writes a new configuration unless somebody else has changed it since
// it was read. It goes by way of a member, whose PostgreSQL says whether it takes the
// values of parameters: one that it does not take would keep all members from starting
// again. Patroni's members, and those that cannot be reached, are not asked, nor is
// anybody where the present configuration, which before is nil for, makes no sense.
func (s *Shard) writeConfig(ctx context.Context, c *Console, snapshot cluster.Snapshot, before, after map[string]any) error {
	conflict := refusedf("somebody else has changed the configuration meanwhile; nothing was written, try again")
	if snapshot.Status.Value.Lictor != nil && before != nil {
		now, err := s.Read(ctx)
		if err != nil {
			return err
		}
		if now.Config.ModifyIndex != snapshot.Config.ModifyIndex {
			return conflict
		}
		answer, err := s.anyMember(ctx, now, http.MethodPatch, "/config", cluster.PatchBetween(before, after))
		switch {
		case err != nil && !neverSent(err):
			return err
		case err != nil:
			c.Warn("warning: no member can be reached, so PostgreSQL has not checked the values: %v", err)
		case answer.OK():
			return nil
		case answer.Status == http.StatusConflict:
			return conflict
		case answer.Status == http.StatusBadRequest:
			return refusedf("the new configuration is not valid, nothing has changed:\n%s", s.words(answer))
		case answer.Status == http.StatusUnauthorized, answer.Status == http.StatusForbidden:
			return fmt.Errorf("nothing has changed: %s (status %d)", s.words(answer), answer.Status)
		default:
			return fmt.Errorf("the member's log says why the configuration was not changed: %s (status %d)", s.words(answer), answer.Status)
		}
	}
	value, err := cluster.CanonicalJSON(after)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, readLimit)
	defer cancel()
	err = s.store.Write(ctx, s.Keys.Config(), snapshot.Config.ModifyIndex, value)
	switch {
	case errors.Is(err, consul.ErrConflict):
		return conflict
	case errors.Is(err, consul.ErrUncertain):
		return unknownf("writing the configuration: %w; see lictor show-config", err)
	}
	return err
}

// change makes the new configuration from the present one.
func (o EditOptions) change(ctx context.Context, c *Console, before map[string]any) (map[string]any, error) {
	if o.byHand() {
		return editByHand(ctx, c, o.Editor, before)
	}
	if o.Apply == "-" && o.Replace == "-" {
		return nil, usagef("--apply and --replace both read the standard input: name a file for one of them")
	}
	after := cluster.MergePatch(before, nil)
	if o.Replace != "" {
		whole, err := readConfig(c, "--replace", o.Replace)
		if err != nil {
			return nil, err
		}
		after = whole
	}
	if o.Apply != "" {
		patch, err := readConfig(c, "--apply", o.Apply)
		if err != nil {
			return nil, err
		}
		after = cluster.MergePatch(after, patch)
	}
	for _, group := range []struct {
		flag   string
		prefix []string
		list   []string
	}{{"--set", nil, o.Set}, {"--pg", []string{"postgresql", "parameters"}, o.Pg}} {
		for _, assignment := range group.list {
			patch, err := parseAssignment(assignment, group.prefix)
			if err != nil {
				return nil, usagef("%s %s: %w", group.flag, assignment, err)
			}
			after = cluster.MergePatch(after, patch)
		}
	}
	return after, nil
}

// parseAssignment turns path=value into a patch. Dots part the path below prefix;
// a parameter's own dot, as in pg_stat_statements.max, stays: there is nothing
// below a parameter.
func parseAssignment(assignment string, prefix []string) (map[string]any, error) {
	path, written, found := strings.Cut(assignment, "=")
	if path = strings.TrimSpace(path); !found || path == "" {
		return nil, errors.New("must be name=value")
	}
	var value any
	if err := yaml.Unmarshal([]byte(written), &value); err != nil {
		return nil, fmt.Errorf("the value is not YAML: %w", err)
	}
	var steps []string
	parameter, isParameter := strings.CutPrefix(path, "postgresql.parameters.")
	switch {
	case len(prefix) > 0:
		steps = append(append(steps, prefix...), path)
	case isParameter:
		steps = []string{"postgresql", "parameters", parameter}
	default:
		steps = strings.Split(path, ".")
	}
	for i := len(steps) - 1; i >= 0; i-- {
		if steps[i] == "" {
			return nil, errors.New("a part of the name is empty")
		}
		value = map[string]any{steps[i]: value}
	}
	return value.(map[string]any), nil //nolint:forcetypeassert // there is at least one step
}

// errEmpty is of a text without a value, of which it is not believed that somebody wants to
// remove all settings: it is what a pipe leaves whose first program has failed.
var errEmpty = errors.New("is empty; write {} to have no settings")

// readConfig reads a configuration from the file that a flag names.
func readConfig(c *Console, flag, name string) (map[string]any, error) {
	content, err := readInput(c, name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	config, err := parseConfig(content)
	if err != nil {
		return nil, usagef("%s %s: %w", flag, name, err)
	}
	return config, nil
}

// parseStored reads the configuration in Consul; an empty key has no settings.
func parseStored(content []byte) (map[string]any, error) {
	config, err := parseConfig(content)
	if errors.Is(err, errEmpty) {
		return map[string]any{}, nil
	}
	return config, err
}

// parseConfig reads a configuration in YAML, of which JSON is a part. Without any value it is errEmpty.
func parseConfig(content []byte) (map[string]any, error) {
	var value any
	if err := yaml.Unmarshal(content, &value); err != nil {
		return nil, fmt.Errorf("is not YAML: %w", err)
	}
	switch config := value.(type) {
	case nil:
		return nil, errEmpty
	case map[string]any:
		return config, nil
	}
	return nil, errors.New("must be a map of settings")
}

func configText(config map[string]any) ([]byte, error) {
	if len(config) == 0 {
		return nil, nil
	}
	return yamlText(config)
}

// configDiff is empty when two configurations say the same.
func configDiff(before, after map[string]any) (string, error) {
	a, err := configText(before)
	if err != nil {
		return "", err
	}
	b, err := configText(after)
	if err != nil {
		return "", err
	}
	return udiff.Unified("now", "new", string(a), string(b)), nil
}

func colourDiff(diff string, colour bool) string {
	lines := strings.SplitAfter(printable.Lines(diff), "\n")
	for i, line := range lines {
		content, end := strings.TrimSuffix(line, "\n"), line[len(strings.TrimSuffix(line, "\n")):]
		style := Plain
		switch {
		case strings.HasPrefix(line, "+++"), strings.HasPrefix(line, "---"):
			style = Strong
		case strings.HasPrefix(line, "@@"):
			style = Faint
		case strings.HasPrefix(line, "+"):
			style = Good
		case strings.HasPrefix(line, "-"):
			style = Bad
		}
		lines[i] = paint(content, style, colour) + end
	}
	return strings.Join(lines, "")
}

func readInput(c *Console, name string) ([]byte, error) {
	if name == "-" {
		content, err := io.ReadAll(c.In)
		if err != nil {
			return nil, fmt.Errorf("reading the standard input: %w", err)
		}
		return content, nil
	}
	content, err := os.ReadFile(name)
	if err != nil {
		return nil, Usage(err)
	}
	return content, nil
}

// editByHand lets a person edit the configuration, again while it is not valid.
func editByHand(ctx context.Context, c *Console, editor string, before map[string]any) (map[string]any, error) {
	if !c.Interactive {
		return nil, usagef("nobody can edit here (standard input is no terminal): use --set, --pg, --apply or --replace")
	}
	command, err := shlex.Split(editor)
	if err != nil || len(command) == 0 {
		return nil, usagef("EDITOR=%q is no command", editor)
	}
	dir, err := os.MkdirTemp("", "lictor-edit-")
	if err != nil {
		return nil, fmt.Errorf("edit-config: %w", err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "config.yml")
	content, err := configText(before)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		return nil, fmt.Errorf("edit-config: %w", err)
	}
	for {
		run := exec.CommandContext(ctx, command[0], append(command[1:], path)...)
		run.Stdin, run.Stdout, run.Stderr = c.In, c.Out, c.Err
		if err := run.Run(); err != nil {
			return nil, fmt.Errorf("the editor %s: %w", command[0], err)
		}
		edited, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("edit-config: %w", err)
		}
		after, err := parseConfig(edited)
		if errors.Is(err, errEmpty) && len(before) == 0 {
			after, err = map[string]any{}, nil
		}
		if err == nil {
			_, _, err = taken().Parse(after)
		}
		if err == nil {
			return after, nil
		}
		c.Warn("This is not valid:\n%v", err)
		if err := c.Confirm("Edit it again?"); err != nil {
			return nil, err
		}
	}
}

// Editor is the command that people want to edit with.
func Editor(get func(string) string) string {
	for _, variable := range []string{"VISUAL", "EDITOR"} {
		if command := get(variable); command != "" {
			return command
		}
	}
	return "vi"
}
