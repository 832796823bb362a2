package agent

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/member"
	"github.com/lictor-ha/lictor/agent/osuser"
)

// ledMark is the file beside the data directory that says that this agent may have led
// with the PostgreSQL that runs, since this boot of the host, and until when, as far as
// was known at its last takeover; or that it rests on a pause; or that it led once, and has
// stopped that PostgreSQL since. It outlives agent and guard. Without it an existing primary
// was never Lictor's, and is not killed while Consul does not answer.
type ledMark struct {
	path  string
	files osuser.User // with whose rights it is written

	mu sync.Mutex
	// said is what this run has written, nil: nothing.
	said *member.LedMark
}

// endedText is all that a mark of what has ended says: it holds in any boot.
const endedText = "ended"

// markText is what the mark's file holds.
func markText(s member.LedMark) (string, error) {
	if s.Ended {
		return endedText + "\n", nil
	}
	boot, err := bootID()
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s %d %t\n", boot, s.Until, s.Paused), nil
}

// bootID names this boot of the host.
func bootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("this boot's identity: %w", err)
	}
	return strings.TrimSpace(string(id)), nil
}

// leads makes sure that there is a mark, of a lease that may last until then unless there
// is one already: the guard has the deadlines of what follows. A pause is over with it.
func (l *ledMark) leads(until cluster.Instant) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if until.IsZero() || l.said != nil && !l.said.Paused && !l.said.Ended {
		return nil
	}
	return l.writeOrCut(member.LedMark{Until: until})
}

// writeOrCut is write, where there may be no room for another mark. One that is cut to
// nothing counts as that of a lease that is over; a beat must not fail, and end the lease,
// for want of more.
func (l *ledMark) writeOrCut(s member.LedMark) error {
	err := l.write(s)
	if err != nil && l.files.For(func() error { return os.Truncate(l.path, 0) }, l.path) == nil {
		l.said = &member.LedMark{Until: member.LongAgo}
		return nil
	}
	return err
}

// rests makes the mark say that a pause is in force.
func (l *ledMark) rests() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.said != nil && l.said.Paused {
		return nil
	}
	return l.write(member.LedMark{Paused: true})
}

func (l *ledMark) write(s member.LedMark) error {
	text, err := markText(s)
	if err != nil {
		return err
	}
	// Not synced: a takeover does not wait for a disk. After a power cut the mark of the last seconds may be
	// missing (design 5.15).
	temporary := l.path + ".new"
	write := func() error {
		if err := os.WriteFile(temporary, []byte(text), 0o600); err != nil {
			return err
		}
		return os.Rename(temporary, l.path)
	}
	if err := l.files.For(write, l.path); err != nil {
		return fmt.Errorf("the mark of whether this member leads: %w", err)
	}
	l.said = &s
	return nil
}

// ends says that PostgreSQL has stopped, or is a replica. The mark stays: somebody else may start
// these data as a primary again while another member leads. Where nobody led there is none.
func (l *ledMark) ends() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.said != nil && l.said.Ended {
		return nil
	}
	l.said = nil
	if _, err := l.files.Lstat(l.path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err := l.writeOrCut(member.LedMark{Ended: true}); err != nil {
		return fmt.Errorf("it has ended: %w", err)
	}
	if !l.said.Ended { // cut to nothing: the next mark is to be written all the same
		l.said = nil
	}
	return nil
}

// read is what an earlier run has left, nil: it never led. A mark that cannot be read
// counts as one of a lease that is over.
func (l *ledMark) read() *member.LedMark {
	content, err := l.files.ReadFile(l.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil && strings.TrimSpace(string(content)) == endedText {
		return &member.LedMark{Ended: true}
	}
	var boot string
	var s member.LedMark
	now, bootErr := bootID()
	_, scanErr := fmt.Sscanf(string(content), "%s %d %t", &boot, (*int64)(&s.Until), &s.Paused)
	if errors.Join(err, bootErr, scanErr) != nil {
		return &member.LedMark{Until: member.LongAgo}
	}
	return s.In(boot == now)
}
