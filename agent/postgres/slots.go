package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/pg"
)

// slotNow is a slot as PostgreSQL has it.
type slotNow struct {
	Slot
	// Lost: it has lost its WAL (max_slot_wal_keep_size).
	Lost bool
	// HoldsRows: rows that a reader might still see are kept for it.
	HoldsRows bool
}

// 12 has no wal_status; synced and failover are of 17.
const slotsSQL = `SELECT slot_name::text, slot_type, COALESCE(plugin, '')::text, COALESCE(database, '')::text, active,
	COALESCE(pg_wal_lsn_diff(restart_lsn, '0/0')::bigint, 0), COALESCE(pg_wal_lsn_diff(confirmed_flush_lsn, '0/0')::bigint, 0),
	COALESCE(to_jsonb(s) ->> 'wal_status', '') = 'lost', xmin IS NOT NULL OR catalog_xmin IS NOT NULL,
	COALESCE((to_jsonb(s) ->> 'synced')::boolean, false), COALESCE((to_jsonb(s) ->> 'failover')::boolean, false)
	FROM pg_replication_slots s WHERE NOT temporary`

// SyncSlots makes the slots that are wanted, moves those of them that nobody streams by, and
// drops inactive ones that nobody wants. One that has lost its WAL
// (max_slot_wal_keep_size) is made anew: on PostgreSQL 18 nobody streams by it any more; before
// that it serves again when somebody does. One of another kind under a name that is wanted is
// somebody's: it stays, and is told.
func (p *replication) SyncSlots(ctx context.Context, o pg.SlotOrders) error {
	s, err := p.seeSlots(ctx)
	if err != nil {
		return err
	}
	defer s.hangUp()
	var errs []error
	for _, want := range o.Wanted {
		errs = append(errs, s.provide(ctx, want))
	}
	for _, found := range s.slots {
		wanted := slices.ContainsFunc(o.Wanted, func(w pg.WantedSlot) bool { return w.Name == found.Name })
		if !wanted && !found.Active && s.mayGo(found) && !o.Keep(found.Slot.Slot) {
			errs = append(errs, s.drop(ctx, found.Name, "nobody is to read from it here"))
		}
	}
	return errors.Join(errs...)
}

// slotWork is what is done to the slots of one PostgreSQL.
type slotWork struct {
	*replication
	changes   *pgx.Conn // the connection for changes, nil: nothing was changed yet
	slots     []slotNow
	replica   bool
	began     int64 // where the timeline begins that a replica is on
	replayed  int64
	restarted int64 // the redo position of the last checkpoint
	streams   bool  // it is a replica that receives WAL
}

// seeSlots looks over the kept connection. Mostly nothing is to be changed, and a login is most of
// what an idle agent costs (SCRAM hashes a password some thousand times).
func (p *replication) seeSlots(ctx context.Context) (*slotWork, error) {
	conn, err := p.take(ctx)
	if err != nil {
		return nil, err
	}
	defer p.give(conn)
	s := &slotWork{replication: p}
	rows, err := conn.Query(ctx, slotsSQL)
	if err != nil {
		return nil, fmt.Errorf("listing replication slots: %w", err)
	}
	s.slots, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (n slotNow, err error) {
		err = row.Scan(&n.Name, &n.Type, &n.Plugin, &n.Database, &n.Active, &n.RestartLSN, &n.ConfirmedLSN, &n.Lost, &n.HoldsRows, &n.Synced, &n.Failover)
		return n, err
	})
	if err != nil {
		return nil, fmt.Errorf("listing replication slots: %w", err)
	}
	timeline := 0
	err = conn.QueryRow(ctx, `SELECT pg_is_in_recovery(), COALESCE(pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0')::bigint, 0),
		pg_wal_lsn_diff(redo_lsn, '0/0')::bigint, EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming'),
		GREATEST(timeline_id, (SELECT min_recovery_end_timeline FROM pg_control_recovery()), COALESCE((SELECT received_tli FROM pg_stat_get_wal_receiver()), 0))
		FROM pg_control_checkpoint()`).Scan(&s.replica, &s.replayed, &s.restarted, &s.streams, &timeline)
	if err != nil {
		return nil, fmt.Errorf("listing replication slots: %w", err)
	}
	if s.replica && p.major >= decodesOnReplica {
		history, err := p.TimelineHistory(timeline)
		if err != nil {
			return nil, fmt.Errorf("listing replication slots: %w", err)
		}
		if len(history) > 0 {
			s.began = history[len(history)-1].LSN
		}
	}
	return s, nil
}

// change runs a statement that changes slots, over a connection of its own: some take long, and
// no observation waits for them.
func (s *slotWork) change(ctx context.Context, statement string, args ...any) error {
	if s.changes == nil {
		conn, err := s.dedicated(ctx)
		if err != nil {
			return err
		}
		s.changes = conn
	}
	_, err := s.changes.Exec(ctx, statement, args...)
	return err
}

func (s *slotWork) hangUp() {
	if s.changes != nil {
		hangUpOn(s.changes)
	}
}

// decodesOnReplica is the version from which on replicas have logical slots of their own.
const decodesOnReplica = 16

// mayGo reports whether an inactive slot that nobody wants may be dropped. A logical one on a
// primary has a reader who has not been heard of yet, and loses what was not read. On a replica
// it is left from a time as the primary: it holds WAL and dead rows back for ever, and was
// of no use to the reader. From 16 on it may be a reader's own, who has then read beyond
// the point at which this timeline began. A failover slot that PostgreSQL does not keep like the primary's is in
// the way of the one that it would: it goes when there is another primary.
func (s *slotWork) mayGo(found slotNow) bool {
	switch {
	case found.Type == cluster.SlotPhysical:
		return true
	case found.Failover && !found.Synced:
		return s.streams
	}
	return s.replica && !found.Synced && (s.major < decodesOnReplica || found.ConfirmedLSN <= s.began)
}

// provide makes a slot that is wanted, or moves it.
func (s *slotWork) provide(ctx context.Context, want pg.WantedSlot) error {
	i := slices.IndexFunc(s.slots, func(n slotNow) bool { return n.Name == want.Name })
	if i < 0 {
		return s.create(ctx, want.Slot)
	}
	switch found := s.slots[i]; {
	case found.Type != want.Type:
		return fmt.Errorf("the replication slot %s is %s, and is to be %s: drop it, or give one of the two another name", want.Name, found.Type, want.Type)
	case want.Type == cluster.SlotLogical:
		return s.keepLogical(ctx, want, found)
	case found.Active:
		return nil
	case found.Lost:
		return s.renew(ctx, want, "it had lost its WAL (max_slot_wal_keep_size) and is made anew")
	case want.Spare && found.HoldsRows:
		// Of a standby that streamed by it when this member was the primary. Nothing would ever
		// move them on, and hot_standby_feedback would pass them on to the primary.
		return s.renew(ctx, want, "it held rows back and is made anew")
	case want.Spare:
		return s.advance(ctx, want, found)
	}
	return nil
}

// create makes a slot. A logical one of a replica is copied from the leader (logical_slots.go).
func (s *slotWork) create(ctx context.Context, slot cluster.Slot) error {
	switch {
	case slot.Type == cluster.SlotLogical && s.replica:
		return nil
	case slot.Type == cluster.SlotLogical:
		return s.createLogical(ctx, slot)
	}
	if err := s.change(ctx, "SELECT pg_create_physical_replication_slot($1, true)", slot.Name); err != nil {
		return fmt.Errorf("making the replication slot %s: %w", slot.Name, err)
	}
	return nil
}

// renew makes a slot anew, which begins at the last checkpoint.
func (s *slotWork) renew(ctx context.Context, want pg.WantedSlot, why string) error {
	if err := s.drop(ctx, want.Name, why); err != nil {
		return err
	}
	return s.create(ctx, want.Slot)
}

// keepLogical looks after a logical slot that is there. On a replica it is a copy, which is
// dropped where it is of no use, to be copied anew.
func (s *slotWork) keepLogical(ctx context.Context, want pg.WantedSlot, found slotNow) error {
	why, err := s.uselessLogical(want, found, s.SyncsSlots())
	switch {
	case err != nil:
		return err
	case why != "":
		return s.drop(ctx, want.Name, why)
	case want.Awaited && !s.replica:
		return s.helpOn(ctx, want.Slot)
	}
	return nil
}

// uselessLogical says why a logical slot that is wanted is to be dropped, empty: it stays. An error says
// what is wrong with one that stays all the same. syncs: PostgreSQL itself keeps failover slots on
// replicas. A copy gives way to it only when the primary's is one: else nobody would keep that slot here.
func (s *slotWork) uselessLogical(want pg.WantedSlot, found slotNow, syncs bool) (why string, err error) {
	switch {
	case s.replica && found.Synced && !syncs:
		return "", fmt.Errorf("the logical slot %s is PostgreSQL's own copy, which stands still and keeps WAL, as sync_replication_slots is off: "+
			"a replica cannot drop it; switch that on, take the mark failover from the primary's slot, and switch it off again", want.Name)
	case s.replica && found.Synced:
		return "", nil
	case s.replica && want.Native:
		if (want.Yields || found.Failover) && s.streams && !found.Active {
			return "PostgreSQL itself keeps the primary's here", nil
		}
		return "", nil
	case syncs && !s.replica && !found.Failover:
		return "", fmt.Errorf("the logical slot %s is no failover slot, which sync_replication_slots leaves out: mark it (ALTER SUBSCRIPTION ... SET (failover = true)), or drop it and let its reader begin anew", want.Name)
	case found.Lost:
		why = "has lost its WAL, or rows that it needs"
	case found.Slot.Slot != want.Slot:
		why = fmt.Sprintf("is of plugin %s in database %s, and is to be of %s in %s", found.Plugin, found.Database, want.Plugin, want.Database)
	}
	if why == "" || s.replica && !found.Active {
		return why, nil
	}
	return "", fmt.Errorf("the logical slot %s %s: drop it, and let its reader begin anew", want.Name, why)
}

func (s *slotWork) drop(ctx context.Context, name, why string) error {
	if err := s.change(ctx, "SELECT pg_drop_replication_slot($1)", name); err != nil {
		return fmt.Errorf("dropping the replication slot %s: %w", name, err)
	}
	s.log.Info().Str("slot", name).Str("reason", why).Msg("dropped replication slot")
	return nil
}

// advance moves a slot that nobody streams by to where its reader has come by now.
func (s *slotWork) advance(ctx context.Context, want pg.WantedSlot, found slotNow) error {
	to := min(want.To, s.replayed)
	if want.KeepsCheckpoint {
		to = s.restarted
	}
	if found.RestartLSN == 0 || to <= found.RestartLSN {
		return nil
	}
	if err := s.change(ctx, "SELECT pg_replication_slot_advance($1, $2::text::pg_lsn)", want.Name, pg.FormatLSN(to)); err != nil {
		return fmt.Errorf("advancing the replication slot %s to %s: %w", want.Name, pg.FormatLSN(to), err)
	}
	return nil
}
