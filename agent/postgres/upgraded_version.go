package postgres

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"time"
)

// programsOfData are the programs of the version that the data are of, or are to be copied from, where the shard was
// upgraded to a later one than that of the configuration's: no line of it has to change in the middle of an upgrade. nil:
// those of the configuration are used.
func (p *dataUpgrader) programsOfData(ctx context.Context) *installation {
	note, err := p.UpgradeNote()
	major, majorErr := p.dataMajor()
	said := p.laterBin
	switch {
	case err != nil:
		return nil // a look at the data directory tells
	case errors.Is(majorErr, fs.ErrNotExist):
		major = p.notedVersion()
	case majorErr != nil:
		return nil
	case note != nil && (note.Index == 0 || p.isAt(note.dir(), note.NextID) != nil): // it is taken back
		return nil
	case note != nil:
		said = note.BinDir
	}
	if major <= p.major {
		return nil
	}
	later, why := p.nextInstallation(ctx, major, said)
	if why != "" {
		p.log.Warn().Int("version", major).Str("reason", why).Msg("the data are of a later version than the programs")
		return nil
	}
	p.log.Info().Int("version", major).Str("bin_dir", later.local.Load().BinDir).Msg("the shard was upgraded: its version's programs are used; name them in postgresql.bin_dir")
	return later
}

// notedVersion is the major version of which the data are to be that are copied into the empty place; zero: that of the
// configuration's programs.
func (p *records) notedVersion() int {
	content, err := p.disk.ReadFile(p.stateFile("version"))
	if err != nil {
		return 0
	}
	major, err := strconv.Atoi(strings.TrimSpace(string(content)))
	if err != nil {
		return 0
	}
	return major
}

func (p *records) noteVersion(major int) error {
	if err := p.disk.Replace(p.stateFile("version"), []byte(strconv.Itoa(major)+"\n"), 0o600); err != nil {
		return fmt.Errorf("noting of which version the data will be (set lictor.state_dir to a writable directory): %w", err)
	}
	return p.syncDir(p.stateDir)
}

// setSuperseded moves data aside that are from before the shard's upgrade to a major version: they may be the last ones of
// the old cluster as it was. What is copied into their place needs that version's programs.
func (p *Instance) setSuperseded(ctx context.Context, to int) error {
	if _, why := p.nextInstallation(ctx, to, p.laterBin); to != p.major && why != "" {
		return errors.New(why)
	}
	dir, err := p.realDataDir()
	if err != nil {
		return fmt.Errorf("the data directory: %w", err)
	}
	if err := movable(dir); err != nil {
		return err
	}
	if err := p.noteVersion(to); err != nil {
		return err
	}
	aside := dir + beforeUpgrade + time.Now().UTC().Format("20060102T150405.000000")
	if err := p.move(dir, aside); err != nil {
		return err
	}
	p.log.Warn().Str("moved_to", aside).Msg("the data directory of before the major upgrade was moved aside; it is never removed")
	if dir != p.dataDir { // of a link it is the target that was renamed
		if err := p.disk.For(func() error { return p.disk.Mkdir(dir, 0o700) }, p.dataDir, dir); err != nil {
			return fmt.Errorf("making the data directory: %w", err)
		}
		if err := p.restrict(dir); err != nil {
			return err
		}
	}
	return p.keepUpgradeNames(dir)
}
