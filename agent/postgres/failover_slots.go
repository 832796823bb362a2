package postgres

import (
	"context"
	"fmt"
	"regexp"
	"strings"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// This file is about failover slots (design 5.28): from 17 on PostgreSQL itself keeps those logical slots of
// the primary that are marked so on its replicas, if sync_replication_slots is on.

const (
	slotSync     = "sync_replication_slots"
	standbySlots = "synchronized_standby_slots"
	// syncsSlotsSince is the first version that has both.
	syncsSlotsSince = 17
)

// SyncsSlots reports whether PostgreSQL itself keeps logical slots on replicas: only those that stream by a slot
// of their own ask for them.
func (p *confFiles) SyncsSlots() bool {
	p.settings.Lock()
	defer p.settings.Unlock()
	return p.syncsSlots()
}

func (p *confFiles) syncsSlots() bool {
	return p.major >= syncsSlotsSince && p.useSlots() && isOn(p.wantedParameters()[slotSync])
}

// isOn reports whether PostgreSQL takes a value for true: it takes the beginnings of words, too (parse_bool
// in src/backend/utils/adt/bool.c).
func isOn(value string) bool {
	value = strings.ToLower(value)
	return value == "on" || value == "1" || value != "" && (strings.HasPrefix("true", value) || strings.HasPrefix("yes", value))
}

var quotedName = regexp.MustCompile(`"((?:[^"]|"")*)"`)

// standbySlots are the slots of the standbys that commits wait for: the readers of failover slots get nothing that
// these do not have, so nothing that the next primary lacks. All of them, whatever the quorum: any
// one may lead next.
func (p *confFiles) standbySlots() string {
	var names []string
	for _, m := range quotedName.FindAllStringSubmatch(p.syncNames, -1) {
		names = append(names, cluster.SlotName(strings.ReplaceAll(m[1], `""`, `"`)))
	}
	return strings.Join(names, ",")
}

// ownsStandbySlots reports whether the agent says which slots those are, and not the user's parameters.
func (p *confFiles) ownsStandbySlots() bool { return p.ownsSyncNames() && p.syncsSlots() }

// helpOn lets a primary's failover slot need newer rows of the catalogs only (catalog_xmin), so that PostgreSQL can
// begin to keep it on a replica: that one has kept no rows which were dead when it began. While some transaction
// runs at each moment, the slot's oldest row stays that of the snapshot by which they are decoded, and this
// PostgreSQL makes anew only when a transaction has changed a catalog (SnapBuildCommitTxn in snapbuild.c): it
// can be minutes until one does. So here is one, which leaves nothing, and what ran before it is noted in the WAL,
// which PostgreSQL itself does every 15 seconds. A large object is made and removed as no event trigger hears of it.
func (p *replication) helpOn(ctx context.Context, s cluster.Slot) error {
	conn, err := p.connect(ctx, p.address(), p.port, p.local.Load().Authentication.Superuser, s.Database, agentName)
	if err != nil {
		return fmt.Errorf("helping the logical slot %s on: %w", s.Name, err)
	}
	defer hangUpOn(conn)
	for _, sql := range []string{"SELECT pg_log_standby_snapshot()", "SELECT lo_unlink(lo_create(0))"} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("helping the logical slot %s on: %w", s.Name, err)
		}
	}
	return nil
}
