package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/e2e/lab"
	"github.com/lictor-ha/lictor/e2e/lab/labtest"
)

// Consul is lost while the operator's post_bootstrap runs, and the agent is killed before
// it comes back: what was made (it may have taken hours) is registered then, and neither
// made again nor moved aside.
func TestBootstrapOutlivesConsul(t *testing.T) {
	scripts := t.TempDir()
	letIn(t, scripts)
	must(t, os.Chmod(scripts, 0o777)) //nolint:gosec // another user writes into it
	hook, begun, goOn := filepath.Join(scripts, "hook"), filepath.Join(scripts, "begun"), filepath.Join(scripts, "go")
	must(t, os.WriteFile(hook, []byte(`#!/bin/sh
echo begun >> `+begun+`
until [ -e `+goOn+` ]; do sleep 0.05; done
exec psql -q -c 'CREATE TABLE public.made_by_hand ()' "$1"
`), 0o755)) //nolint:gosec // another user runs it
	l := labtest.New(t, lab.Options{
		Members: 1, Bouncers: -1, ConsulServers: 1,
		Database: lab.Lictor{Edit: func(_ *lab.Member, config map[string]any) {
			config["bootstrap"].(map[string]any)["post_bootstrap"] = hook
		}},
	})
	ctx := within(t)
	s, consul := l.Shard(0), l.ConsulServers()[0]
	m := s.Members()[0]
	must(t, l.StartConsul(ctx))
	must(t, m.Start(ctx))
	await(ctx, t, "post_bootstrap does not run", func() error { _, err := os.Stat(begun); return err })
	must(t, consul.Kill(ctx))
	must(t, os.WriteFile(goOn, nil, 0o600))
	marker := filepath.Join(filepath.Dir(m.DataDir), "."+filepath.Base(m.DataDir)+".lictor-unfinished")
	await(ctx, t, "the bootstrap does not end", func() error {
		content, err := os.ReadFile(marker)
		if err == nil && !strings.Contains(string(content), `"finished":true`) {
			err = errors.New(string(content))
		}
		return err
	})
	must(t, m.Kill(ctx))
	must(t, m.Start(ctx))
	must(t, l.StartConsul(ctx))
	got(s.AwaitHealthy(ctx))(t)
	conn := got(m.Connect(ctx, "postgres"))(t)
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, "TABLE public.made_by_hand"); err != nil {
		t.Error(err)
	}
	if calls := got(os.ReadFile(begun))(t); string(calls) != "begun\n" {
		t.Errorf("post_bootstrap was run again: %s", calls)
	}
	if aside, _ := filepath.Glob(m.DataDir + ".failed.*"); len(aside) > 0 {
		t.Errorf("moved aside: %v", aside)
	}
}
