package postgres

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
)

// This file is about configuration files in the data directory that are links to files
// elsewhere, as operators make them. pg_basebackup leaves links out (sendDir in
// src/backend/backup/basebackup.c), and pg_rewind refuses a file that is one here and
// none there.

// configFiles are those that a data directory may have links for.
func configFiles() []string {
	return []string{"postgresql.conf", "postgresql.base.conf", "pg_hba.conf", "pg_ident.conf"}
}

// completeClone reads from the upstream which configuration files a base backup has left out.
func (p *upstreams) completeClone(ctx context.Context, u Upstream) error {
	missing, err := p.furnish()
	if err != nil {
		return err
	}
	for _, name := range missing {
		content, err := p.readUpstream(ctx, u, name)
		if err != nil && name == "pg_ident.conf" { // PostgreSQL starts without it, and it may well be that there is none
			p.log.Warn().Err(err).Str("file", name).Msg("the base backup has left the file out, and the upstream does not tell whether it has one")
			continue
		}
		if err != nil {
			return fmt.Errorf("%s, which the base backup has left out: %w", name, err)
		}
		if content == nil {
			continue // the upstream has none either
		}
		if err := p.writeConf(p.inConf(name), string(content)); err != nil {
			return err
		}
		p.log.Info().Str("file", name).Str("upstream", u.Name).Msg("the file does not lie beside the upstream's data; its content was copied")
	}
	return nil
}

// readUpstream reads one of an upstream's configuration files; nil: there is none.
func (p *upstreams) readUpstream(ctx context.Context, u Upstream, name string) ([]byte, error) {
	conn, err := p.connect(ctx, u.Host, u.Port, p.local.Load().Authentication.Superuser, p.database(), agentName)
	if err != nil {
		return nil, err
	}
	defer hangUpOn(conn)
	const most = 16 << 20
	var content []byte // in whatever encoding the file is
	where := map[string]string{
		"postgresql.conf": "current_setting('config_file')", "pg_hba.conf": "current_setting('hba_file')", "pg_ident.conf": "current_setting('ident_file')",
		"postgresql.base.conf": "regexp_replace(current_setting('config_file'), '[^/]*$', 'postgresql.base.conf')",
	}[name]
	if err := conn.QueryRow(ctx, "SELECT pg_read_binary_file("+where+", 0, $1, true)", most).Scan(&content); err != nil {
		return nil, fmt.Errorf("reading it from %s: %w", u.Name, err)
	}
	return content, nil
}

// replaceLinks puts copies in the place of configuration files that are links: a rewind
// replaces these files by the upstream's. What the links lead to stays as it is.
func (p *dataDirectory) replaceLinks() error {
	for _, name := range configFiles() {
		path := p.inData(name)
		info, err := p.disk.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) || err == nil && info.Mode()&fs.ModeSymlink == 0 {
			continue
		}
		var content []byte
		if err == nil {
			content, err = p.disk.ReadFile(path)
		}
		if err != nil {
			return fmt.Errorf("%s, for a rewind: %w", name, err)
		}
		if err := p.writeFile(path, string(content)); err != nil {
			return err
		}
		p.log.Warn().Str("file", name).Msg("the file was a link, with which pg_rewind would refuse; it is replaced by the upstream's content")
	}
	return nil
}
