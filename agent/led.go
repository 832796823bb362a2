package agent

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// ledMark is the file beside the data directory that says that this agent may have led
// with the PostgreSQL that runs, since this boot of the host, and until when, as far as
// was known at its last takeover. It outlives agent and guard. Without it an existing
// primary was never Lictor's, and is not killed while Consul does not answer.
type ledMark struct {
	path string

	mu    sync.Mutex
	until cluster.Instant // what the file says; zero: there is none
}

// bootID names this boot of the host.
func bootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("this boot's identity: %w", err)
	}
	return strings.TrimSpace(string(id)), nil
}

// make writes the mark of a lease that may last until then, unless there is one by this
// run already: the guard has the deadlines of what follows.
func (l *ledMark) make(until cluster.Instant) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.until.IsZero() || until.IsZero() {
		return nil
	}
	boot, err := bootID()
	if err != nil {
		return err
	}
	// It need not outlive the host: no process does.
	temporary := l.path + ".new"
	if err := os.WriteFile(temporary, []byte(boot+" "+strconv.FormatInt(int64(until), 10)+"\n"), 0o600); err != nil {
		return fmt.Errorf("marking that this member leads: %w", err)
	}
	if err := os.Rename(temporary, l.path); err != nil {
		return fmt.Errorf("marking that this member leads: %w", err)
	}
	l.until = until
	return nil
}

// remove says that PostgreSQL has stopped, or is a replica.
func (l *ledMark) remove() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.until = 0
	if err := os.Remove(l.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("the mark that this member leads: %w", err)
	}
	return nil
}

// read is what an earlier run has left. A mark that cannot be read counts as one of a
// lease that is over.
func (l *ledMark) read() (until cluster.Instant, unled bool) {
	content, err := os.ReadFile(l.path)
	if errors.Is(err, os.ErrNotExist) {
		return 0, true
	}
	boot, bootErr := bootID()
	said, moment, _ := strings.Cut(strings.TrimSpace(string(content)), " ")
	at, atErr := strconv.ParseInt(moment, 10, 64)
	switch {
	case errors.Join(err, bootErr, atErr) != nil:
		return longAgo, false
	case said != boot:
		return 0, true
	}
	return max(cluster.Instant(at), longAgo), false
}
