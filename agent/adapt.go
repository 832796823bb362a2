package agent

import (
	"net"
	"net/url"
	"strconv"
	"strings"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/member"
	"github.com/lictor-ha/lictor/agent/postgres"
)

// This file turns one package's words into another's.

func postgresSettings(cfg config.Config, log zerolog.Logger, launcher postgres.Launcher) postgres.Settings {
	return postgres.Settings{
		Scope: cfg.Scope, Name: cfg.Name, Postgres: cfg.Postgres, OSUser: cfg.Lictor.OSUser,
		StateDir: cfg.Lictor.StateDir, PassEnvironment: cfg.Lictor.PassEnvironment, Launcher: launcher, Log: log, UpgradeBinDir: cfg.Lictor.UpgradeBinDir,
	}
}

// dataOf is what a look at the data directory has found.
func dataOf(d postgres.DataDir, err error) member.Data {
	if err != nil {
		return member.Data{State: ha.DataForeign, Problem: err.Error()}
	}
	return member.Data{
		State: ha.DataState(d.State), Problem: d.Problem, SystemIdentifier: d.Control.SystemIdentifier,
		Timeline: d.Control.Timeline, CheckpointLSN: d.Control.CheckpointLSN, ShutDown: d.Control.IsShutDown(),
		Clone:      d.Clone,
		WasPrimary: (d.State == postgres.Valid || d.State == postgres.Bootstrapped || d.State == postgres.Upgrading) && !d.Standby,
	}
}

// restoresOf is what the history of the data directory's timeline tells of restores. One that cannot
// be read tells nothing; a leader says so.
func restoresOf(p *postgres.Instance, d postgres.DataDir) member.Restores {
	if d.State != postgres.Valid {
		return member.Restores{}
	}
	lines, err := p.TimelineHistory(d.Control.Timeline)
	if err != nil {
		return member.Restores{}
	}
	return member.RestoresIn(lines, d.Control.Timeline)
}

// restoreOf is the note of a restore that has not ended. One that cannot be read makes the
// data directory one that is refused.
func restoreOf(p *postgres.Instance) *ha.Discard {
	note, err := p.RestoreNote()
	if err != nil || note == nil {
		return nil
	}
	return &ha.Discard{Timeline: note.Discarded, Before: note.Before}
}

// upgradeOf is the note of a major upgrade that has not ended. One that cannot be read makes the data directory one
// that is refused.
func upgradeOf(p *postgres.Instance) *ha.Upgrade {
	note, err := p.UpgradeNote()
	if err != nil || note == nil {
		return nil
	}
	return &ha.Upgrade{From: note.SystemIdentifier, To: note.Upgraded, Index: note.Index, Fits: p.Major() == note.To}
}

// peerOf is another member's answer as the decision core takes it.
func peerOf(name string, s api.PeerStatus) ha.Peer {
	return ha.Peer{
		Name: name, Answered: true, State: s.State, Primary: s.Primary,
		Timeline: s.Timeline, LSN: s.LSN, Tags: s.Tags, SystemIdentifier: s.SystemIdentifier,
		// A member of Patroni's does not say: its word has to do.
		Replaying: s.Lictor != nil && s.Lictor.Replaying,
		Restoring: s.Lictor != nil && s.Lictor.Restoring,
	}
}

// publicVersion is X.Y.Z: patronictl refuses what stands after it.
func publicVersion(version string) string {
	v, _, _ := strings.Cut(strings.TrimPrefix(version, "v"), "+")
	v, _, _ = strings.Cut(v, "-")
	if strings.Count(v, ".") != 2 {
		return "0.0.0"
	}
	return v
}

func splitAddress(address string) (host string, port int) {
	host, p, err := net.SplitHostPort(address)
	if err != nil {
		return address, 5432
	}
	port, err = strconv.Atoi(p)
	if err != nil {
		return host, 0
	}
	return host, port
}

// connURL is how PostgreSQL at an address is named under the member key. Patroni's members
// connect to the database that it names.
func connURL(cfg config.Config, address string) string {
	if address == "" {
		return ""
	}
	return "postgres://" + address + "/" + url.PathEscape(cfg.Postgres.Database)
}

// apiURL is where this agent's REST API is.
func apiURL(cfg config.Config) string {
	scheme := "http"
	if cfg.RestAPI.CertFile != "" {
		scheme = "https"
	}
	return scheme + "://" + cfg.RestAPI.ConnectAddress + "/patroni"
}

// primaryWord is a primary's role in the words of the Patroni that is spoken.
func primaryWord(cfg config.Config) string {
	if cfg.Lictor.Speaks() == "patroni-3" {
		return cluster.RoleMaster
	}
	return cluster.RolePrimary
}
