package bouncer

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/bouncer/install"
)

// configSyncer makes lasting what the reconciler has put into place, and prepares for the next
// time: it waits for the disk, so that no failover does.
type configSyncer struct {
	log  zerolog.Logger
	file *install.Config
	wake chan struct{}
	// changed is called when failure has.
	changed func()

	mu sync.Mutex
	// installed: a file was put into place, and is not known to last.
	installed bool
	// verified is what PgBouncer was seen to have taken last.
	verified []byte
	err      error

	// Of the goroutine alone:
	kept    []byte // as the last good one
	noSpare bool   // there is no room for the next configuration
}

// sync asks for what was put into place to last.
func (s *configSyncer) sync() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.installed = true
	s.notify()
}

// good asks for a text that PgBouncer has taken to be remembered.
func (s *configSyncer) good(verified []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !bytes.Equal(s.verified, verified) {
		s.verified = verified
		s.notify()
	}
}

func (s *configSyncer) notify() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// failure is why that could not be done.
func (s *configSyncer) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// run does what is asked for until ctx is done, and once more then. What fails is tried again.
func (s *configSyncer) run(ctx context.Context) {
	var retry <-chan time.Time
	for last := false; !last; {
		select {
		case <-s.wake:
		case <-retry:
		case <-ctx.Done():
			last = true
		}
		retry = nil
		if s.keep() != nil {
			retry = time.After(keepRetry)
		}
	}
}

// keep does what there is to do.
func (s *configSyncer) keep() error {
	s.mu.Lock()
	installed, verified, before := s.installed, s.verified, s.err
	s.installed = false
	s.mu.Unlock()
	var errs []error
	if installed {
		errs = append(errs, s.file.Keep())
	}
	lasts := errors.Join(errs...) == nil
	if len(verified) > 0 {
		s.keepSpare(verified)
	}
	if !bytes.Equal(verified, s.kept) {
		err := s.file.KeepGood(verified)
		if err == nil {
			s.kept = verified
		}
		errs = append(errs, err)
	}
	err := errors.Join(errs...)
	s.mu.Lock()
	s.err = err
	s.installed = s.installed || !lasts
	s.mu.Unlock()
	if (err == nil) != (before == nil) {
		s.changed()
	}
	return err
}

// keepSpare has room at hand for a text like this one.
func (s *configSyncer) keepSpare(text []byte) {
	err := s.file.KeepSpare(text)
	if err != nil && !s.noSpare {
		s.log.Warn().Err(err).Msg("on a full disk the next failover would wait for room")
	}
	s.noSpare = err != nil
}
