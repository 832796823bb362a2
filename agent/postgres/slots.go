package postgres

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// Slot is one replication slot.
type Slot struct {
	Name     string
	Type     string // physical, logical
	Plugin   string
	Database string
	Active   bool
}

// SyncSlots makes a physical slot for each of the members and drops inactive
// slots of nobody, unless keep says otherwise.
func (p *Instance) SyncSlots(ctx context.Context, members []string, keep func(Slot) bool) error {
	conn, err := p.dedicated(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // it is done with
	rows, err := conn.Query(ctx, `SELECT slot_name::text, slot_type, COALESCE(plugin, '')::text, COALESCE(database, '')::text, active
		FROM pg_replication_slots WHERE NOT temporary`)
	if err != nil {
		return fmt.Errorf("listing replication slots: %w", err)
	}
	slots, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Slot])
	if err != nil {
		return fmt.Errorf("listing replication slots: %w", err)
	}
	var errs []error
	wanted := map[string]bool{}
	for _, m := range members {
		name := SlotName(m)
		wanted[name] = true
		if slices.ContainsFunc(slots, func(s Slot) bool { return s.Name == name }) {
			continue
		}
		if _, err := conn.Exec(ctx, "SELECT pg_create_physical_replication_slot($1, true)", name); err != nil {
			errs = append(errs, fmt.Errorf("making the replication slot %s: %w", name, err))
		}
	}
	for _, s := range slots {
		if wanted[s.Name] || s.Active || s.Type != "physical" || keep(s) {
			continue
		}
		if _, err := conn.Exec(ctx, "SELECT pg_drop_replication_slot($1)", s.Name); err != nil {
			errs = append(errs, fmt.Errorf("dropping the replication slot %s: %w", s.Name, err))
		}
	}
	return errors.Join(errs...)
}

var quotedName = regexp.MustCompile(`"((?:[^"]|"")*)"`)

// syncStandbyNames is the value of synchronous_standby_names that waits for all
// of the standbys; "*" alone waits for anybody.
func syncStandbyNames(standbys []string) string {
	if len(standbys) == 1 && standbys[0] == "*" {
		return "*"
	}
	names := make([]string, 0, len(standbys))
	for _, s := range standbys {
		names = append(names, `"`+strings.ReplaceAll(s, `"`, `""`)+`"`)
	}
	switch len(names) {
	case 0:
		return ""
	case 1:
		return names[0]
	}
	return fmt.Sprintf("%d (%s)", len(names), strings.Join(names, ","))
}

// SyncStandbys are the standbys that the configuration file makes commits wait
// for.
func (p *Instance) SyncStandbys() []string {
	p.settings.Lock()
	defer p.settings.Unlock()
	return syncMembers(p.syncNames)
}

// SetSynchronousStandbys makes commits wait for the standbys, and returns the
// flush position after that took effect: whoever has flushed it has every
// commit that was acknowledged before.
func (p *Instance) SetSynchronousStandbys(ctx context.Context, standbys []string) (int64, error) {
	value := syncStandbyNames(standbys)
	p.setSyncNames(value)
	if err := p.writeConfig(ctx, p.getRuns()); err != nil {
		return 0, err
	}
	if err := p.signal(syscall.SIGHUP); err != nil {
		return 0, err
	}
	conn, err := p.dedicated(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // it is done with
	for {
		var (
			now string
			lsn int64
		)
		// A new session reads the file as the postmaster read it last; an old
		// one would show its own, older reading until it is idle again.
		if err := conn.QueryRow(ctx, "SELECT current_setting('synchronous_standby_names'), pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')::bigint").
			Scan(&now, &lsn); err != nil {
			return 0, fmt.Errorf("synchronous_standby_names: %w", err)
		}
		if now == value {
			return lsn, nil
		}
		select {
		case <-time.After(pollEvery):
		case <-ctx.Done():
			return 0, fmt.Errorf("synchronous_standby_names did not take effect: %w", ctx.Err())
		}
	}
}

// TimelineHistory reads how the timelines before this one ended
// (pg_wal/*.history).
func (p *Instance) TimelineHistory(timeline int) (cluster.History, error) {
	if timeline <= 1 {
		return nil, nil
	}
	content, err := os.ReadFile(filepath.Join(p.dataDir, "pg_wal", fmt.Sprintf("%08X.history", timeline)))
	if err != nil {
		return nil, fmt.Errorf("history of timeline %d: %w", timeline, err)
	}
	return parseHistory(string(content))
}

// parseHistory reads lines of timeline, position and reason, apart by tabs
// (PostgreSQL's src/backend/access/transam/timeline.c).
func parseHistory(content string) (cluster.History, error) {
	var history cluster.History
	for line := range strings.Lines(content) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		fields := strings.SplitN(line, "\t", 3)
		if len(fields) < 2 {
			return nil, fmt.Errorf("timeline history: line %q has less than two fields", line)
		}
		tli, err := strconv.Atoi(fields[0])
		if err != nil {
			return nil, fmt.Errorf("timeline history: line %q: %w", line, err)
		}
		lsn, err := ParseLSN(fields[1])
		if err != nil {
			return nil, fmt.Errorf("timeline history: line %q: %w", line, err)
		}
		h := cluster.TimelineSwitch{Timeline: tli, LSN: lsn}
		if len(fields) == 3 {
			h.Reason = fields[2]
		}
		history = append(history, h)
	}
	return history, nil
}
