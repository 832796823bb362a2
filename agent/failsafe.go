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

// hear has the loop answer a request, now or later.
func (a *Agent) hear(ctx context.Context, request func(done func(error))) error {
	answer := make(chan error, 1)
	if err := a.ask(ctx, func() error { request(func(err error) { answer <- refusal(err) }); return nil }); err != nil {
		return err
	}
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-a.ctx.Done():
		return errStopping
	}
}

// refusal is a refusal in the API's words.
func refusal(err error) error {
	if r := (member.Refused{}); errors.As(err, &r) {
		return fmt.Errorf("%w: %w", api.ErrRefused, err)
	}
	return err
}

// Failsafe answers a leader that cannot reach Consul.
func (a *Agent) Failsafe(ctx context.Context, r api.FailsafeRequest) error {
	if r.Lictor == nil {
		return fmt.Errorf("%w: the request carries no lease: this shard is led by Lictor", api.ErrRefused)
	}
	return a.ask(ctx, func() error {
		return a.m.HearFailsafe(ha.FailsafeRequest{
			Leader: r.Name, Lease: time.Duration(r.Lictor.LeaseMS) * time.Millisecond, Index: r.Lictor.Index,
		})
	})
}

// Part has PostgreSQL receive nothing more from the old leader. It returns when it does not.
func (a *Agent) Part(ctx context.Context, p api.Parting) error {
	if err := a.hear(ctx, func(done func(error)) { a.m.HearPart(p.Candidate, p.Index, done) }); err != nil {
		return err
	}
	return a.await(ctx, func(s api.State) bool { return s.Parted >= p.Index })
}

// Deposed hears that another member has taken the lock.
func (a *Agent) Deposed(ctx context.Context, d api.Deposition) error {
	return a.hear(ctx, func(done func(error)) { a.m.HearDeposed(d.Leader, d.Index, d.Forced, done) })
}
