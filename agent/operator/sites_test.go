package operator

import (
	"encoding/json"
	"reflect"
	"testing"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// Who was followed is the other site after a promotion, unless it is a member of this shard.
func TestPromotionPatch(t *testing.T) {
	geneva, own := cluster.StandbyCluster{Host: "10.2.0.11,10.2.0.12", Port: 5432}, cluster.StandbyCluster{Host: "10.0.0.2", Port: 5432}
	site := func(host any, port, ignore any) map[string]any {
		return map[string]any{"host": host, "port": port, "ignore": ignore}
	}
	for name, test := range map[string]struct {
		standby cluster.StandbyCluster
		other   cluster.OtherSite
		ignore  bool
		want    any // other_site; "unchanged": it is not in the patch
	}{
		"whom it followed":               {geneva, cluster.OtherSite{}, false, site(geneva.Host, 5432, nil)},
		"and asks no more":               {geneva, cluster.OtherSite{}, true, site(geneva.Host, 5432, true)},
		"by the archive alone":           {cluster.StandbyCluster{RestoreCommand: "cp"}, cluster.OtherSite{}, false, "unchanged"},
		"it stays":                       {cluster.StandbyCluster{RestoreCommand: "cp"}, cluster.OtherSite{Host: "10.2.0.11", Port: 5433, Ignore: true}, false, site("10.2.0.11", 5433, nil)},
		"its own member":                 {own, cluster.OtherSite{Host: own.Host, Port: 5432}, false, nil},
		"its own member, nothing noted":  {own, cluster.OtherSite{}, false, "unchanged"},
		"its own member, asked no more":  {own, cluster.OtherSite{Host: own.Host, Port: 5432}, true, site(nil, nil, true)},
		"its own member beside another":  {own, cluster.OtherSite{Host: "10.0.0.3,10.2.0.11", Port: 5432}, false, site("10.2.0.11", 5432, nil)},
		"its own member at another port": {cluster.StandbyCluster{Host: "10.0.0.2", Port: 5433}, cluster.OtherSite{}, false, site("10.0.0.2", 5433, nil)},
	} {
		patch := promotionPatch(shardOf(nil), cluster.Dynamic{StandbyCluster: test.standby, OtherSite: test.other}, PromoteOptions{IgnoreOtherSite: test.ignore})
		got, changed := patch["other_site"]
		if !changed {
			got = "unchanged"
		}
		if patch["standby_cluster"] != nil || !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
	}
}

// A demotion that is taken back leaves the settings as they were, also what it had not written.
func TestFormerSite(t *testing.T) {
	for _, before := range []string{
		`{"ttl":8}`, `{"other_site":{"ignore":true}}`, `{"other_site":{"host":"10.2.0.11"}}`, `{"other_site":{"host":"10.2.0.11","port":5433},"ttl":8}`,
	} {
		former, err := formerSite(shardOf(func(s *cluster.Snapshot) { s.Config.Value = []byte(before) }))
		if err != nil {
			t.Fatal(err)
		}
		var want map[string]any
		if err := json.Unmarshal([]byte(before), &want); err != nil {
			t.Fatal(err)
		}
		demoted := cluster.MergePatch(want, map[string]any{
			"standby_cluster": map[string]any{"host": "10.3.0.1"}, "other_site": map[string]any{"host": "10.3.0.1", "port": 5432, "ignore": nil},
		})
		if got := cluster.MergePatch(demoted, former); !reflect.DeepEqual(got, want) {
			t.Errorf("%s became %v", before, got)
		}
	}
}
