package bouncer

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lictor-ha/lictor/bouncer/pooler"
	"github.com/lictor-ha/lictor/bouncer/render"
)

// Manager is who runs the bouncer as a service, systemd for instance. Nobody ever
// waits for it.
type Manager interface {
	// Ready says that the bouncer serves its API, and that a configuration stands
	// which is made of what is known of the shards: PgBouncer has it, or can be
	// started with it. After a change of the bouncer's own configuration it says
	// that the change is dealt with, for better or worse.
	Ready()
	// Alive says that the loop which brings changes to PgBouncer has come round.
	Alive()
	// KeepAliveEvery is how often Alive must be called at the least; zero: never.
	KeepAliveEvery() time.Duration
	// MayHang says how much later than that Alive may come before the bouncer is started anew: the
	// dead man's timer has yet to release the clients that a loop holds which hangs. The next
	// bouncer would hold them anew.
	MayHang(longest time.Duration)
	// Status says in one line how things are.
	Status(text string)
}

// report tells the manager how a pass went.
func (c *reconciler) report(link pooler.LinkState, views []*shard, err error) {
	c.manager.Alive()
	c.manager.Status(c.summary())
	if !c.proven() && len(c.ready()) == 0 {
		c.prove()
	}
	if err == nil && link.Up && len(views) > 0 && len(c.loaded) > 0 {
		c.stood()
	}
	if c.told || !c.inPlace(link, views, err) && (!c.restarted || !c.failedForNow(err)) {
		return
	}
	c.told = true
	c.manager.Ready()
}

// inPlace reports whether there is a configuration that PgBouncer has or, while none
// runs, can be started with.
func (c *reconciler) inPlace(link pooler.LinkState, views []*shard, err error) bool {
	switch {
	case c.failedForNow(err) && link.Up && c.lastBack != nil && c.hasLoaded(c.lastBack.text):
		return true
	case err != nil || len(views) == 0 && !c.answered():
		return false
	case link.Up && len(views) > 0:
		return len(c.loaded) > 0
	case !link.Up && (link.Err == nil || len(c.config.PgBouncer.Command) > 0):
		return false // it was not looked for yet, or is about to be started
	}
	_, err = os.Stat(c.config.PgBouncer.Config)
	return err == nil
}

// failedForNow reports whether a pass has failed for a reason that is not about to
// go away by itself.
func (c *reconciler) failedForNow(err error) bool {
	return err != nil && !errors.Is(err, render.ErrWaiting)
}

// notReady begins a summary of why clients should not come.
const notReady = "not ready: "

// summary is one line about all shards.
func (c *reconciler) summary() string {
	if reasons := c.ready(); len(reasons) > 0 {
		first, _, _ := strings.Cut(reasons[0], "\n")
		return notReady + first
	}
	c.mu.Lock()
	shards := len(c.status)
	c.mu.Unlock()
	if warnings := c.warnings(); len(warnings) > 0 {
		first, _, _ := strings.Cut(warnings[0], "\n")
		return fmt.Sprintf("%d shards; warning: %s", shards, first)
	}
	if held := len(c.holds); held > 0 {
		return fmt.Sprintf("%d shards, the clients of %d are held", shards, held)
	}
	return fmt.Sprintf("%d shards, all routes applied and verified", shards)
}

// managers tells a manager of several loops as of one.
func managers(manager Manager, n int) []Manager {
	if n == 1 {
		return []Manager{manager}
	}
	together := &loops{Manager: manager, ready: make([]bool, n), alive: make([]bool, n), texts: make([]string, n)}
	list := make([]Manager, n)
	for i := range list {
		list[i] = loop{together, i}
	}
	return list
}

// loops are several, of which the slowest counts.
type loops struct {
	Manager

	mu           sync.Mutex
	ready, alive []bool
	texts        []string
}

// loop is one of them.
type loop struct {
	*loops
	i int
}

var _ Manager = loop{}

func (l loop) Ready() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ready[l.i] = true; !slices.Contains(l.ready, false) {
		l.Manager.Ready()
	}
}

func (l loop) Alive() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.alive[l.i] = true; !slices.Contains(l.alive, false) {
		clear(l.alive)
		l.Manager.Alive()
	}
}

// KeepAliveEvery is half of it: one that has just been round comes once more while another
// is awaited.
func (l loop) KeepAliveEvery() time.Duration { return l.Manager.KeepAliveEvery() / 2 }

func (l loop) Status(text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.texts[l.i] = text
	worst := slices.IndexFunc(l.texts, func(text string) bool { return strings.HasPrefix(text, notReady) })
	l.Manager.Status(l.texts[max(worst, 0)])
}
