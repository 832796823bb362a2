package postgres

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
)

// This file is about configuration files that do not lie beside the data
// (postgresql.config_dir), as Debian has them in /etc/postgresql. Base backups and
// archives do not have them. So copies of them lie beside the data, from which a member
// begins that has none of its own; under Patroni's names, whose users' backups have them.

// configDirOf is where the configuration files are.
func configDirOf(local config.Postgres) string {
	if local.ConfigDir == "" {
		return filepath.Clean(local.DataDir)
	}
	return filepath.Clean(local.ConfigDir)
}

func (p *installation) inConf(name string) string { return filepath.Join(p.configDir, name) }

func (p *installation) confExists(name string) (bool, error) {
	return there(p.disk.Stat, p.inConf(name))
}

// ownConfs are the files that PostgreSQL reads, in its order. ALTER SYSTEM always writes
// beside the data.
func (p *installation) ownConfs() []string {
	return []string{p.inConf("postgresql.conf"), p.inData("postgresql.auto.conf")}
}

// writeConf writes a configuration file. Outside the data directory whoever may read the
// operator's own may read it, as Debian's commands do.
func (p *installation) writeConf(path, content string) error {
	if p.configDir == p.dataDir || filepath.Dir(path) != p.configDir {
		return p.writeFile(path, content)
	}
	mode := os.FileMode(0o640)
	for _, like := range []string{path, p.inConf("postgresql.base.conf")} {
		if info, err := p.disk.Stat(like); err == nil {
			mode = info.Mode().Perm()
			break
		}
	}
	if p.local.Load().Authentication.Replication.SSLPassword != "" { // primary_conninfo may have it
		mode = 0o600
	}
	if err := p.disk.Replace(path, []byte(content), mode); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}

const copySuffix = ".backup"

// keepCopies keeps copies of the configuration files beside the data. That of the
// operator's postgresql.conf has what it includes, too, and names no place of this host.
func (p *confFiles) keepCopies(base []confSetting, access ...accessFile) error {
	if p.configDir == p.dataDir {
		return nil
	}
	var b strings.Builder
	b.WriteString("# What " + p.baseConf() + " said, for a member that has no such file\n")
	for _, line := range base {
		if cluster.PathRefusal(line.Name) == "" && line.Name != "hba_file" && line.Name != "ident_file" {
			fmt.Fprintf(&b, "%s = %s\n", line.Name, quote(line.Value))
		}
	}
	if err := p.keepCopy("postgresql.base.conf", b.String()); err != nil {
		return err
	}
	for _, file := range access {
		content, err := p.disk.ReadFile(file.path)
		if err != nil {
			continue // PostgreSQL itself says what it lacks
		}
		if err := p.keepCopy(file.section+".conf", string(content)); err != nil {
			return err
		}
	}
	return nil
}

func (p *confFiles) keepCopy(name, content string) error {
	path := p.inData(name + copySuffix)
	if kept, err := p.disk.ReadFile(path); err == nil && string(kept) == content {
		return nil
	}
	return p.writeFile(path, content)
}

// furnish gives a data directory that was just made the configuration files that it
// lacks: from the copies beside the data or, where they belong elsewhere, from what
// initdb, a base backup or a method has put beside the data, which goes. Files that are
// there already are the operator's and stay. Missing are those that are nowhere.
func (p *installation) furnish() (missing []string, err error) {
	names := configFiles()
	outside := p.configDir != p.dataDir
	if outside {
		if err := p.disk.MkdirAll(p.configDir, 0o755); err != nil {
			return nil, fmt.Errorf("postgresql.config_dir: make it for PostgreSQL's user: %w", err)
		}
		// One of them without the other is whole: what is beside the data is not mixed in.
		conf, err := p.confExists("postgresql.conf")
		base, baseErr := p.confExists("postgresql.base.conf")
		if err = errors.Join(err, baseErr); err != nil {
			return nil, err
		}
		if conf || base {
			names = slices.DeleteFunc(names, func(name string) bool { return strings.HasPrefix(name, "postgresql.") })
		}
	}
	for _, name := range names {
		switch found, err := p.confExists(name); {
		case err != nil:
			return nil, err
		case found:
			continue
		}
		content, err := p.disk.ReadFile(p.inData(name))
		if errors.Is(err, os.ErrNotExist) {
			content, err = p.disk.ReadFile(p.inData(name + copySuffix))
		}
		if errors.Is(err, os.ErrNotExist) {
			missing = append(missing, name)
			continue
		}
		if err == nil {
			err = p.writeConf(p.inConf(name), string(content))
		}
		if err != nil {
			return nil, fmt.Errorf("configuration file %s: %w", name, err)
		}
	}
	if !outside {
		return missing, nil
	}
	for _, name := range configFiles() { // they would be taken for those in force
		if err := p.disk.Remove(p.inData(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("configuration file beside the data: %w", err)
		}
	}
	return missing, nil
}
