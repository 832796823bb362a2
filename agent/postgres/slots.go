package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// SyncSlots makes a physical slot for each of the members and drops inactive
// slots of nobody, unless keep says otherwise.
func (p *replication) SyncSlots(ctx context.Context, members []string, keep func(Slot) bool) error {
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
