package cluster

import (
	"errors"
	"strings"
	"testing"
)

// Nobody lets standbys stand in for the lease while a member is registered that does not know of it.
func TestCheckTakeover(t *testing.T) {
	knows := Entry[Member]{ModifyIndex: 7, Value: Member{Name: "a", Version: "0.2.0", Lictor: &MemberLictor{QuorumTakeover: true}}}
	old := Entry[Member]{ModifyIndex: 8, Value: Member{Name: "b", Version: "0.1.0", Lictor: &MemberLictor{}}}
	patroni := Entry[Member]{ModifyIndex: 9, Value: Member{Name: "c", Version: "4.1.0"}}
	broken := Entry[Member]{ModifyIndex: 9, Err: errors.New("no JSON")}
	lease, quorum := Dynamic{Takeover: TakeoverLease}, Dynamic{Takeover: TakeoverQuorum}
	for name, test := range map[string]struct {
		members   []Entry[Member]
		old, next Dynamic
		want      string
	}{
		"all know it":                {[]Entry[Member]{knows}, lease, quorum, ""},
		"the present one is invalid": {[]Entry[Member]{knows}, Dynamic{}, quorum, ""},
		"an earlier version":         {[]Entry[Member]{knows, old}, lease, quorum, "that of b (Lictor 0.1.0) does not: upgrade it"},
		"Patroni":                    {[]Entry[Member]{knows, patroni}, Dynamic{}, quorum, "c is run by Patroni 4.1.0"},
		"not understood":             {[]Entry[Member]{broken}, lease, quorum, "not understood: no JSON"},
		"another change":             {[]Entry[Member]{old, patroni, broken}, quorum, quorum, ""},
		"back to the lease":          {[]Entry[Member]{old}, quorum, lease, ""},
		"lease all the time":         {[]Entry[Member]{old}, lease, lease, ""},
	} {
		err := Snapshot{Members: test.members}.CheckTakeover(test.old, test.next)
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}
