package cluster

import (
	"strings"
	"testing"
)

func TestInCommon(t *testing.T) {
	// Geneva followed Zurich on timeline 3.
	three := History{{Timeline: 1, LSN: 100}, {Timeline: 2, LSN: 200}}
	for name, test := range map[string]struct {
		own      History
		on       int
		theirs   History
		theirsOn int
		common   int
		left     bool
	}{
		"one line":                                    {three, 3, three, 3, 3, false},
		"one line, the first":                         {nil, 1, nil, 1, 1, false},
		"it was promoted":                             {three, 3, append(three, TimelineSwitch{Timeline: 3, LSN: 300}), 5, 3, true},
		"we were promoted":                            {append(three, TimelineSwitch{Timeline: 3, LSN: 300}), 5, three, 3, 3, false},
		"both were, to other numbers":                 {append(three, TimelineSwitch{Timeline: 3, LSN: 310}), 4, append(three, TimelineSwitch{Timeline: 3, LSN: 300}), 5, 3, true},
		"both were, at one position":                  {append(three, TimelineSwitch{Timeline: 3, LSN: 300}), 4, append(three, TimelineSwitch{Timeline: 3, LSN: 300}), 5, 3, true},
		"both were, to one number":                    {append(three, TimelineSwitch{Timeline: 3, LSN: 310}), 4, append(three, TimelineSwitch{Timeline: 3, LSN: 300}), 4, 3, true},
		"it left an earlier one":                      {three, 3, History{{Timeline: 1, LSN: 100}, {Timeline: 2, LSN: 150}}, 4, 2, true},
		"nothing in common, though of one identifier": {History{{Timeline: 1, LSN: 100}}, 2, History{{Timeline: 3, LSN: 100}}, 4, 0, false},
	} {
		if common, left := InCommon(test.own, test.on, test.theirs, test.theirsOn); common != test.common || left != test.left {
			t.Errorf("%s: %d %v, want %d %v", name, common, left, test.common, test.left)
		}
	}
}

// Geneva was promoted from 3 to 5, and Zurich, which was cut off, had a failover to 4: Geneva succeeds
// Zurich, and Zurich does not succeed Geneva.
func TestSucceeds(t *testing.T) {
	geneva := Site{Primary: true, Timeline: 5, Common: 3, Left: true}
	zurich := Site{Primary: true, Timeline: 4, Common: 3, Left: true}
	if !geneva.Succeeds(0) || zurich.Succeeds(5) {
		t.Errorf("Geneva succeeds Zurich: %v, Zurich Geneva: %v", geneva.Succeeds(0), zurich.Succeeds(5))
	}
	geneva.Primary = false
	if geneva.Succeeds(0) {
		t.Error("a standby has succeeded")
	}
}

func TestOtherSite(t *testing.T) {
	for name, test := range map[string]struct {
		raw  map[string]any
		want OtherSite
		err  string
	}{
		"none":          {nil, OtherSite{}, ""},
		"two hosts":     {map[string]any{"host": "10.2.0.11, 10.2.0.12"}, OtherSite{Host: "10.2.0.11,10.2.0.12", Port: 5432}, ""},
		"a port":        {map[string]any{"host": "g", "port": 5433}, OtherSite{Host: "g", Port: 5433}, ""},
		"ignored":       {map[string]any{"ignore": true}, OtherSite{Ignore: true}, ""},
		"no host":       {map[string]any{"port": 5433}, OtherSite{}, "other_site: needs host"},
		"not a host":    {map[string]any{"host": "a b"}, OtherSite{}, "other_site.host"},
		"not a boolean": {map[string]any{"host": "g", "ignore": "maybe"}, OtherSite{}, "other_site.ignore"},
	} {
		d, _, err := ParseDynamic(map[string]any{"other_site": test.raw})
		switch {
		case test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)):
			t.Errorf("%s: %v, want %q", name, err, test.err)
		case test.err == "" && (err != nil || d.OtherSite != test.want):
			t.Errorf("%s: %+v %v", name, d.OtherSite, err)
		}
	}
	if (OtherSite{Host: "g", Ignore: true}).Known() || !(OtherSite{Host: "g"}).Known() {
		t.Error("who is asked")
	}
}

func TestRemoteAddress(t *testing.T) {
	for upstream, want := range map[string]string{
		StandbyCluster{Host: "10.1.0.11,10.1.0.12", Port: 5433}.Upstream(): "10.1.0.11,10.1.0.12",
		StandbyCluster{Host: "fd00::1", Port: 5433}.Upstream():             "fd00::1",
		StandbyCluster{RestoreCommand: "cp"}.Upstream():                    "",
		"db2": "",
	} {
		if host, port := RemoteAddress(upstream); host != want || want != "" && port != 5433 {
			t.Errorf("%s: %s %d", upstream, host, port)
		}
	}
}

// A member is known by its address, however that is written; hosts of another site are not.
func TestStrangers(t *testing.T) {
	member := func(name, url string) Entry[Member] {
		return Entry[Member]{Value: Member{Name: name, ConnURL: url}, ModifyIndex: 1}
	}
	s := Snapshot{Members: []Entry[Member]{member("a", "postgres://10.1.0.11:5432/postgres"), member("b", "postgres://DB2.zurich:5433/postgres"), member("c", "postgres://[fd00::1]/postgres"), member("d", "what?")}}
	for _, test := range []struct {
		hosts string
		port  int
		rest  string
		wrong string
	}{
		{"10.2.0.11,10.2.0.12", 5432, "10.2.0.11,10.2.0.12", ""},
		{"10.1.0.11", 5433, "10.1.0.11", ""}, // two sites may share hosts
		{"10.2.0.11,10.1.0.11", 5432, "10.2.0.11", "10.1.0.11:5432 is a, a member of this shard"},
		{"db2.ZURICH", 5433, "", "db2.ZURICH:5433 is b, a member of this shard"},
		{"fd00:0::1", 5432, "", "[fd00:0::1]:5432 is c, a member of this shard"},
		{"", 5432, "", ""},
	} {
		err := s.CheckSite(test.hosts, test.port)
		if rest := s.Strangers(test.hosts, test.port); rest != test.rest || (err == nil) != (test.wrong == "") || err != nil && err.Error() != test.wrong {
			t.Errorf("%s: %q, %v", test.hosts, rest, err)
		}
	}
}
