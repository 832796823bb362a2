package cluster

import "testing"

func TestLag(t *testing.T) {
	const mega = int64(1 << 20)
	knew := func(lsn int64) *MemberLictor { return &MemberLictor{LeaderLSN: lsn} }
	for name, c := range map[string]struct {
		leader, position int64
		says             *MemberLictor
		want             int64 // negative: not known
	}{
		"it has all that the leader had":            {100 * mega, 100 * mega, knew(100 * mega), 0},
		"the leader has gone on since":              {116 * mega, 100 * mega, knew(99 * mega), 0},
		"it lagged when it looked":                  {116 * mega, 97 * mega, knew(100 * mega), 3 * mega},
		"it is ahead of the last beat":              {100 * mega, 101 * mega, knew(100 * mega), 0},
		"a failover has lost what the leader had":   {90 * mega, 89 * mega, knew(100 * mega), mega},
		"it has not looked since it knew":           {100 * mega, 90 * mega, knew(0), -1},
		"its position is not known":                 {100 * mega, 0, knew(100 * mega), -1},
		"the leader's position is not known":        {0, 90 * mega, knew(100 * mega), -1},
		"a member of Patroni's":                     {100 * mega, 97 * mega, nil, 3 * mega},
		"a member of Patroni's, position not known": {100 * mega, 0, nil, -1},
	} {
		t.Run(name, func(t *testing.T) {
			s := Snapshot{Status: Entry[Status]{ModifyIndex: 1, Value: Status{OpTime: c.leader}}}
			got, known := s.Lag(Member{Lictor: c.says}, c.position)
			if known != (c.want >= 0) || known && got != c.want {
				t.Errorf("%d (known: %v), want %d", got, known, c.want)
			}
		})
	}
	if _, known := (Snapshot{}).Lag(Member{}, mega); known {
		t.Error("without the key status a lag is known")
	}
}
