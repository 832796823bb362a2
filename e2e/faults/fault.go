package faults

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Fault is one way to break the installation.
type Fault struct {
	Name string
	// Available says why the fault cannot be had on a site; nil: always.
	Available func(*Site) error
	// Inject breaks something. Before it does, it tells the stage how that is
	// taken back (Stage.Undo), so that a fault which fails half-way is healed,
	// too: heal is the sum of what was undone.
	Inject func(context.Context, *Stage) error
	// Hold returns when the fault has lasted long enough; nil: it is a moment.
	Hold   func(context.Context, *Stage) error
	Expect Expect
	// Timeout bounds injecting and holding, and again healing until the shard is
	// whole. Zero: two minutes.
	Timeout time.Duration
}

// Leader says what a fault may do to the leadership.
type Leader int

// The fates of a leader. A change that comes back to the same member is one.
const (
	Stays Leader = iota
	MayChange
	MustChange
)

// Cost says for how long a fault may stop writes.
type Cost int

const (
	// Nothing: writes go on.
	Nothing Cost = iota
	// Handover: a planned change of primary.
	Handover
	// Standby: until the primary no longer waits for a synchronous standby that
	// fell silent.
	Standby
	// Failover: until another member, or the same one, leads.
	Failover
	// Outage: as long as the fault lasts, and then a failover.
	Outage
)

// Expect is what a fault may cost. Acknowledged rows lost in synchronous
// mode, and a history that is not linearizable, are allowed under no fault.
type Expect struct {
	Leader Leader
	Writes Cost
	// AsyncLoss: without synchronous mode, acknowledged rows may be lost.
	AsyncLoss bool
	// Frozen: whatever could fence the primary stood still, which only a watchdog
	// covers; an overlap is measured and no violation.
	Frozen bool
}

// The parts of the limits that do not come from the lease. They leave room for a
// loaded machine: what is measured is in the report, and what is promised in
// docs/reliability.md; a limit tells a fault that was handled from one that was not.
const (
	promotionLimit = 10 * time.Second
	handoverLimit  = 5 * time.Second
	// standbyLimit covers wal_sender_timeout, 5 s in the lab.
	standbyLimit = 10 * time.Second
)

// limit is the longest gap between two acknowledged writes that a fault may
// cause which was held for that long.
func (e Expect) limit(t Timing, held time.Duration) time.Duration {
	failover := t.TTL + t.TTL/40 + 2*t.LoopWait + promotionLimit
	switch e.Writes {
	case Nothing:
		// A lease that ran out costs more, scheduling on a busy machine less.
		return max(t.TTL/2, 2*time.Second)
	case Handover:
		return handoverLimit
	case Standby:
		return standbyLimit + 2*t.LoopWait
	case Failover:
		return failover
	default:
		return held + failover
	}
}

// All is every fault, in the order in which they are documented.
func All() []Fault {
	return slices.Concat(crashes(), partitions(), consulFaults(), diskFaults(), otherFaults(), compounds())
}

// Choose returns the faults of a comma-separated list of names, all for "".
func Choose(names string) ([]Fault, error) {
	all := All()
	if names == "" {
		return all, nil
	}
	var chosen []Fault
	for name := range strings.SplitSeq(names, ",") {
		i := slices.IndexFunc(all, func(f Fault) bool { return f.Name == strings.TrimSpace(name) })
		if i < 0 {
			var known []string
			for _, f := range all {
				known = append(known, f.Name)
			}
			return nil, fmt.Errorf("fault %q: there is none of that name, only %s", name, strings.Join(known, ", "))
		}
		chosen = append(chosen, all[i])
	}
	return chosen, nil
}

func (f Fault) timeout() time.Duration {
	if f.Timeout > 0 {
		return f.Timeout
	}
	return 2 * time.Minute
}
