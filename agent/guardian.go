package agent

import (
	"context"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/postgres"
)

type guardian struct {
	postgres.DirectLauncher
}

func newGuardian(config.Config, Options) *guardian { return &guardian{} }

func (g *guardian) arm(cluster.Instant)                           {}
func (g *guardian) grant(cluster.Instant)                         {}
func (g *guardian) armNow(context.Context, cluster.Instant) error { return nil }
func (g *guardian) disarm(context.Context) error                  { return nil }
func (g *guardian) shown(cluster.Instant) (bool, time.Duration)   { return false, 0 }
func (a *Agent) watchGuard(context.Context)                       {}
