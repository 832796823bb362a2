package cluster

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/lictor-ha/lictor/agent/printable"
)

// Slot is a replication slot by what the settings slots and ignore_slots tell slots apart.
type Slot struct {
	Name     string `json:"slot_name"`
	Type     string `json:"slot_type"` // SlotPhysical or SlotLogical
	Plugin   string `json:"plugin"`    // of a logical one, as is the database
	Database string `json:"database"`
}

// The types of slots.
const (
	SlotPhysical = "physical"
	SlotLogical  = "logical"
)

// PermanentSlots are those of the setting slots, sorted by name. One without a type is
// logical if it has a database and a plugin.
func (d Dynamic) PermanentSlots() []Slot {
	all := make([]Slot, 0, len(d.Slots))
	for _, name := range slices.Sorted(maps.Keys(d.Slots)) {
		slot := Slot{Name: name, Type: SlotPhysical}
		section := asMap(d.Slots[name])
		database, plugin := textOf(section["database"]), textOf(section["plugin"])
		if kind := textOf(section["type"]); kind == SlotLogical || kind == "" && database != "" && plugin != "" {
			slot.Type, slot.Database, slot.Plugin = SlotLogical, database, plugin
		}
		all = append(all, slot)
	}
	return all
}

func textOf(value any) string {
	text, _ := value.(string)
	return text
}

// IgnoresSlot reports whether ignore_slots says to leave a slot alone: all that one of its
// matchers names fits.
func (d Dynamic) IgnoresSlot(s Slot) bool {
	return slices.ContainsFunc(d.IgnoreSlots, func(matcher map[string]any) bool {
		for key, value := range map[string]string{"name": s.Name, "type": s.Type, "database": s.Database, "plugin": s.Plugin} {
			if want := matcher[key]; want != nil && want != "" && want != value {
				return false
			}
		}
		return len(matcher) > 0
	})
}

// maxSlotName is the greatest length of a replication slot's name (PostgreSQL's
// NAMEDATALEN - 1).
const maxSlotName = 63

// SlotName is the name of a member's replication slot: lower case, - and . as
// _, other characters as u and their decimal code, cut to 63 bytes (Patroni's rule).
// Different members can get one name by it; see Namesake.
func SlotName(member string) string {
	if len(member) <= maxSlotName && strings.IndexFunc(member, func(c rune) bool { return !inSlotName(c) }) < 0 {
		return member
	}
	var b strings.Builder
	for _, c := range strings.ToLower(member) {
		switch {
		case inSlotName(c):
			b.WriteRune(c)
		case c == '-', c == '.':
			b.WriteByte('_')
		default:
			fmt.Fprintf(&b, "u%04d", c)
		}
	}
	name := b.String()
	return name[:min(len(name), maxSlotName)]
}

func inSlotName(c rune) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '_' }

// ErrNamesake: another member of the shard has a name that makes the same replication slot.
var ErrNamesake = errors.New("another member has the same replication slot")

// Joins returns an error that wraps ErrNamesake when the member called name, which has
// no key yet, must not join the members that have one.
func (s Snapshot) Joins(name string) error {
	if _, known := s.Member(name); known {
		return nil // it is told by Problems: which of the two should go is not known
	}
	if other := s.Namesake(name); other != "" {
		return namesakeError(name, other)
	}
	return nil
}

func namesakeError(name, other string) error {
	return fmt.Errorf("%w: the slot of %s and of %s is %q; give one of them another name (setting name)",
		ErrNamesake, printable.Quote(name), printable.Quote(other), SlotName(name))
}

// Namesake returns another member whose replication slot has the same name as that of
// the member called name, empty when there is none. Only one of the two could stream;
// names that differ in case alone are one name to synchronous_standby_names, too.
func (s Snapshot) Namesake(name string) string {
	slot := SlotName(name)
	for i := range s.Members {
		if other := s.Members[i].Value.Name; other != name && SlotName(other) == slot {
			return other
		}
	}
	return ""
}
