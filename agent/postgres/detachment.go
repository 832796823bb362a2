package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"syscall"
)

// detachmentNote says beside the data that this replica has detached for a takeover by quorum.
const detachmentNote = "detached"

// errNoReload: before PostgreSQL 14 restore_command changes with a restart alone.
var errNoReload = errors.New("a PostgreSQL before 14 does not leave the archive alone while it runs")

// Detachment is the note that was kept last, nil when there is none. One that cannot be read is one of an attempt of
// this member's own at an unknown status.
func (p *records) Detachment() *Detachment {
	content, err := p.disk.ReadFile(p.stateFile(detachmentNote))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var d Detachment
	if err == nil {
		err = json.Unmarshal(content, &d)
	}
	if err != nil {
		p.log.Error().Err(err).Str("file", p.stateFile(detachmentNote)).Msg("cannot read from which leader this member has detached; it follows nobody until there is a newer status")
		return &Detachment{Own: true}
	}
	return &d
}

// KeepDetachment makes sure, durably, that this replica, which follows nobody, does not when it is started again, by whomever,
// and notes why.
func (p *replication) KeepDetachment(_ context.Context, d Detachment) error {
	if p.major < 14 {
		return errNoReload
	}
	p.detaching.Lock()
	defer p.detaching.Unlock()
	content, err := json.Marshal(d)
	steps := []func() error{
		func() error { return err },
		p.makeStateDir,
		func() error { return p.disk.Replace(p.stateFile(detachmentNote), content, 0o600) },
		func() error { return p.syncDir(p.stateDir) },
		p.rewriteConfig, // without restore_command
		func() error { return p.signal(syscall.SIGHUP) },
		func() error { return p.disk.Sync(p.inConf("postgresql.conf")) },
		func() error { return p.disk.Sync(p.inConf("")) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("noting durably that this member has detached from the leader: %w", err)
		}
	}
	return nil
}

// DropDetachment drops the note of a status, and lets the replica have the archive again, also where an earlier attempt came
// no further than to drop the note.
func (p *replication) DropDetachment(_ context.Context, d Detachment) error {
	p.detaching.Lock()
	defer p.detaching.Unlock()
	content, err := p.disk.ReadFile(p.stateFile(detachmentNote))
	var kept Detachment
	switch {
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("reading the note that this member has detached: %w", err)
	case err == nil && json.Unmarshal(content, &kept) == nil && kept.Status != d.Status:
		return nil // another one
	}
	if err := p.disk.Remove(p.stateFile(detachmentNote)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("dropping the note that this member has detached: %w", err)
	}
	if !p.Running() {
		return nil // the next start writes the configuration
	}
	if err := p.rewriteConfig(); err != nil {
		return err
	}
	return p.signal(syscall.SIGHUP)
}
