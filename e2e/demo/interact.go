package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/lictor-ha/lictor/e2e/lab"
)

// interact shows the cluster until the user quits: as a live view where there is
// a terminal, else as a line for each shard from time to time.
func (d *demo) interact(ctx context.Context) error {
	o := &observer{lab: d.lab, workloads: d.workloads}
	passwords, err := d.writePasswordFile()
	if err != nil {
		return err
	}
	connect := []string{"connect with"}
	for _, s := range d.lab.Shards() {
		connect = append(connect, fmt.Sprintf("  PGPASSFILE=%s psql %q", passwords, s.DSN()))
	}
	connect = append(connect, fmt.Sprintf("all commands work on it: bin/lictor list --consul %s", d.lab.ConsulHosts()[0]))
	connect = append(connect, fmt.Sprintf("logs are in %s/log, Consul is at http://%s", d.lab.Dir, d.lab.ConsulHosts()[0]))
	out, isFile := d.opts.Out.(*os.File)
	if !isFile || !term.IsTerminal(int(out.Fd())) || !term.IsTerminal(int(d.opts.In.Fd())) {
		return d.watchPlain(ctx, o, connect)
	}
	return d.watchLive(ctx, o, connect, out)
}

// writePasswordFile lets psql find the password without a question and without
// showing it.
func (d *demo) writePasswordFile() (string, error) {
	path := filepath.Join(d.lab.Dir, "pgpass")
	line := fmt.Sprintf("*:*:*:%s:%s\n", lab.AppRole, d.lab.Secrets.App)
	if err := os.WriteFile(path, []byte(line), 0o600); err != nil {
		return "", fmt.Errorf("password file for psql: %w", err)
	}
	return path, nil
}

// plainInterval is how often the cluster is described where there is no
// terminal.
const plainInterval = 5 * time.Second

func (d *demo) watchPlain(ctx context.Context, o *observer, connect []string) error {
	for _, line := range connect {
		d.out.line(line)
	}
	d.out.line("to break things, run it in a terminal, with --scenario NAME, or kill any process yourself")
	tick := time.NewTicker(plainInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			for _, line := range (screen{picture: o.look(ctx)}).plain() {
				d.say("%s", line)
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// refresh is how often the live view is drawn.
const refresh = 500 * time.Millisecond

// live is the state of the live view. Only its loop touches it.
type live struct {
	demo   *demo
	screen screen
	out    *os.File
	events chan string
	done   chan outcome // of the scenario under way
}

// outcome is the end of a scenario.
type outcome struct{ err error }

func (d *demo) watchLive(ctx context.Context, o *observer, connect []string, out *os.File) error {
	fd := int(d.opts.In.Fd())
	before, err := term.MakeRaw(fd)
	if err != nil {
		return fmt.Errorf("terminal: %w", err)
	}
	const alternate, normal = "\x1b[?1049h\x1b[?25l\x1b[2J", "\x1b[?25h\x1b[?1049l"
	fmt.Fprint(out, alternate)
	defer func() {
		fmt.Fprint(out, normal)
		_ = term.Restore(fd, before)
	}()

	ctx, cancel := context.WithCancel(ctx)
	keys := readKeys(ctx, d.opts.In)
	pictures := make(chan picture)
	observed := make(chan struct{})
	go func() {
		defer close(observed)
		watch(ctx, o, pictures)
	}()
	v := &live{demo: d, out: out, events: make(chan string, 100), done: make(chan outcome)}
	v.screen = screen{connect: connect, colours: os.Getenv("NO_COLOR") == ""}
	d.out.divert(func(line string) {
		select {
		case v.events <- line:
		default: // a view that is that far behind drops a line, not the demo
		}
	})
	defer d.out.divert(nil)
	err = v.loop(ctx, pictures, keys)
	cancel()
	<-observed
	for range keys { // until the reader has ended
	}
	if v.screen.busy != "" {
		<-v.done // it was called off with the view
	}
	return err
}

// watch looks at the cluster again and again until ctx ends.
func watch(ctx context.Context, o *observer, pictures chan<- picture) {
	tick := time.NewTicker(refresh)
	defer tick.Stop()
	for {
		select {
		case pictures <- o.look(ctx):
		case <-ctx.Done():
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (v *live) loop(ctx context.Context, pictures <-chan picture, keys <-chan byte) error {
	for {
		select {
		case v.screen.picture = <-pictures:
		case line := <-v.events:
			v.event(line)
		case end := <-v.done:
			v.screen.busy = ""
			if end.err != nil && ctx.Err() == nil {
				v.event(end.err.Error())
			}
		case key, open := <-keys:
			if !open || !v.press(ctx, key) {
				return nil
			}
		case <-ctx.Done():
			return nil
		}
		v.draw()
	}
}

// event remembers a line for the view.
func (v *live) event(line string) {
	const kept = 200
	v.screen.events = append(v.screen.events, line)
	v.screen.events = v.screen.events[max(0, len(v.screen.events)-kept):]
}

func (v *live) draw() {
	if len(v.screen.shards) == 0 {
		return // nothing was seen yet
	}
	v.screen.now = time.Since(v.demo.begun)
	if width, height, err := term.GetSize(int(v.out.Fd())); err == nil {
		v.screen.width, v.screen.height = width, height
	}
	v.demo.out.frame(v.screen.lines())
}

// press acts upon a key; false: quit.
func (v *live) press(ctx context.Context, key byte) bool {
	const ctrlC, tab = 3, '\t'
	switch key {
	case ctrlC, 'q':
		return false
	case tab:
		v.screen.aimed = (v.screen.aimed + 1) % v.demo.opts.Shards
		return true
	}
	if v.screen.busy != "" {
		return true
	}
	for _, s := range scenarios() {
		if s.key == key {
			v.begin(ctx, s)
		}
	}
	return true
}

// begin runs a scenario beside the view. The loop, or watchLive after it,
// receives its end.
func (v *live) begin(ctx context.Context, s scenario) {
	shard := v.demo.lab.Shard(v.screen.aimed)
	v.screen.busy = s.name + " on " + shard.Name
	go func() {
		result, err := v.demo.play(ctx, s, shard, func(line string) { v.demo.say("%s", line) })
		if err == nil {
			for _, line := range result.lines() {
				v.demo.say("%s", line)
			}
		}
		v.done <- outcome{err}
	}()
}

// readKeys reads single bytes until ctx ends, then closes the channel. It polls
// before it reads: a read of a terminal cannot be called off.
func readKeys(ctx context.Context, in *os.File) <-chan byte {
	keys := make(chan byte)
	go func() {
		defer close(keys)
		for ctx.Err() == nil {
			fds := []unix.PollFd{{Fd: int32(in.Fd()), Events: unix.POLLIN}}
			n, err := unix.Poll(fds, 100)
			if err != nil && !errors.Is(err, unix.EINTR) {
				return
			}
			if n <= 0 {
				continue
			}
			var b [1]byte
			if n, err := in.Read(b[:]); err != nil || n == 0 {
				return
			}
			select {
			case keys <- b[0]:
			case <-ctx.Done():
			}
		}
	}()
	return keys
}
