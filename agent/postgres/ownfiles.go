package postgres

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// This file looks at what the operator's own configuration files say: the
// postgresql.conf that was there before the agent, one that was cloned with the data,
// custom_conf, and all that these include.

// baseConf is the file that postgresql.conf includes first.
func (p *Instance) baseConf() string {
	switch custom := p.local.Load().CustomConf; {
	case custom == "":
		return p.inData("postgresql.base.conf")
	case filepath.IsAbs(custom):
		return custom
	default:
		return p.inData(custom)
	}
}

// checkPlace refuses configuration files that would move PostgreSQL away from the
// data directory, which is where agent and guard look for what they must end
// (docs/design.md, I1). It reads the files as they are.
func (p *Instance) checkPlace() error {
	var errs []error
	for _, file := range []string{p.inData("postgresql.conf"), p.inData("postgresql.auto.conf")} {
		lines, err := readConf(file)
		if err != nil {
			return err
		}
		for _, line := range lines {
			if rule := cluster.PathRefusal(line.Name); rule != "" && !p.isOwnPlace(line) {
				errs = append(errs, fmt.Errorf("%s: %s = %s: %s; remove the line", line.where(), line.Name, quote(line.Value), rule))
			}
		}
	}
	return errors.Join(errs...)
}

// isOwnPlace reports whether a line names the directory or the file that PostgreSQL
// is started with anyway, as Debian's postgresql.conf does.
func (p *Instance) isOwnPlace(line confSetting) bool {
	own := p.dataDir
	if line.Name == "config_file" {
		own = p.inData("postgresql.conf")
	}
	if filepath.Clean(line.Value) == own {
		return true
	}
	named, err := os.Stat(line.Value)
	if err != nil || !filepath.IsAbs(line.Value) {
		return false
	}
	there, err := os.Stat(own)
	return err == nil && os.SameFile(named, there)
}

// tell says once, and again when it is something else, that a setting is not used as
// it is given.
func (p *Instance) tell(setting, why string) {
	if before, told := p.notes.Swap(setting, why); !told || before != why {
		p.log.Warn().Str("setting", setting).Str("reason", why).Msg("setting is not used as given")
	}
}
