package postgres

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lictor-ha/lictor/agent/config"
)

// cloning and rewinding are the application names of connections that serve to
// make a member, and are none.
const (
	cloning   = "Lictor base backup"
	rewinding = "Lictor rewind"
)

// cleanWithin is how long the clearing away after a failed clone may take.
const cleanWithin = 10 * time.Second

// progressEvery is how often the size of a growing clone is looked at.
const progressEvery = 2 * time.Second

// BaseBackup fills the empty data directory from an upstream. progress, if set,
// is told how many bytes there are and how many are expected (0: unknown). On
// failure what was made is removed again; killed on the way, it is found marked.
func (p *cloner) BaseBackup(ctx context.Context, u Upstream, progress func(done, total int64)) error {
	systemIdentifier, err := p.identify(ctx, u)
	if err != nil {
		return fmt.Errorf("cloning from %s: %w", u.Name, err)
	}
	if err := p.mark(markClone, systemIdentifier); err != nil {
		return err
	}
	if err := p.writePgpass(u); err != nil {
		return err
	}
	// Not under the member's name: the WAL that the backup streams would be
	// taken for a synchronous standby's and acknowledge commits.
	source, env, err := p.programConninfo(u, p.local.Load().Authentication.Replication, "", cloning)
	if err != nil {
		return err
	}
	stop := p.watchSize(ctx, u, progress)
	args := append([]string{"--pgdata=" + p.dataDir, "--wal-method=stream", "--no-password", "--dbname=" + source}, p.baseBackupOptions()...)
	if _, err = p.runOnData(ctx, env, "pg_basebackup", args...); err != nil && ctx.Err() == nil {
		first := err
		if err = p.empty(systemIdentifier, everything); err == nil {
			_, err = p.runOnData(ctx, env, "pg_basebackup", args...)
		}
		if err != nil && err.Error() != first.Error() {
			err = errors.Join(first, err)
		}
	}
	stop()
	if err != nil {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanWithin)
		defer cancel()
		cleanup := p.killWriters(clean)
		if cleanup == nil {
			cleanup = p.empty(systemIdentifier, everything)
		}
		if cleanup != nil { // the marker stays: it is cleared away later
			return errors.Join(fmt.Errorf("cloning from %s: %w", u.Name, err), cleanup)
		}
		return errors.Join(fmt.Errorf("cloning from %s: %w", u.Name, err), p.unmark())
	}
	if err := p.takeOverAccess(); err != nil {
		return err // it is marked, and begun anew
	}
	if err := p.completeClone(ctx, u); err != nil {
		return fmt.Errorf("cloning from %s: %w", u.Name, err)
	}
	if progress != nil {
		size := dirSize(p.dataDir)
		progress(size, size)
	}
	return p.copied()
}

// baseBackupOptions are the user's, and a fast checkpoint unless they say
// otherwise.
func (p *cloner) baseBackupOptions() []string {
	var options []string
	add := func(name string, value any) {
		if config.OwnOption("pg_basebackup", name) {
			return
		}
		switch v := value.(type) {
		case nil:
			options = append(options, "--"+name)
		case bool:
			if v {
				options = append(options, "--"+name)
			}
		default:
			options = append(options, fmt.Sprintf("--%s=%v", name, v))
		}
	}
	switch list := p.local.Load().BaseBackup.(type) {
	case map[string]any:
		for name, value := range list {
			add(name, value)
		}
	case []any:
		for _, item := range list {
			switch o := item.(type) {
			case string:
				add(o, nil)
			case map[string]any:
				for name, value := range o {
					add(name, value)
				}
			}
		}
	}
	if !slices.ContainsFunc(options, func(o string) bool { return strings.HasPrefix(o, "--checkpoint") }) {
		options = append(options, "--checkpoint=fast")
	}
	slices.Sort(options)
	return options
}

// watchSize tells progress while a clone grows. The function that it returns
// ends that.
func (p *upstreams) watchSize(ctx context.Context, u Upstream, progress func(done, total int64)) (stop func()) {
	if progress == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var watching sync.WaitGroup
	watching.Go(func() {
		var total int64
		if conn, err := p.connect(ctx, u.Host, u.Port, p.local.Load().Authentication.Superuser, p.database(), agentName); err == nil {
			_ = conn.QueryRow(ctx, "SELECT sum(pg_tablespace_size(oid))::bigint FROM pg_tablespace").Scan(&total)
			_ = conn.Close(ctx)
		}
		tick := time.NewTicker(progressEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				progress(dirSize(p.dataDir), total)
			case <-ctx.Done():
				return
			}
		}
	})
	return func() {
		cancel()
		watching.Wait()
	}
}

func dirSize(dir string) int64 {
	var size int64
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if info, err := d.Info(); err == nil {
				size += info.Size()
			}
		}
		return nil // files come and go while it is measured
	})
	return size
}
