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
// slots of nobody, unless keep says otherwise. One that has lost its WAL
// (max_slot_wal_keep_size) is made anew: on PostgreSQL 18 nobody streams by it any more; before
// that it serves again when somebody does.
func (p *replication) SyncSlots(ctx context.Context, members []string, keep func(Slot) bool) error {
	conn, err := p.dedicated(ctx)
	if err != nil {
		return err
	}
	defer hangUpOn(conn)
	rows, err := conn.Query(ctx, `SELECT slot_name::text, slot_type, COALESCE(plugin, '')::text, COALESCE(database, '')::text, active,
		COALESCE(pg_wal_lsn_diff(restart_lsn, '0/0')::bigint, 0), COALESCE(to_jsonb(s) ->> 'wal_status', '') = 'lost'
		FROM pg_replication_slots s WHERE NOT temporary`) // 12 has no wal_status
	if err != nil {
		return fmt.Errorf("listing replication slots: %w", err)
	}
	type found struct {
		Slot
		Lost bool
	}
	slots, err := pgx.CollectRows(rows, pgx.RowToStructByPos[found])
	if err != nil {
		return fmt.Errorf("listing replication slots: %w", err)
	}
	var errs []error
	wanted := map[string]bool{}
	for _, m := range members {
		name := cluster.SlotName(m)
		wanted[name] = true
		i := slices.IndexFunc(slots, func(s found) bool { return s.Name == name })
		if i >= 0 && (!slots[i].Lost || slots[i].Active) {
			continue
		}
		if i >= 0 {
			if _, err := conn.Exec(ctx, "SELECT pg_drop_replication_slot($1)", name); err != nil {
				errs = append(errs, fmt.Errorf("dropping the replication slot %s, which has lost its WAL: %w", name, err))
				continue
			}
			p.log.Warn().Str("slot", name).Msg("replication slot had lost its WAL (max_slot_wal_keep_size) and is made anew")
		}
		if _, err := conn.Exec(ctx, "SELECT pg_create_physical_replication_slot($1, true)", name); err != nil {
			errs = append(errs, fmt.Errorf("making the replication slot %s: %w", name, err))
		}
	}
	for _, s := range slots {
		if wanted[s.Name] || s.Active || s.Type != "physical" || keep(s.Slot) {
			continue
		}
		if _, err := conn.Exec(ctx, "SELECT pg_drop_replication_slot($1)", s.Name); err != nil {
			errs = append(errs, fmt.Errorf("dropping the replication slot %s: %w", s.Name, err))
		}
	}
	return errors.Join(errs...)
}
