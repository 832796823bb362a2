package cluster

import (
	"strings"
	"testing"
)

func TestKeys(t *testing.T) {
	k := NewKeys("/service/", "batman", "lictor/")
	for got, want := range map[string]string{
		k.Prefix():          "service/batman/",
		k.Initialize():      "service/batman/initialize",
		k.Config():          "service/batman/config",
		k.Leader():          "service/batman/leader",
		k.Members():         "service/batman/members/",
		k.Member("pg-1"):    "service/batman/members/pg-1",
		k.Status():          "service/batman/status",
		k.History():         "service/batman/history",
		k.Failover():        "service/batman/failover",
		k.Sync():            "service/batman/sync",
		k.Failsafe():        "service/batman/failsafe",
		k.Routes():          "lictor/routes/",
		k.Route():           "lictor/routes/service/batman",
		k.Bouncers():        "lictor/bouncers/",
		k.BouncersApplied(): "lictor/bouncers-applied/",
		k.Handover():        "lictor/handovers/service/batman",
		k.Evacuation("db1"): "lictor/evacuations/service/db1",
		k.Rebalance():       "lictor/rebalances/service",
		k.Scope():           "batman",
		k.Namespace():       "service",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if got, want := NewKeys("", "s", ""), NewKeys(DefaultNamespace, "s", DefaultRoutesPrefix); got != want {
		t.Errorf("defaults: %+v, want %+v", got, want)
	}
	if got := NewKeys("/", "/s/", "//"); got != NewKeys("", "s", "") {
		t.Errorf("nothing but slashes: %+v", got)
	}
	if got := NewKeys("a/b", "s", "x/y").Route(); got != "x/y/routes/a/b/s" {
		t.Errorf("route of nested prefixes: %s", got)
	}
}

func TestSplitRoute(t *testing.T) {
	for _, k := range []Keys{NewKeys("", "s1", ""), NewKeys("db/prod", "s1", "x/y")} {
		namespace, scope, err := k.SplitRoute(k.Route())
		if err != nil || namespace != k.Namespace() || scope != "s1" {
			t.Errorf("%s: %q %q %v", k.Route(), namespace, scope, err)
		}
	}
	k := NewKeys("", "s", "")
	for _, key := range []string{"", "lictor/routes/", "lictor/routes/s", "lictor/routes//s", "lictor/routes/service/", "lictor/bouncers/a/b", "other/lictor/routes/a/b"} {
		if namespace, scope, err := k.SplitRoute(key); err == nil || !strings.Contains(err.Error(), "NAMESPACE/SCOPE") {
			t.Errorf("%q: %q %q %v", key, namespace, scope, err)
		}
	}
}
