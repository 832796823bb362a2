package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/pg"
)

// AskSite asks all hosts of another site at once, by the user that replicates, how far they are, and
// compares the history of that one's timeline with the own one's, which is on timeline.
func (p *rewinder) AskSite(ctx context.Context, u Upstream, timeline int) (cluster.Site, error) {
	control, err := p.control(ctx)
	if err != nil {
		return cluster.Site{}, err
	}
	own, err := p.TimelineHistory(timeline)
	if err != nil && !errors.Is(err, os.ErrNotExist) { // archived and removed: of the others nothing is in common
		return cluster.Site{}, err
	}
	if until, limited := ctx.Deadline(); limited { // one that is silent must not cost the others' answers
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(until)*4/5)
		defer cancel()
	}
	ctx, found := context.WithCancel(ctx)
	defer found()
	hosts := strings.Split(u.Host, ",")
	answers, errs := make([]cluster.Site, len(hosts)), make([]error, len(hosts))
	var asking sync.WaitGroup
	for i, host := range hosts {
		one := u
		one.Host = host
		asking.Go(func() {
			answers[i], errs[i] = p.askHost(ctx, one, control.SystemIdentifier, own, timeline)
			if errs[i] == nil && answers[i].Primary && !answers[i].Unproved {
				found() // the others' answers change nothing
			}
		})
	}
	asking.Wait()
	var best cluster.Site
	for i, s := range answers {
		if errs[i] == nil && (best.Address == "" || moreOf(s, best) > 0) {
			best = s
		}
	}
	if best.Address == "" {
		return best, fmt.Errorf("none of the other site's hosts has answered: %w", errors.Join(errs...))
	}
	return best, nil
}

// moreOf compares what two hosts of a site answer: a primary tells more than a standby does, one that has proved whose it is
// more than one that has not, one that is further more than the other.
func moreOf(a, b cluster.Site) int {
	rank := func(yes bool) int {
		if yes {
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(rank(a.Primary), rank(b.Primary)), cmp.Compare(rank(b.Unproved), rank(a.Unproved)),
		cmp.Compare(a.Timeline, b.Timeline), cmp.Compare(a.LSN, b.LSN))
}

// askHost asks one host of another site.
func (p *rewinder) askHost(ctx context.Context, u Upstream, systemIdentifier string, own cluster.History, timeline int) (cluster.Site, error) {
	address := cluster.SiteAddress(u.Host, u.Port)
	conn, unproved, err := p.siteConn(ctx, u)
	if err != nil {
		return cluster.Site{}, fmt.Errorf("%s: %w", address, err)
	}
	defer hangUpOn(conn)
	id, on, lsn, err := identifySystem(ctx, conn)
	if err != nil {
		return cluster.Site{}, fmt.Errorf("%s: %w", address, err)
	}
	if id != systemIdentifier {
		return cluster.Site{}, fmt.Errorf("%s has the system identifier %s, this data directory %s: they are not of one cluster", address, id, systemIdentifier)
	}
	s := cluster.Site{Address: address, Timeline: on, LSN: lsn, Unproved: unproved}
	superuser := p.local.Load().Authentication.Superuser
	if !unproved {
		superuser = proving(u.Host, superuser)
	}
	if s.Primary, err = p.isPrimary(ctx, conn, u, superuser); err != nil {
		return cluster.Site{}, fmt.Errorf("asking %s whether it is a primary: %w", address, err)
	}
	if !s.Primary { // it may lack the history
		return s, nil
	}
	theirs, err := timelineHistory(ctx, conn, on)
	if err != nil {
		return cluster.Site{}, fmt.Errorf("%s: %w", address, err)
	}
	s.Common, s.Left = cluster.InCommon(own, timeline, theirs, on)
	return s, nil
}

// siteConn opens a replication connection to a host of another site, which has to prove whose it is. Where a SCRAM verifier, a
// password and pg_hba say that it can, one that does not has not answered. Elsewhere (cert, peer, trust, md5) an answer
// counts as unproved: as a primary beside this site it keeps another one from being made, and stops none.
func (p *upstreams) siteConn(ctx context.Context, u Upstream) (conn *pgconn.PgConn, unproved bool, err error) {
	role := p.local.Load().Authentication.Replication
	conn, err = p.replicationConnAs(ctx, u, proving(u.Host, role), agentName)
	if _, can := p.login.provesWhereItCan(u.Host, forReplication, role); !errors.Is(err, ErrUnproved) || can {
		return conn, false, err
	}
	conn, err = p.replicationConnAs(ctx, u, role, agentName)
	return conn, true, err
}

// timelineHistory asks for the history of a timeline. The first one has none.
func timelineHistory(ctx context.Context, conn *pgconn.PgConn, timeline int) (cluster.History, error) {
	if timeline <= 1 {
		return nil, nil
	}
	row, err := queryRow(ctx, conn, "TIMELINE_HISTORY "+strconv.Itoa(timeline))
	if err != nil {
		return nil, fmt.Errorf("the history of timeline %d: %w", timeline, err)
	}
	if len(row) < 2 {
		return nil, fmt.Errorf("the history of timeline %d: the answer has less than two columns", timeline)
	}
	return pg.ParseHistory(string(row[1]))
}
