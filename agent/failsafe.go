package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/ha"
	"github.com/lictor-ha/lictor/agent/member"
)

// This file is what other members ask of this one (api.Node).

// refusal is a refusal in the API's words.
func refusal(err error) error {
	if r := (member.Refused{}); errors.As(err, &r) {
		return fmt.Errorf("%w: %w", api.ErrRefused, err)
	}
	return err
}

// Failsafe answers a leader that cannot reach Consul.
func (n *node) Failsafe(ctx context.Context, r api.FailsafeRequest) error {
	if r.Lictor == nil {
		return fmt.Errorf("%w: the request carries no lease: this shard is led by Lictor", api.ErrRefused)
	}
	return n.ask(ctx, func() error {
		return n.m.HearFailsafe(ha.FailsafeRequest{
			Leader: r.Name, Lease: time.Duration(r.Lictor.LeaseMS) * time.Millisecond, Index: r.Lictor.Index, Slots: r.Slots,
			Round: r.Lictor.Round, Agreed: r.Lictor.Agreed,
		})
	})
}

// Part has PostgreSQL receive nothing more from the old leader. It returns when it does not.
func (n *node) Detach(ctx context.Context, p api.DetachRequest) error {
	switch {
	case p.Ask == api.AskMisses:
		return n.ask(ctx, func() error {
			if !(member.TakeoverPeer{Member: n.m.Member}).HearMisses(p.Index) {
				return fmt.Errorf("%w: the leader is not missed", api.ErrRefused)
			}
			return nil
		})
	case p.Ask == api.AskSucceed:
		return n.ask(ctx, func() error { member.TakeoverPeer{Member: n.m.Member}.HearSucceed(p.Index); return nil })
	case p.Ask != "":
		return fmt.Errorf("%w: what is asked is not understood", api.ErrRefused)
	case p.Attempt != "":
		return n.hear(ctx, func(done func(error)) {
			member.TakeoverPeer{Member: n.m.Member}.HearDetachFor(p.Candidate, p.Index, p.Attempt, done)
		})
	}
	if err := n.hear(ctx, func(done func(error)) { n.m.HearDetach(p.Candidate, p.Index, done) }); err != nil {
		return err
	}
	return n.await(ctx, func(s api.State) bool { return s.Detached >= p.Index })
}

// Deposed hears that another member has taken the lock.
func (n *node) Deposed(ctx context.Context, d api.Deposition) error {
	return n.hear(ctx, func(done func(error)) { n.m.HearDeposed(d.Leader, d.Index, d.Forced, done) })
}
