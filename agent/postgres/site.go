package postgres

import (
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
			if errs[i] == nil && answers[i].Primary {
				found() // the others' answers change nothing
			}
		})
	}
	asking.Wait()
	var best cluster.Site
	for i, s := range answers {
		further := s.Timeline > best.Timeline || s.Timeline == best.Timeline && s.LSN > best.LSN
		if errs[i] == nil && (best.Address == "" || s.Primary && !best.Primary || s.Primary == best.Primary && further) {
			best = s
		}
	}
	if best.Address == "" {
		return best, fmt.Errorf("none of the other site's hosts has answered: %w", errors.Join(errs...))
	}
	return best, nil
}

// askHost asks one host of another site.
func (p *rewinder) askHost(ctx context.Context, u Upstream, systemIdentifier string, own cluster.History, timeline int) (cluster.Site, error) {
	address := cluster.SiteAddress(u.Host, u.Port)
	conn, err := p.replicationConn(ctx, u)
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
	s := cluster.Site{Address: address, Timeline: on, LSN: lsn}
	if s.Primary, err = p.isPrimary(ctx, conn, u); err != nil {
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
