package operator

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// Windows shows whether each kind of maintenance may be done in a shard now, by its maintenance windows, and when it may else.
// For one kind, if what is not empty, it is refused where it may not.
func Windows(ctx context.Context, c *Console, s *Shard, what string) error {
	kinds := cluster.MaintenanceKinds()
	if what != "" {
		if kinds = []cluster.Maintenance{cluster.Maintenance(strings.ToLower(what))}; !slices.Contains(cluster.MaintenanceKinds(), kinds[0]) {
			return usagef("--for %s: must be one of %s", what, strings.Trim(fmt.Sprint(cluster.MaintenanceKinds()), "[]"))
		}
	}
	snapshot, err := s.Read(ctx)
	if err != nil {
		return err
	}
	dynamic, _, err := taken().ParseJSON(snapshot.Config.Value)
	if err != nil {
		return fmt.Errorf("the key %s: %w", s.Keys.Config(), err)
	}
	t, now := Table{Columns: []Column{{Name: "Maintenance"}, {Name: "Now"}, {Name: "Next window"}}}, time.Now()
	refusal := ""
	for _, kind := range kinds {
		open, next := dynamic.MaintenanceWindows.Open(kind, now)
		begins, may := "", "yes"
		if !open {
			may, refusal = "no", dynamic.MaintenanceWindows.Refusal(kind, now)
		}
		if !next.IsZero() {
			begins = next.Format("Mon 2006-01-02 15:04 MST")
		}
		t.Rows = append(t.Rows, []Cell{text(string(kind)), {Text: may, Value: open}, text(begins)})
	}
	if err := c.Show(t); err != nil {
		return err
	}
	if what != "" && refusal != "" {
		return refusedf("%s: that is %s", s.Scope, refusal)
	}
	return nil
}
