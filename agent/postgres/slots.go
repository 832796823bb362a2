package postgres

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// SyncSlots makes a physical slot for each of the members and drops inactive
// slots of nobody, unless keep says otherwise.
func (p *Instance) SyncSlots(ctx context.Context, members []string, keep func(Slot) bool) error {
	conn, err := p.dedicated(ctx)
	if err != nil {
		return err
	}
	defer hangUpOn(conn)
	rows, err := conn.Query(ctx, `SELECT slot_name::text, slot_type, COALESCE(plugin, '')::text, COALESCE(database, '')::text, active,
		COALESCE(pg_wal_lsn_diff(restart_lsn, '0/0')::bigint, 0) FROM pg_replication_slots WHERE NOT temporary`)
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
		name := cluster.SlotName(m)
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

// TimelineHistory reads how the timelines before this one ended
// (pg_wal/*.history).
func (p *Instance) TimelineHistory(timeline int) (cluster.History, error) {
	if timeline <= 1 {
		return nil, nil
	}
	content, err := p.disk.ReadFile(filepath.Join(p.dataDir, "pg_wal", fmt.Sprintf("%08X.history", timeline)))
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
