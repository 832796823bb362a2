package operator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	consulapi "github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/agent/placement"
	"github.com/lictor-ha/lictor/agent/printable"
)

// movedVersion is the version of movedRecord.
const movedVersion = 1

// movedRecord is the value of a key below lictor/evacuations/ or lictor/rebalances/: which
// leaders were handed over, or may have been. A move is in it before it is begun.
type movedRecord struct {
	Version int           `json:"version"`
	Since   time.Time     `json:"since"`
	Moves   []movedLeader `json:"moves"`
}

// movedLeader is one of them.
type movedLeader struct {
	Shard string    `json:"shard"`
	From  string    `json:"from"`
	To    string    `json:"to"`
	At    time.Time `json:"at"`
}

func newMovedRecord() movedRecord {
	return movedRecord{Version: movedVersion, Since: time.Now().UTC().Truncate(time.Millisecond)}
}

// moveJournal is such a key as this command knows it. Another command that writes it at the same
// time has this one stop.
type moveJournal struct {
	site *Site
	key  string

	mu     sync.Mutex
	index  uint64 // 0: there is none
	record movedRecord
}

// openJournal reads a key.
func (s *Site) openJournal(ctx context.Context, key string) (*moveJournal, error) {
	j := &moveJournal{site: s, key: key}
	var pair *consulapi.KVPair
	err := s.query(ctx, func(ctx context.Context, c *consulapi.Client) error {
		var err error
		pair, _, err = c.KV().Get(key, (&consulapi.QueryOptions{RequireConsistent: true}).WithContext(ctx))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the key %s: %w", key, err)
	}
	if pair == nil {
		j.record = newMovedRecord()
		return j, nil
	}
	j.index = pair.ModifyIndex
	if err := json.Unmarshal(pair.Value, &j.record); err != nil {
		return nil, refusedf("the key %s is not understood: %w; delete it when its moves need not be undone", key, printable.Error(err))
	}
	if j.record.Version != movedVersion {
		return nil, refusedf("the key %s has version %d, and this program knows version %d: use the program that wrote it", key, j.record.Version, movedVersion)
	}
	return j, nil
}

// exists reports whether the key was there, or was written since.
func (j *moveJournal) exists() bool { return j.index > 0 }

// change writes the record as edit changes it.
func (j *moveJournal) change(ctx context.Context, edit func(*movedRecord)) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	next := j.record
	next.Moves = slices.Clone(next.Moves)
	edit(&next)
	value, err := json.Marshal(next)
	if err != nil {
		return fmt.Errorf("the key %s: %w", j.key, err)
	}
	index, err := j.site.writeAt(ctx, j.key, j.index, value)
	if err != nil {
		return fmt.Errorf("noting what is about to be done in the key %s: %w", j.key, err)
	}
	j.record, j.index = next, index
	return nil
}

// begin notes a move that is about to be made. Of several from one host the first says where
// the leader belongs.
func (j *moveJournal) begin(ctx context.Context, m placement.Move) error {
	return j.change(ctx, func(r *movedRecord) {
		noted := movedLeader{m.Shard, m.From.Name, m.To.Name, time.Now().UTC().Truncate(time.Millisecond)}
		if i := r.of(m.Shard); i >= 0 {
			noted.From = r.Moves[i].From
			r.Moves[i] = noted
			return
		}
		r.Moves = append(r.Moves, noted)
	})
}

// drop forgets the move of a shard.
func (j *moveJournal) drop(ctx context.Context, m placement.Move) error {
	return j.change(ctx, func(r *movedRecord) {
		r.Moves = slices.DeleteFunc(r.Moves, func(l movedLeader) bool { return l.Shard == m.Shard })
	})
}

// dropUnlessMoved forgets a move that was certainly not made.
func (j *moveJournal) dropUnlessMoved(ctx context.Context, m placement.Move, moved error) error {
	if code := ExitCode(moved); code != ExitRefused && code != ExitRolledBack {
		return nil
	}
	return j.drop(ctx, m)
}

// dropIfMoved forgets a move that was taken back.
func (j *moveJournal) dropIfMoved(ctx context.Context, m placement.Move, moved error) error {
	if moved != nil {
		return nil //nolint:nilerr // it stays noted, and its error is told where it was moved
	}
	return j.drop(ctx, m)
}

// nothingNoted is for moves that are in the journal already.
func nothingNoted(context.Context, placement.Move) error { return nil }

// of is the place of a shard's move; -1: there is none.
func (r movedRecord) of(shard string) int {
	return slices.IndexFunc(r.Moves, func(l movedLeader) bool { return l.Shard == shard })
}

// forget deletes the key.
func (j *moveJournal) forget(ctx context.Context) error {
	if err := j.site.deleteAt(ctx, j.key, j.index); err != nil {
		return fmt.Errorf("deleting the key %s: %w", j.key, err)
	}
	j.index = 0
	return nil
}

// errChangedMeanwhile: another command writes the same key.
var errChangedMeanwhile = errors.New("it has changed meanwhile: another lictor evacuate or rebalance is at work")

// writeAt writes a key if it still has this index (0: there is none), and returns its new index.
// A write that was done and whose answer was lost is known by its value.
func (s *Site) writeAt(ctx context.Context, key string, index uint64, value []byte) (uint64, error) {
	var written uint64
	err := s.query(ctx, func(ctx context.Context, c *consulapi.Client) error {
		o := (&consulapi.QueryOptions{RequireConsistent: true}).WithContext(ctx)
		ops := consulapi.TxnOps{{KV: &consulapi.KVTxnOp{Verb: consulapi.KVCAS, Key: key, Value: value, Index: index}}}
		ok, answer, _, err := c.Txn().Txn(ops, o)
		if err != nil {
			return err
		}
		if ok {
			written = answer.Results[0].KV.ModifyIndex
			return nil
		}
		now, _, err := c.KV().Get(key, o)
		if err != nil {
			return err
		}
		if now == nil || string(now.Value) != string(value) {
			return Refused(errChangedMeanwhile)
		}
		written = now.ModifyIndex
		return nil
	})
	return written, err
}

// evacuated are the hosts of the namespace that were evacuated and not put back.
func (s *Site) evacuated(ctx context.Context) (map[string]bool, error) {
	prefix := s.keys("x").Evacuations()
	var keys []string
	err := s.query(ctx, func(ctx context.Context, c *consulapi.Client) error {
		var err error
		keys, _, err = c.KV().Keys(prefix, "", (&consulapi.QueryOptions{RequireConsistent: true}).WithContext(ctx))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading which hosts are evacuated, below %s: %w", prefix, err)
	}
	hosts := map[string]bool{}
	for _, key := range keys {
		// Below a name with a slash are those of another namespace.
		if host := strings.TrimPrefix(key, prefix); host != "" && !strings.Contains(host, "/") {
			hosts[host] = true
		}
	}
	return hosts, nil
}
