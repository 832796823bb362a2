package consul

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/printable"
)

type (
	// TakeOver is everything that a takeover checks and writes.
	TakeOver = cluster.TakeOver
	// Announcement is everything that the announcement of a major upgrade checks and writes.
	Announcement = cluster.Announcement
	// Indexes are the ModifyIndexes that keys have after a transaction.
	Indexes = cluster.Indexes
)

// Beat renews the lease: it succeeds only while the lock is held by the session
// and the status is still the one that was written or read last. It returns the
// new index of the status.
func (s *Store) Beat(ctx context.Context, session string, statusIndex uint64, status cluster.Status) (uint64, error) {
	ops := ops{}
	ops.add(api.KVCheckSession, s.keys.Leader(), session, 0, nil)
	ops.expect(s.keys.Status(), statusIndex)
	ops.setJSON(s.keys.Status(), status)
	written, err := s.commit(ctx, "beat", ops)
	return written[s.keys.Status()], err
}

// AnnounceUpgrade makes the cluster of a major upgrade the shard's, with a beat.
func (s *Store) AnnounceUpgrade(ctx context.Context, a Announcement) (Indexes, error) {
	ops := ops{}
	ops.add(api.KVCheckSession, s.keys.Leader(), a.Session, 0, nil)
	ops.expect(s.keys.Status(), a.StatusIndex)
	ops.expect(s.keys.Initialize(), a.InitializeIndex)
	ops.add(api.KVSet, s.keys.Initialize(), "", 0, []byte(a.To))
	ops.setJSON(s.keys.Status(), a.Status)
	ops.replace(s.keys.Sync(), a.SyncIndex, a.Sync)
	ops.expect(s.keys.Route(), a.RouteIndex)
	ops.setJSON(s.keys.Route(), a.Route)
	return s.commit(ctx, "announcement of the upgrade", ops)
}

// TakeOver takes the lock.
func (s *Store) TakeOver(ctx context.Context, t TakeOver) (Indexes, error) {
	ops := ops{}
	ops.expect(s.keys.Status(), t.StatusIndex)
	ops.expect(s.keys.Failsafe(), t.FailsafeIndex)
	switch {
	case t.Bootstrapped:
		// The system identifier replaces the empty value, and the key is let go
		// so that it outlives the session.
		ops.add(api.KVUnlock, s.keys.Initialize(), t.Session, 0, []byte(t.Initialize))
	case t.Initialize != "":
		ops.expect(s.keys.Initialize(), 0)
		ops.add(api.KVSet, s.keys.Initialize(), "", 0, []byte(t.Initialize))
	}
	if t.Config != nil {
		ops.expect(s.keys.Config(), 0)
		ops.add(api.KVSet, s.keys.Config(), "", 0, t.Config)
	}
	if t.LeaderIndex != 0 {
		ops.add(api.KVDeleteCAS, s.keys.Leader(), "", t.LeaderIndex, nil)
	}
	ops.add(api.KVLock, s.keys.Leader(), t.Session, 0, []byte(t.Name))
	ops.setJSON(s.keys.Status(), t.Status)
	if t.Sync != nil {
		ops.replace(s.keys.Sync(), t.SyncIndex, t.Sync)
	} else {
		ops.expect(s.keys.Sync(), t.SyncIndex)
	}
	if t.Route != nil {
		ops.expect(s.keys.Route(), t.RouteIndex)
		ops.setJSON(s.keys.Route(), t.Route)
	}
	return s.commit(ctx, "takeover", ops)
}

// Release writes a released status and lets the lock go. It is to be called
// only after PostgreSQL has stopped and the lease was dropped.
func (s *Store) Release(ctx context.Context, session string, statusIndex uint64, status cluster.Status) (uint64, error) {
	ops := ops{}
	ops.add(api.KVCheckSession, s.keys.Leader(), session, 0, nil)
	ops.expect(s.keys.Status(), statusIndex)
	ops.setJSON(s.keys.Status(), status)
	ops.add(api.KVDelete, s.keys.Leader(), "", 0, nil)
	written, err := s.commit(ctx, "release", ops)
	return written[s.keys.Status()], err
}

// BeginRebuild takes the turn of the shard for a member, and with it that of its host unless host
// is empty, or keeps them, bound to its session. ErrConflict: another member has one of them; the
// error says which member.
func (s *Store) BeginRebuild(ctx context.Context, session, member, host string) error {
	ops := ops{}
	ops.add(api.KVLock, s.keys.Rebuild(), session, 0, []byte(member))
	if host != "" {
		ops.add(api.KVLock, s.keys.HostRebuild(host), session, 0, []byte(s.keys.Scope()+"/"+member))
	}
	_, err := s.commit(ctx, "rebuild", ops)
	if !errors.Is(err, ErrConflict) || host == "" {
		return err
	}
	if holder, _, unread := s.Get(ctx, s.keys.HostRebuild(host)); unread == nil && len(holder) > 0 {
		return fmt.Errorf("%w: on the host %s it is the turn of %s", ErrConflict, host, printable.Short(string(holder), printable.MaxValue))
	}
	return err
}

// EndRebuild gives up the turn of the host, and unless hostOnly that of the shard, where the
// session has it.
func (s *Store) EndRebuild(ctx context.Context, session, host string, hostOnly bool) error {
	keys := []string{s.keys.HostRebuild(host)}
	if !hostOnly {
		keys = append(keys, s.keys.Rebuild())
	}
	var errs []error
	for _, key := range keys {
		ops := ops{}
		ops.add(api.KVCheckSession, key, session, 0, nil)
		ops.add(api.KVDelete, key, "", 0, nil)
		if _, err := s.commit(ctx, "end of rebuild", ops); !errors.Is(err, ErrConflict) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Touch writes a member's own key, bound to its session. A key that another
// session holds (that of the member's earlier run) is replaced if it still has
// index; pass zero when the key is absent or ours. It returns the key's new index.
func (s *Store) Touch(ctx context.Context, session string, index uint64, member cluster.Member) (uint64, error) {
	ops := ops{}
	key := s.keys.Member(member.Name)
	if index != 0 {
		ops.add(api.KVDeleteCAS, key, "", index, nil)
	}
	value, err := json.Marshal(member)
	if err != nil {
		return 0, fmt.Errorf("member key: %w", err)
	}
	ops.add(api.KVLock, key, session, 0, value)
	written, err := s.commit(ctx, "member key", ops)
	return written[key], err
}

// WriteAsLeader replaces a key, or deletes it when value is nil, if it still has
// index (zero: does not exist) and the lock is held by session.
func (s *Store) WriteAsLeader(ctx context.Context, session, key string, index uint64, value any) (uint64, error) {
	ops := ops{}
	ops.add(api.KVCheckSession, s.keys.Leader(), session, 0, nil)
	switch {
	case value == nil && index == 0:
		return 0, nil
	case value == nil:
		ops.add(api.KVDeleteCAS, key, "", index, nil)
	default:
		ops.replace(key, index, value)
	}
	written, err := s.commit(ctx, key, ops)
	return written[key], err
}

// Write replaces a key if it still has index (zero: does not exist).
func (s *Store) Write(ctx context.Context, key string, index uint64, value []byte) error {
	ops := ops{}
	ops.expect(key, index)
	ops.add(api.KVSet, key, "", 0, value)
	_, err := s.commit(ctx, key, ops)
	return err
}

// BeginBootstrap wins the right to make the shard: the key initialize, empty
// (as Patroni writes it) and held by the session, so that it vanishes if this
// agent dies on the way. ErrConflict: somebody else has it.
func (s *Store) BeginBootstrap(ctx context.Context, session string) error {
	ops := ops{}
	ops.expect(s.keys.Initialize(), 0)
	ops.add(api.KVLock, s.keys.Initialize(), session, 0, nil)
	_, err := s.commit(ctx, "initialize", ops)
	return err
}

// EndBootstrap gives up a bootstrap that failed.
func (s *Store) EndBootstrap(ctx context.Context, session string) error {
	ops := ops{}
	ops.add(api.KVCheckSession, s.keys.Initialize(), session, 0, nil)
	ops.add(api.KVDelete, s.keys.Initialize(), "", 0, nil)
	_, err := s.commit(ctx, "initialize", ops)
	return err
}

// ops builds a transaction (https://developer.hashicorp.com/consul/api-docs/txn).
type ops struct {
	list api.TxnOps
	err  error
}

func (o *ops) add(verb api.KVOp, key, session string, index uint64, value []byte) {
	o.list = append(o.list, &api.TxnOp{KV: &api.KVTxnOp{Verb: verb, Key: key, Session: session, Index: index, Value: value}})
}

// expect makes the transaction fail unless the key still has this index, zero
// meaning that it must not exist.
func (o *ops) expect(key string, index uint64) {
	if index == 0 {
		o.add(api.KVCheckNotExists, key, "", 0, nil)
		return
	}
	o.add(api.KVCheckIndex, key, "", index, nil)
}

// replace sets a key that must still have this index (zero: must not exist). It is made
// anew, so that its index moves even when the value is the same, which Consul would
// leave as it is: an earlier write of unknown outcome, which checks the index, is void
// then.
func (o *ops) replace(key string, index uint64, value any) {
	if index == 0 {
		o.expect(key, 0)
	} else {
		o.add(api.KVDeleteCAS, key, "", index, nil)
	}
	o.setJSON(key, value)
}

// lockJSON sets a key and locks it with a session.
func (o *ops) lockJSON(key, session string, value any) {
	b, err := json.Marshal(value)
	if err != nil {
		o.err = fmt.Errorf("key %s: %w", key, err)
	}
	o.add(api.KVLock, key, session, 0, b)
}

func (o *ops) setJSON(key string, value any) {
	b, err := json.Marshal(value)
	if err != nil {
		o.err = fmt.Errorf("key %s: %w", key, err)
	}
	o.add(api.KVSet, key, "", 0, b)
}

// commit runs the transaction and returns the indexes that its keys have after it.
//
// It is sent to one address after another only as long as it cannot have
// reached Consul: a transaction sent twice could take effect twice.
func (s *Store) commit(ctx context.Context, what string, o ops) (Indexes, error) {
	if o.err != nil {
		return nil, o.err
	}
	var (
		ok     bool
		answer api.TxnResponse
		sent   error
	)
	err := s.try(ctx, func(ctx context.Context, c *api.Client) error {
		if sent != nil {
			return nil //nolint:nilerr // told below; the next request begins at this address
		}
		var err error
		ok, answer, err = transact(ctx, c, o.list)
		if err != nil && !neverSent(err) && !refused(err) {
			sent = err
		}
		return err
	})
	switch {
	case sent != nil:
		return nil, fmt.Errorf("%s: %w: %w", what, ErrUncertain, sent)
	case err != nil:
		return nil, fmt.Errorf("%s: %w", what, err)
	case !ok:
		return nil, fmt.Errorf("%s: %w%s", what, ErrConflict, refusal(answer))
	}
	// A check of a key stands before the write to it: the last word counts.
	written := Indexes{}
	for _, r := range answer.Results {
		if r.KV != nil {
			written[r.KV.Key] = r.KV.ModifyIndex
		}
	}
	return written, nil
}

// transact sends one transaction. (The Go client's own method hides the status
// code, without which a refusal cannot be told from an unknown outcome.)
func transact(ctx context.Context, c *api.Client, list api.TxnOps) (bool, api.TxnResponse, error) {
	var answer api.TxnResponse
	_, err := c.Raw().Write("/v1/txn", list, &answer, (&api.WriteOptions{}).WithContext(ctx))
	var status api.StatusError
	if errors.As(err, &status) && status.Code == http.StatusConflict {
		if err := json.Unmarshal([]byte(status.Body), &answer); err != nil {
			return false, api.TxnResponse{}, fmt.Errorf("why the transaction was refused: %w", err)
		}
		return false, answer, nil
	}
	return err == nil, answer, err
}

func refusal(answer api.TxnResponse) string {
	if len(answer.Errors) == 0 {
		return ""
	}
	whys := make([]string, 0, len(answer.Errors))
	for _, e := range answer.Errors {
		whys = append(whys, e.What)
	}
	return " (" + strings.Join(whys, "; ") + ")"
}
