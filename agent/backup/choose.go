package backup

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/cluster"
)

// Source is where a backup is taken from.
type Source struct {
	// Member is the one whose files are read.
	Member string
	// Standby: it is a replica, and the leader is only told of the beginning and the end.
	Standby bool
	// Why in words.
	Why string
}

// agentLimit bounds a question to an agent.
const agentLimit = 5 * time.Second

// mostLag is how far behind a replica may be that a backup is taken from: pgBackRest waits a
// minute (archive-timeout) until it has replayed the beginning of the backup.
const mostLag = 16 << 20

// ErrNoLeader: a backup needs a primary, which says where it begins.
var ErrNoLeader = errors.New("the shard has no leader: no backup can be taken")

// Choose finds the member to back up from: a replica that streams on the leader's timeline
// and is hardly behind; where there are several one that commits do not wait for, and of
// these the first by name, so that all who ask choose the same. Without one the leader.
// Members for which able is false are left out; nil: none are.
func Choose(shard api.ClusterView, able func(member string) bool) (Source, error) {
	i := slices.IndexFunc(shard.Members, func(m api.MemberView) bool { return m.Role == "leader" })
	if i < 0 {
		return Source{}, ErrNoLeader
	}
	leader := shard.Members[i]
	var fit []api.MemberView
	var unfit []string
	for _, m := range shard.Members {
		if m.Name == leader.Name {
			continue
		}
		if able != nil && !able(m.Name) {
			unfit = append(unfit, m.Name+" is not known to pgBackRest")
			continue
		}
		if why := unfitFor(m, leader); why != "" {
			unfit = append(unfit, m.Name+" "+why)
			continue
		}
		fit = append(fit, m)
	}
	if len(fit) == 0 {
		why := "it has no replica"
		if len(unfit) > 0 {
			why = strings.Join(unfit, "; ")
		}
		return Source{Member: leader.Name, Why: "the leader: " + why}, nil
	}
	waited := func(m api.MemberView) int {
		if m.Role == cluster.RoleReplica {
			return 0
		}
		return 1
	}
	slices.SortFunc(fit, func(a, b api.MemberView) int {
		return cmp.Or(waited(a)-waited(b), strings.Compare(a.Name, b.Name))
	})
	why := "a replica that commits do not wait for"
	if waited(fit[0]) > 0 {
		why = "a synchronous standby, as no other replica is fit"
	}
	return Source{Member: fit[0].Name, Standby: true, Why: why}, nil
}

// unfitFor says why no backup is taken from a replica, empty: it is fit. A lag that is not
// known, as in the first moments of a stream, does not count: pgBackRest looks itself.
func unfitFor(m, leader api.MemberView) string {
	lag := float64(0)
	if m.Lags != nil {
		switch n := m.Lag.(type) {
		case float64:
			lag = n
		case int64:
			lag = float64(n)
		}
	}
	switch {
	case m.State != "streaming":
		return "is " + m.State
	case m.Timeline != leader.Timeline:
		return fmt.Sprintf("is on timeline %d", m.Timeline)
	case m.ReplayStandsStill != "":
		return "does not replay"
	case lag > mostLag:
		return fmt.Sprintf("is %.0f MB behind", lag/(1<<20))
	}
	return ""
}
