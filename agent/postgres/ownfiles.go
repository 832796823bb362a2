package postgres

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// This file looks at what the operator's own configuration files say: the
// postgresql.conf that was there before the agent, one that was cloned with the data,
// custom_conf, and all that these include.

// baseConf is the file that postgresql.conf includes first.
func (p *confFiles) baseConf() string {
	switch custom := p.local.Load().CustomConf; {
	case custom == "":
		return p.inConf("postgresql.base.conf")
	case filepath.IsAbs(custom):
		return custom
	default:
		return p.inConf(custom)
	}
}

// checkPlace refuses configuration files that would move PostgreSQL away from the
// data directory, which is where agent and guard look for what they must end
// (design 5.13). It reads the files as they are.
func (p *confFiles) checkPlace() error {
	var errs []error
	for _, file := range p.ownConfs() {
		lines, err := p.readConf(file)
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
func (p *confFiles) isOwnPlace(line confSetting) bool {
	own := p.dataDir
	if line.Name == "config_file" {
		own = p.inConf("postgresql.conf")
	}
	if filepath.Clean(line.Value) == own {
		return true
	}
	named, err := p.disk.Stat(line.Value)
	if err != nil || !filepath.IsAbs(line.Value) {
		return false
	}
	there, err := p.disk.Stat(own)
	return err == nil && os.SameFile(named, there)
}

// tellSettings tells which of the user's settings are not used as they are given, as
// far as only this member knows: of the file, of this version of PostgreSQL, or beside
// other settings. What the settings alone show is told when they are read.
func (p *confFiles) tellSettings() {
	feedbackOn := p.needsFeedback(p.wantedParameters())
	for _, layer := range []map[string]any{
		p.dynamic.Postgres.Parameters, p.local.Load().Parameters, p.dynamic.Postgres.RecoveryConf, p.local.Load().RecoveryConf,
	} {
		for name, value := range layer {
			name = strings.ToLower(name)
			switch {
			case value == nil:
			case isCutOff(name, cluster.ParameterText(value), p.major):
				p.tell(name, cutOffText(p.major))
			case name == "wal_keep_segments" && p.major >= 13 && p.configured("wal_keep_size"):
				p.tell(name, "not used: wal_keep_size is set, too")
			case name == "wal_keep_segments" && p.major >= 13:
				why := fmt.Sprintf("PostgreSQL %d has wal_keep_size instead, which is set to as much", p.major)
				if _, err := strconv.Atoi(cluster.ParameterText(value)); err != nil {
					why = "not used: it is not a number"
				}
				p.tell(name, why)
			case !supported(name, p.major):
				p.tell(name, fmt.Sprintf("not used: PostgreSQL %d has no such parameter", p.major))
			case name == feedback && feedbackOn != "" && !isOn(cluster.ParameterText(value)):
				p.tell(name, "not used: "+feedbackOn)
			case name == standbySlots && p.ownsStandbySlots():
				p.tell(name, "not used: synchronous_mode is on, so the agent says whose slots they are")
			case name == syncNames && p.ownsSyncNames():
				p.tell(name, "not used: synchronous_mode is on, so the agent says whom commits wait for")
			}
		}
	}
	p.tellRestoreCommand()
}

// tellRestoreCommand tells which restore_command is not used, where both sections that may have one do.
func (p *confFiles) tellRestoreCommand() {
	own, set := p.wantedRecovery()[restoreCommand]
	if other := p.wantedParameters()[restoreCommand]; set && other != "" && other != own {
		p.tell("postgresql.parameters."+restoreCommand, "not used: postgresql.recovery_conf has another one")
	}
	if !p.dynamic.StandbyCluster.On() {
		return
	}
	all := p.wantedValues()
	for name, remote := range p.dynamic.StandbyCluster.Recovery() {
		if own := all[name]; own != "" && own != remote {
			p.tell(name, "not used on the standby leader: standby_cluster has another one")
		}
	}
}

// tellIncluded tells what the files that postgresql.conf includes say, and the agent says otherwise there.
func (p *confFiles) tellIncluded(base []confSetting) {
	const promotes = "nothing but the agent promotes"
	whys := map[string]string{feedback: p.needsFeedback(p.wantedParameters()), triggerFile: promotes}
	if p.ownsSyncNames() {
		whys[syncNames] = "synchronous_mode is on, so the agent says whom commits wait for"
	}
	if p.ownsStandbySlots() {
		whys[standbySlots] = "synchronous_mode is on, so the agent says whose slots they are"
	}
	for _, name := range cluster.RecoveryTargets() {
		whys[name] = promotes
	}
	for name, why := range whys {
		line, set := lastOf(base, name)
		if why == "" || !set || line.Value == "" || name == feedback && isOn(line.Value) {
			continue
		}
		p.tell(name, fmt.Sprintf("%s: %s is not used: %s", line.where(), line.Value, why))
	}
}

// tellOwn tells what the operator's own files, and ALTER SYSTEM, say that is not used, or wins.
func (p *confFiles) tellOwn(base, auto []confSetting) {
	p.tellAltered(auto)
	p.tellIncluded(base)
	lines := append(slices.Clone(base), auto...)
	force := p.commandLineValues(Primary, Control{})
	for _, shared := range cluster.SharedParameters() {
		line, set := lastOf(lines, shared.Name)
		if value, _ := shared.Accept(line.Value); set && value != force[shared.Name] && !p.setForAll(shared.Name) {
			p.tell(shared.Name, fmt.Sprintf("%s: %s is not used, %s is in force: all members must have the same, so it is taken from "+
				"postgresql.parameters of the dynamic configuration alone", line.where(), line.Value, force[shared.Name]))
		}
	}
}

// tellAltered tells what ALTER SYSTEM has set on this member alone: it wins over
// postgresql.conf, and has no effect on what is on the command line.
func (p *confFiles) tellAltered(auto []confSetting) {
	configured := p.parameters()
	for _, line := range auto {
		if last, _ := lastOf(auto, line.Name); last != line {
			continue
		}
		own, set := configured[line.Name]
		switch {
		case slices.Contains(cluster.AddressParameters(), line.Name):
			p.tell(line.Name, line.where()+": not used: it follows from postgresql.listen and scope of the agent's file")
		case set && own != line.Value:
			p.tell(line.Name, fmt.Sprintf("%s: %s, which ALTER SYSTEM has set on this member alone, wins over %s; use ALTER SYSTEM RESET %s",
				line.where(), line.Value, own, line.Name))
		}
	}
}

// setForAll reports whether the dynamic configuration has a value for a parameter.
func (p *confFiles) setForAll(name string) bool {
	for key, value := range p.dynamic.Postgres.Parameters {
		if value != nil && strings.EqualFold(key, name) {
			return true
		}
	}
	return false
}

// tellRaised tells what a standby runs with more of than is configured.
func (p *confFiles) tellRaised(role Role, control Control) {
	p.settings.Lock()
	defer p.settings.Unlock()
	wanted, given := p.commandLineValues(role, Control{}), p.commandLineValues(role, control)
	for _, shared := range cluster.SharedParameters() {
		if name := shared.Name; wanted[name] != given[name] {
			p.tell(name, fmt.Sprintf("raised from %s to %s: the primary had as much when it wrote the WAL that is to be replayed", wanted[name], given[name]))
		}
	}
}
