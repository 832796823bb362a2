package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/printable"
)

// This file is the planned change of primary: the poolers are asked to hold the
// shard's clients, PostgreSQL is stopped with all of its WAL received, and the
// lease is given to the successor by name (design 7.6).

const (
	// quietPatience is how long transactions may still run, once their clients
	// are held, before a handover that may cancel them goes on.
	quietPatience = 2 * time.Second
	// shortPatience is the same for one that is refused while transactions run: the
	// short ones of a busy shard end by themselves.
	shortPatience = 500 * time.Millisecond
	// pokeLimit bounds telling a bouncer that a route was written; a bouncer that
	// does not hear it reads of it in Consul.
	pokeLimit = time.Second
	// answerSlack is what a bouncer's answer may take beyond the time that it was
	// asked to wait.
	answerSlack = 500 * time.Millisecond
	// mostAsked is how many bouncers are asked at the same time: any session may register
	// as many as it likes, and Consul and PostgreSQL need file descriptors, too.
	mostAsked = 128
)

// holdClients announces the handover and waits until every bouncer holds the
// shard's clients and their transactions have ended. A bouncer that does not
// answer holds up nothing: its clients see what they would without it.
func (a *Agent) holdClients(ctx context.Context, session string, plan cluster.Handover, onBusy string) error {
	bouncers, err := a.bouncers(ctx)
	if err != nil || len(bouncers) == 0 {
		return err
	}
	if onBusy == cluster.OnBusyRefuse { // before anybody waits
		switch long, err := a.pg.LongTransactions(ctx, shortPatience); {
		case err != nil:
			return err
		case long > 0:
			return fmt.Errorf("%d transactions have run for more than %v; end them, or ask for on_busy: wait or cancel", long, shortPatience)
		}
	}
	if err := a.store.Announce(ctx, session, plan); err != nil {
		return fmt.Errorf("announcing the handover: %w", err)
	}
	patience := quietPatience
	switch onBusy {
	case cluster.OnBusyWait:
		patience = time.Duration(plan.DeadlineMS) * time.Millisecond / 2
	case cluster.OnBusyRefuse:
		patience = shortPatience
	}
	held := 0
	var busy []told
	for _, answer := range a.tellBouncers(ctx, bouncers, plan, patience) {
		switch {
		case answer.err != nil:
			a.log.Warn().Err(answer.err).Str("bouncer", answer.bouncer).Msg("does not hold its clients for the handover; they see it")
		case answer.Problem != "":
			a.log.Warn().Str("problem", printable.Text(answer.Problem)).Str("bouncer", answer.bouncer).Msg("does not hold its clients for the handover; they see it")
		default:
			held++
			if answer.Busy > 0 { // somebody's less than none hides nobody else's
				busy = append(busy, answer)
			}
		}
	}
	a.log.Info().Int("bouncers", len(bouncers)).Int("holding", held).Strs("busy", whoIsBusy(busy)).Msg("clients are held for the handover")
	if len(busy) > 0 && (onBusy == cluster.OnBusyWait || onBusy == cluster.OnBusyRefuse) {
		clients, err := a.pg.Clients(ctx)
		if err := veto(busy, clients, err); err != nil {
			return err
		}
		a.log.Warn().Strs("busy", whoIsBusy(busy)).Msg("bouncers say that transactions run, and no client has a connection to PostgreSQL: not believed")
	}
	return ctx.Err()
}

// veto says why a handover that must not cancel anything is called off. Any session may
// register as a bouncer; so they are believed as far as PostgreSQL has clients, and named.
func veto(busy []told, clients int, unasked error) error {
	if len(busy) == 0 || unasked == nil && clients == 0 {
		return nil
	}
	return fmt.Errorf("transactions (in session pooling: sessions) of clients still run, by the word of %s; end them, or ask for on_busy: cancel", strings.Join(whoIsBusy(busy), ", "))
}

// mostNamed is how many bouncers a message names.
const mostNamed = 8

func whoIsBusy(answers []told) []string {
	var who []string
	for i, answer := range answers {
		if i == mostNamed {
			return append(who, fmt.Sprintf("%d others", len(answers)-i))
		}
		who = append(who, fmt.Sprintf("bouncer %s: %d", printable.Short(answer.bouncer, printable.MaxValue), answer.Busy))
	}
	return who
}

// bouncers are those that serve this shard.
func (a *Agent) bouncers(ctx context.Context) ([]cluster.Bouncer, error) {
	all, err := a.store.Bouncers(ctx)
	if err != nil {
		return nil, err
	}
	var mine []cluster.Bouncer
	for _, b := range all {
		if b.Serves(a.cfg.Namespace, a.cfg.Scope) {
			mine = append(mine, b)
		}
	}
	return mine, nil
}

// told is a bouncer's answer to a handover, or why there is none.
type told struct {
	cluster.HandoverAnswer
	bouncer string
	err     error
}

// tellBouncers tells all bouncers of a handover at once, who may wait with their
// answers.
func (a *Agent) tellBouncers(ctx context.Context, bouncers []cluster.Bouncer, plan cluster.Handover, wait time.Duration) []told {
	request := cluster.HandoverRequest{
		Namespace: a.cfg.Namespace, Scope: a.cfg.Scope, Handover: plan, WaitMS: wait.Milliseconds(),
	}
	answers := make([]told, len(bouncers))
	ctx, cancel := context.WithTimeout(ctx, wait+answerSlack)
	defer cancel()
	var telling errgroup.Group
	telling.SetLimit(mostAsked)
	for i, b := range bouncers {
		telling.Go(func() error {
			answers[i].bouncer = b.Name
			answers[i].err = a.poolers.PostJSON(ctx, b.URL, "/handover", request, &answers[i].HandoverAnswer)
			if answers[i].err == nil && answers[i].ID != plan.ID {
				answers[i].err = errors.New("it answers to another handover")
			}
			return nil
		})
	}
	_ = telling.Wait() // each answer has its own error
	return answers
}

// poke tells all bouncers at once that the route has changed, so that none waits
// for a Consul agent which hangs.
func (a *Agent) poke(route cluster.Route, index uint64) {
	ctx, cancel := context.WithTimeout(a.ctx, 2*pokeLimit)
	a.effect(ctx, cancel, func(ctx context.Context) func() {
		bouncers, err := a.bouncers(ctx)
		if err != nil {
			return func() { a.log.Debug().Err(err).Msg("bouncers could not be poked") }
		}
		poke := cluster.Poke{Namespace: a.cfg.Namespace, Scope: a.cfg.Scope, Index: index, Route: &route}
		ctx, cancel := context.WithTimeout(ctx, pokeLimit)
		defer cancel()
		var poking errgroup.Group
		poking.SetLimit(mostAsked)
		for _, b := range bouncers {
			poking.Go(func() error {
				if err := a.poolers.PostJSON(ctx, b.URL, "/poke", poke, nil); err != nil {
					a.log.Debug().Err(err).Str("bouncer", b.Name).Msg("could not be poked")
				}
				return nil
			})
		}
		_ = poking.Wait() // none fails
		return func() {}
	})
}
