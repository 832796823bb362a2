package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/e2e/cli"
	"github.com/lictor-ha/lictor/e2e/lab"
)

const (
	commandSystem = "lictor, commands"
	fleetShards   = 300
	fleetRuns     = 10
)

// commands measures the commands that people wait for, from start to exit, against
// three Consul servers with 300 shards in them. All leaders answer when they are
// asked what is left of their leases.
func (b *bench) commands(ctx context.Context) error {
	l, err := unstarted(ctx, lab.Options{Bouncers: -1})
	if err != nil {
		return err
	}
	defer closeLab(l)
	if err := l.StartConsul(ctx); err != nil {
		return err
	}
	members := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{ // a client that has left needs no answer
			"state": "running", "role": "primary", "lictor": map[string]any{"lease_left_ms": 6900, "guard": map[string]any{"running": true}},
		})
	}))
	defer members.Close()
	err = l.Consul(ctx, func(ctx context.Context, c *api.Client) error {
		return cli.SeedFleet(ctx, c, fleetShards, members.URL+"/patroni")
	})
	if err != nil {
		return err
	}
	for _, m := range []struct {
		scenario string
		target   float64 // ms
		args     []string
	}{
		{"lictor list, one shard of 300", 100, []string{"list", "s150"}},
		{fmt.Sprintf("lictor fleet, %d shards", fleetShards), 500, []string{"fleet"}},
	} {
		f := figure{System: commandSystem, Scenario: m.scenario, Unit: "ms", Target: m.target}
		for range fleetRuns {
			cmd := exec.CommandContext(ctx, os.Getenv("LICTOR_BIN"), append(m.args, "--consul", l.ConsulHosts()[0])...)
			began := time.Now()
			out, err := cmd.CombinedOutput()
			if err != nil {
				return fmt.Errorf("lictor %v: %w: %s", m.args, err, out)
			}
			f.Values = append(f.Values, float64(time.Since(began).Microseconds())/1000)
		}
		progress("   %s: %.0f ms", m.scenario, f.median())
		b.figures = append(b.figures, f)
	}
	return nil
}
