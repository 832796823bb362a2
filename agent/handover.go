package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/consul"
	"github.com/lictor-ha/lictor/agent/postgres"
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

// bouncers are the poolers' companions as this agent talks to them, on goroutines of its own.
type bouncers struct {
	namespace, scope string
	client           *api.BouncerClient
	store            *consul.Store
	pg               *postgres.Instance
	log              zerolog.Logger
}

// hold announces the handover and waits until every bouncer holds the
// shard's clients and their transactions have ended. A bouncer that does not
// answer holds up nothing: its clients see what they would without it.
func (b *bouncers) hold(ctx context.Context, session string, plan cluster.Handover, onBusy string) error {
	all, err := b.list(ctx)
	if err != nil || len(all) == 0 {
		return err
	}
	if onBusy == cluster.OnBusyRefuse { // before anybody waits
		switch long, err := b.pg.LongTransactions(ctx, shortPatience); {
		case err != nil:
			return err
		case long > 0:
			return fmt.Errorf("%d transactions have run for more than %v; end them, or ask for on_busy: wait or cancel", long, shortPatience)
		}
	}
	if err := b.store.Announce(ctx, session, plan); err != nil {
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
	var busy, silent []bouncerAnswer
	for _, answer := range b.tell(ctx, all, plan, patience) {
		switch {
		case answer.err != nil:
			silent = append(silent, answer)
			b.log.Warn().Err(answer.err).Str("bouncer", answer.bouncer).Msg("does not hold its clients for the handover; they see it")
		case answer.Problem != "":
			silent = append(silent, answer)
			b.log.Warn().Str("problem", printable.Text(answer.Problem)).Str("bouncer", answer.bouncer).Msg("does not hold its clients for the handover; they see it")
		default:
			held++
			if answer.Busy > 0 { // somebody's less than none hides nobody else's
				busy = append(busy, answer)
			}
		}
	}
	b.log.Info().Int("bouncers", len(all)).Int("holding", held).Strs("busy", whoIsBusy(busy)).Msg("clients are held for the handover")
	if onBusy != cluster.OnBusyWait && onBusy != cluster.OnBusyRefuse {
		return ctx.Err()
	}
	if len(silent) > 0 { // their clients go on
		switch running, err := b.pg.LongTransactions(ctx, 0); {
		case err != nil:
			return err
		case running > 0:
			return fmt.Errorf("%d transactions still run, and clients are not held by %s; ask for on_busy: cancel", running, strings.Join(names(silent, bouncerAnswer.name), ", "))
		}
	}
	if len(busy) > 0 {
		clients, err := b.pg.Clients(ctx)
		if err := veto(busy, clients, err); err != nil {
			return err
		}
		b.log.Warn().Strs("busy", whoIsBusy(busy)).Msg("bouncers say that transactions run, and no client has a connection to PostgreSQL: not believed")
	}
	return ctx.Err()
}

// veto says why a handover that must not cancel anything is called off. Any session may
// register as a bouncer; so they are believed as far as PostgreSQL has clients, and named.
func veto(busy []bouncerAnswer, clients int, unasked error) error {
	if len(busy) == 0 || unasked == nil && clients == 0 {
		return nil
	}
	return fmt.Errorf("transactions (in session pooling: sessions) of clients still run, by the word of %s; end them, or ask for on_busy: cancel", strings.Join(whoIsBusy(busy), ", "))
}

// mostNamed is how many bouncers a message names.
const mostNamed = 8

func whoIsBusy(answers []bouncerAnswer) []string {
	return names(answers, func(a bouncerAnswer) string { return fmt.Sprintf("%s: %d", a.name(), a.Busy) })
}

// names says of bouncers what name does, of as many as a message names.
func names(answers []bouncerAnswer, name func(bouncerAnswer) string) (who []string) {
	for i, answer := range answers {
		if i == mostNamed {
			return append(who, fmt.Sprintf("%d others", len(answers)-i))
		}
		who = append(who, name(answer))
	}
	return who
}

// list is those that serve this shard.
func (b *bouncers) list(ctx context.Context) ([]cluster.Bouncer, error) {
	all, err := b.store.Bouncers(ctx)
	if err != nil {
		return nil, err
	}
	var mine []cluster.Bouncer
	for _, one := range all {
		if one.Serves(b.namespace, b.scope) {
			mine = append(mine, one)
		}
	}
	return mine, nil
}

// bouncerAnswer is a bouncer's answer to a handover, or why there is none.
type bouncerAnswer struct {
	cluster.HandoverAnswer
	bouncer string
	err     error
}

func (a bouncerAnswer) name() string {
	return "bouncer " + printable.Short(a.bouncer, printable.MaxValue)
}

// tell tells all bouncers of a handover at once, who may wait with their
// answers.
func (b *bouncers) tell(ctx context.Context, all []cluster.Bouncer, plan cluster.Handover, wait time.Duration) []bouncerAnswer {
	request := cluster.HandoverRequest{
		Namespace: b.namespace, Scope: b.scope, Handover: plan, WaitMS: wait.Milliseconds(),
	}
	answers := make([]bouncerAnswer, len(all))
	b.each(ctx, max(wait, cluster.HandoverWaitLeast)+answerSlack, all, func(ctx context.Context, i int, one cluster.Bouncer) {
		answers[i].bouncer = one.Name
		answers[i].err = b.client.PostJSON(ctx, one.URL, "/handover", request, &answers[i].HandoverAnswer)
		if answers[i].err == nil && answers[i].ID != plan.ID {
			answers[i].err = errors.New("response is for a different handover")
		}
	})
	return answers
}

// poke tells all bouncers at once that the route has changed, so that none waits
// for a Consul agent which hangs.
func (b *bouncers) poke(ctx context.Context, route cluster.Route, index uint64) {
	all, err := b.list(ctx)
	if err != nil {
		b.log.Debug().Err(err).Msg("bouncers could not be poked")
		return
	}
	poke := cluster.Poke{Namespace: b.namespace, Scope: b.scope, Index: index, Route: &route}
	b.each(ctx, pokeLimit, all, func(ctx context.Context, _ int, one cluster.Bouncer) {
		if err := b.client.PostJSON(ctx, one.URL, "/poke", poke, nil); err != nil {
			b.log.Debug().Err(err).Str("bouncer", one.Name).Msg("could not be poked")
		}
	})
}

// misses is the first bouncer that misses a leader, too, of those on other hosts than these; empty: none does.
func (b *bouncers) misses(ctx context.Context, leader string, notOn []string, silent time.Duration) (string, error) {
	all, err := b.list(ctx)
	if err != nil {
		return "", err
	}
	return b.firstToMiss(ctx, all, leader, notOn, silent), nil
}

func (b *bouncers) firstToMiss(ctx context.Context, all []cluster.Bouncer, leader string, notOn []string, silent time.Duration) string {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	near := addressesOf(ctx, notOn)
	question := cluster.Missing{Namespace: b.namespace, Scope: b.scope, Leader: leader, SilentMS: silent.Milliseconds()}
	first := make(chan string, 1)
	b.each(ctx, silent+2*answerSlack, all, func(ctx context.Context, _ int, one cluster.Bouncer) {
		host, err := url.Parse(one.URL)
		if err != nil || slices.ContainsFunc(addressesOf(ctx, []string{host.Hostname()}), func(addr string) bool { return slices.Contains(near, addr) }) {
			return
		}
		if err := b.client.PostJSON(ctx, one.URL, "/misses", question, nil); err != nil {
			b.log.Debug().Err(err).Str("bouncer", one.Name).Msg("is no witness of the leader's silence")
			return
		}
		select {
		case first <- one.Name:
			cancel()
		default:
		}
	})
	select {
	case name := <-first:
		return name
	default:
		return ""
	}
}

// addressesOf are hosts' names and addresses.
func addressesOf(ctx context.Context, hosts []string) []string {
	all := slices.Clone(hosts)
	for _, host := range hosts {
		if found, err := net.DefaultResolver.LookupHost(ctx, host); err == nil {
			all = append(all, found...)
		}
	}
	return all
}

// each calls f for many bouncers at the same time, within a limit.
func (b *bouncers) each(ctx context.Context, limit time.Duration, all []cluster.Bouncer, f func(context.Context, int, cluster.Bouncer)) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var group errgroup.Group
	group.SetLimit(mostAsked)
	for i, one := range all {
		group.Go(func() error { f(ctx, i, one); return nil })
	}
	_ = group.Wait() // none fails
}
