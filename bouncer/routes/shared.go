package routes

import (
	"context"
	"fmt"
	"math"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/lictor-ha/lictor/bouncer/config"
)

// SharedReads reads one key of Consul for each shard on behalf of whoever asks. Nobody
// needs to log in to ask, so that costs Consul no more than the limits here, however
// many ask: those of one shard who ask before a read begins share it, one read of a
// shard goes on at a time, and all of them have a rate.
type SharedReads struct {
	life  context.Context
	work  sync.WaitGroup
	total *rate.Limiter

	mu     sync.Mutex
	shards map[config.ShardID]*shardReads
	// open is how many reads are asked for and have not ended.
	open int
}

type shardReads struct {
	limit *rate.Limiter
	// turn holds one while a read goes on.
	turn chan struct{}
	// next is the read that has not begun; nil: none.
	next *sharedRead
}

type sharedRead struct {
	done chan struct{}
	err  error
	// least is the highest index that any of those who share it has heard of.
	least uint64
}

// NoIndex asks for a consistent read.
const NoIndex = math.MaxUint64

// Rates of the reads that others cause, in a second.
const (
	shardReadRate  = 4
	shardReadBurst = 2
	totalReadRate  = 40
)

// knownPace is how often who waits for a read looks whether it has become known
// otherwise: the blocking queries tell of it, too.
const knownPace = 20 * time.Millisecond

// NewSharedReads makes reads that end with ctx; wait waits for that.
func NewSharedReads(ctx context.Context) *SharedReads {
	return &SharedReads{life: ctx, total: rate.NewLimiter(totalReadRate, totalReadRate), shards: map[config.ShardID]*shardReads{}}
}

func (s *SharedReads) Wait() { s.work.Wait() }

// Open is how many reads are asked for and have not ended.
func (s *SharedReads) Open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open
}

// Ask has read called for a shard, from now on. The shards must be few: they are
// remembered. read is given the index that what it reads must have reached, the highest that anybody asks for, or NoIndex.
func (s *SharedReads) Ask(id config.ShardID, index uint64, read func(ctx context.Context, index uint64) error) *sharedRead {
	s.mu.Lock()
	defer s.mu.Unlock()
	shard := s.shards[id]
	if shard == nil {
		shard = &shardReads{limit: rate.NewLimiter(shardReadRate, shardReadBurst), turn: make(chan struct{}, 1)}
		s.shards[id] = shard
	}
	if shard.next == nil {
		one := &sharedRead{done: make(chan struct{})}
		shard.next = one
		s.open++
		s.work.Go(func() {
			one.err = s.read(shard, one, read)
			close(one.done)
			s.mu.Lock()
			s.open--
			s.mu.Unlock()
		})
	}
	shard.next.least = max(shard.next.least, index)
	return shard.next
}

// Do is ask, and waits until it is read, or known says that it need not be.
func (s *SharedReads) Do(ctx context.Context, id config.ShardID, known func() bool, read func(context.Context) error) error {
	if known() {
		return nil
	}
	one := s.Ask(id, NoIndex, func(ctx context.Context, _ uint64) error { return read(ctx) })
	look := time.NewTicker(knownPace)
	defer look.Stop()
	for {
		select {
		case <-one.done:
			return one.err
		case <-look.C:
			if known() {
				return nil
			}
		case <-ctx.Done():
			return fmt.Errorf("waiting for a read of shard %s: %w", id, ctx.Err())
		}
	}
}

// read waits for its turn and reads.
func (s *SharedReads) read(shard *shardReads, one *sharedRead, read func(context.Context, uint64) error) error {
	wait, cancel := context.WithTimeout(s.life, readBound)
	defer cancel()
	err := shard.limit.Wait(wait)
	if err == nil {
		err = s.total.Wait(wait)
	}
	if err == nil {
		select {
		case shard.turn <- struct{}{}:
			defer func() { <-shard.turn }()
		case <-wait.Done():
			err = wait.Err()
		}
	}
	s.mu.Lock()
	shard.next = nil // what is asked from now on this read may not show
	least := one.least
	s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("too many requests: %w", err)
	}
	return read(s.life, least)
}
