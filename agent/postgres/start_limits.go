package postgres

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// This file is about values with which PostgreSQL takes its configuration, and then ends: there is more in the data, or the host has
// less, than they allow. A trial (trial.go) has no data, so these are compared here.

// kept is what the data have that a start needs room for.
type kept struct {
	Slots, Prepared, Origins int
	// Logical is one of the logical slots; empty: there is none.
	Logical string
}

// refusedByData says for which value PostgreSQL would end at its start, by what the data have; empty: for none, or nobody can tell. values are
// those that all members have alike (commandLineValues), lines the others.
func (p *checker) refusedByData(ctx context.Context, values map[string]string, lines []confSetting) string {
	k, err := p.keeps(ctx)
	if err != nil {
		p.log.Warn().Err(err).Msg("it cannot be told whether PostgreSQL would start with what its data have")
		return ""
	}
	less := func(name string, value, than int, what, cure string) string {
		if value >= than {
			return ""
		}
		return fmt.Sprintf("%s: %d, and there are %d %s (%s)", name, value, than, what, cure)
	}
	slots, prepared, connections := whole(values["max_replication_slots"]), whole(values["max_prepared_transactions"]), whole(values["max_connections"])
	origins, originsName := slots, "max_replication_slots"
	reserved := 0
	for name, fallback := range map[string]int{"superuser_reserved_connections": 3, "reserved_connections": 0} {
		n := fallback
		if line, set := lastOf(lines, name); set {
			n = whole(line.Value)
		}
		reserved += n
	}
	if p.major >= 18 {
		origins, originsName = 10, "max_active_replication_origins"
		if line, set := lastOf(lines, originsName); set {
			origins = whole(line.Value)
		}
	}
	if values["wal_level"] != "logical" && k.Logical != "" {
		return fmt.Sprintf("wal_level: %s, and there is the logical slot %s (drop it first, and whatever makes it: slots of the dynamic configuration)", values["wal_level"], k.Logical)
	}
	for _, why := range []string{
		less("max_replication_slots", slots, k.Slots, "slots", "drop those that nobody needs, or allow as many"),
		less("max_prepared_transactions", prepared, k.Prepared, "prepared transactions", "end them first: pg_prepared_xacts"),
		less(originsName, origins, k.Origins, "replication origins", "drop those that nobody needs, or allow as many"),
		less("max_connections", connections, reserved+1, "that superuser_reserved_connections and reserved_connections need", "allow more"),
	} {
		if why != "" {
			return why
		}
	}
	return ""
}

// whole reads a number of a configuration that PostgreSQL has taken. What is none is no reason to refuse anything.
func whole(text string) int {
	n, err := strconv.ParseInt(strings.TrimSpace(text), 0, 32)
	if err != nil {
		return math.MaxInt32
	}
	return int(n)
}

// keeps asks PostgreSQL what it has, or looks at its files where it is down.
func (p *checker) keeps(ctx context.Context) (kept, error) {
	if p.process.pid() != 0 {
		if k, err := p.keepsRunning(ctx); err == nil {
			return k, nil
		}
	}
	return p.keepsDown()
}

func (p *checker) keepsRunning(ctx context.Context) (k kept, err error) {
	conn, err := p.dedicated(ctx)
	if err != nil {
		return k, err
	}
	defer hangUpOn(conn)
	const query = `SELECT (SELECT count(*) FROM pg_catalog.pg_replication_slots WHERE NOT temporary), (SELECT count(*) FROM pg_catalog.pg_prepared_xacts),
		(SELECT count(*) FROM pg_catalog.pg_replication_origin_status),
		COALESCE((SELECT min(slot_name::text) FROM pg_catalog.pg_replication_slots WHERE slot_type = 'logical' AND NOT temporary), '')`
	err = conn.QueryRow(ctx, query).Scan(&k.Slots, &k.Prepared, &k.Origins, &k.Logical)
	if err != nil {
		err = fmt.Errorf("asking PostgreSQL for its slots: %w", err)
	}
	return k, err
}

const (
	// originHead are the magic number and the checksum of pg_logical/replorigin_checkpoint, in bytes, and originSize is what
	// each origin has there (PostgreSQL's src/backend/replication/logical/origin.c).
	originHead, originSize = 8, 16
	databaseAt             = slotHead + slotNameSize
)

// keepsDown reads what a shutdown has left. Of one that crashed, transactions may be prepared in the WAL alone.
func (p *checker) keepsDown() (k kept, err error) {
	slots, err := p.disk.ReadDir(p.inData("pg_replslot"))
	if err != nil {
		return k, fmt.Errorf("slots: %w", err)
	}
	for _, e := range slots {
		state, err := p.disk.ReadFile(p.inData(filepath.Join("pg_replslot", e.Name(), "state")))
		switch {
		case errors.Is(err, os.ErrNotExist):
			continue // it was being dropped
		case err != nil:
			return k, fmt.Errorf("slots: %w", err)
		case len(state) < restartLSNAt || strings.HasSuffix(e.Name(), ".tmp") || binary.NativeEndian.Uint32(state[persistenceAt:]) != slotPersistent:
			continue
		}
		k.Slots++
		if binary.NativeEndian.Uint32(state[databaseAt:]) != 0 && (k.Logical == "" || e.Name() < k.Logical) {
			k.Logical = e.Name()
		}
	}
	prepared, err := p.disk.ReadDir(p.inData("pg_twophase"))
	if err != nil {
		return k, fmt.Errorf("prepared transactions: %w", err)
	}
	k.Prepared = len(prepared)
	switch origins, err := p.disk.ReadFile(p.inData("pg_logical/replorigin_checkpoint")); {
	case err == nil:
		k.Origins = max(0, len(origins)-originHead) / originSize
	case !errors.Is(err, os.ErrNotExist):
		return k, fmt.Errorf("replication origins: %w", err)
	}
	return k, nil
}

// refusedByHost says how many huge pages the host lacks where PostgreSQL is to start with them alone; empty: it has them, or that cannot be told.
// Those that are in use by now may be PostgreSQL's own.
func (p *checker) refusedByHost(ctx context.Context, dir string, args []string, lines []confSetting) string {
	line, _ := lastOf(lines, "huge_pages")
	if only, err := cluster.ParseBoolean(line.Value); err != nil || !only {
		return "" // try, or off
	}
	if line, set := lastOf(lines, "huge_page_size"); set && whole(line.Value) != 0 {
		return ""
	}
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return ""
	}
	more, err := os.ReadFile("/proc/sys/vm/nr_overcommit_hugepages")
	if err != nil {
		return ""
	}
	has := whole(string(more))
	if i := slices.IndexFunc(strings.Split(string(text), "\n"), func(l string) bool { return strings.HasPrefix(l, "HugePages_Total:") }); i >= 0 {
		has += whole(strings.TrimPrefix(strings.Split(string(text), "\n")[i], "HugePages_Total:"))
	}
	needs := 1
	if p.major >= 15 {
		// On the trial's directory: on that of a PostgreSQL that runs it refuses to be asked.
		args = append(slices.Clone(args[2:]), "-D", dir, "--data_directory="+dir, "--config_file="+filepath.Join(dir, "postgresql.conf"))
		out, err := p.run(ctx, "postgres", append(args, "-C", "shared_memory_size_in_huge_pages")...)
		if err != nil {
			return ""
		}
		needs = whole(out)
	}
	if needs == math.MaxInt32 || has >= needs {
		return ""
	}
	return fmt.Sprintf("huge_pages: on, and the host has %d huge pages of the %d that PostgreSQL needs (vm.nr_hugepages)", has, needs)
}
