package bouncer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"github.com/lictor-ha/lictor/agent/environ"
	"github.com/lictor-ha/lictor/agent/osuser"
	"github.com/lictor-ha/lictor/agent/printable"
	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/consul"
	"github.com/lictor-ha/lictor/bouncer/install"
	"github.com/lictor-ha/lictor/bouncer/pooler"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
	"github.com/lictor-ha/lictor/bouncer/render"
	"github.com/lictor-ha/lictor/bouncer/routes"
)

const (
	// filePace is how often a template is looked at, which may be edited at any
	// time, and what failed is tried again.
	filePace = 10 * time.Second
	// fileBurst is how many commands are run as changes come, fileEvery how often one is after these. What
	// they have reload may keep its old process for as long as that has clients, as HAProxy does: a shard
	// whose members change all the time would fill the host with them.
	fileBurst = 5
	fileEvery = 30 * time.Second
	// fileCommandBound bounds the command that makes a file take effect.
	fileCommandBound = 30 * time.Second
)

// fileWriter keeps one further file right: the users of PgBouncer from Consul or
// Vault, the configuration of HAProxy. It is apart from pgbouncer.ini, so that a
// secret that does not come holds up no failover.
type fileWriter struct {
	file      config.File
	installed *install.Lasting
	config    config.Config // that of the first process
	log       zerolog.Logger
	table     *routes.Table
	processes *processes
	renderer  *render.Renderer
	viewer    *render.Viewer
	wake      chan struct{}
	// answered reports whether Consul has said which routes there are, since the start.
	answered func() bool
	refusal  refusal // the last one
	users    []byte  // the file of users as it was written last, for whom somebody has removed it
	commands *rate.Limiter
	// due: what was written has not taken effect yet. keepDue writes that down: a command that is not run
	// before this bouncer ends is for the next one.
	due     bool
	keepDue func(path string, due bool)

	mu     sync.Mutex
	status FileStatus
}

// FileStatus is what /status says of a file.
type FileStatus struct {
	// ChangedAt is when it was last written since the bouncer's start.
	ChangedAt *time.Time `json:"changed_at,omitempty"`
	Error     string     `json:"error,omitempty"`
	// Warnings are values from Consul that were left out.
	Warnings []string `json:"warnings,omitempty"`
}

func newFileWriters(c config.Config, log zerolog.Logger, b *routes.Table, ps *processes, pool *consul.Pool, state *stateWriter) (writers []*fileWriter) {
	for _, f := range c.Files {
		writers = append(writers, &fileWriter{
			commands: rate.NewLimiter(rate.Every(fileEvery), fileBurst), due: len(f.Command) > 0 && slices.Contains(state.due, f.Path), keepDue: state.keepDue,
			file: f, installed: install.NewLasting(f.Path), config: c.Each()[0], log: log.With().Str("file", f.Path).Logger(), table: b, processes: ps, wake: make(chan struct{}, 1),
			renderer: render.NewRenderer(c, pool, f.Template), viewer: render.NewViewer(c.Each()[0]),
		})
	}
	return writers
}

func (k *fileWriter) notify() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

func (k *fileWriter) now() FileStatus {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.status
}

// run keeps the file until ctx is done.
func (k *fileWriter) run(ctx context.Context) {
	defer k.renderer.Close()
	tick := time.NewTicker(filePace)
	defer tick.Stop()
	for {
		k.note(ctx, k.apply(ctx))
		select {
		case <-ctx.Done():
			return
		case <-k.wake:
		case <-k.renderer.News():
		case <-tick.C:
		}
	}
}

// apply renders, checks, installs and makes take effect, as far as that is to do.
func (k *fileWriter) apply(ctx context.Context) error {
	source, err := k.file.ReadTemplate()
	if err != nil {
		return err
	}
	if !k.answered() && mayShowRoutes(source) {
		_, err := osuser.Keeper(k.file.Path).Stat(k.file.Path)
		if err == nil { // it may be newer than the state of before
			return fmt.Errorf("%w: Consul has not said yet where the primaries are; the file stays as it is", render.ErrWaiting)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("looking at the file: %w", err)
		}
	}
	known, _ := routesOf(k.table)
	views, _ := k.viewer.View(known, render.AnyName())
	text, err := k.renderer.Render(source, views, k.processes.version())
	if err != nil {
		return err
	}
	k.warn(k.renderer.LeftOut())
	if err := k.check(text); err != nil {
		return err
	}
	if k.isUserlist() {
		installed, err := osuser.Keeper(k.file.Path).ReadFile(k.file.Path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			installed = k.users
		case err != nil:
			return fmt.Errorf("whom PgBouncer knows cannot be read, so the file stays as it is: %w", err)
		}
		text = pgbouncer.LockLeft(text, installed)
		k.users = text
	}
	written, err := k.installed.Checked(text, func(path string) error {
		err := k.validate(ctx, path, text)
		if err == nil && len(k.file.Command) > 0 {
			k.keepDue(k.file.Path, true)
		}
		return err
	})
	if written {
		k.due = true
		now := time.Now().UTC()
		k.mu.Lock()
		k.status.ChangedAt = &now
		k.mu.Unlock()
		k.log.Info().Msg("file written")
	}
	if err != nil || !k.due || len(k.file.Command) > 0 && !k.commands.Allow() { // the next tick comes
		return err
	}
	if err := k.takeEffect(ctx); err != nil {
		return err
	}
	k.due = false
	if len(k.file.Command) > 0 {
		k.keepDue(k.file.Path, false)
	}
	return nil
}

// mayShowRoutes reports whether what a template makes may depend on routes.
func mayShowRoutes(source []byte) bool {
	return regexp.MustCompile(`\b(shards?|primary|replicas|members|readers|fallback|haproxy_resolves)\b`).Match(source)
}

// isUserlist: it is PgBouncer's users.
func (k *fileWriter) isUserlist() bool { return k.file.Path == k.config.Setting("auth_file") }

// check refuses what would take something away rather than bring something.
func (k *fileWriter) check(text []byte) error {
	if len(bytes.TrimSpace(text)) == 0 {
		return errors.New("what was rendered is empty; the file stays as it is")
	}
	if !k.isUserlist() {
		return nil
	}
	users, err := pgbouncer.ParseUserlist(text)
	if err != nil {
		return fmt.Errorf("what was rendered is no file of users: %w; the file stays as it is", err)
	}
	if len(users) == 0 {
		return errors.New("what was rendered has no user; the file stays as it is")
	}
	address, err := pgbouncer.ParseAddress(k.config.PgBouncer.Admin)
	if err != nil {
		return fmt.Errorf("pgbouncer.admin: %w", err)
	}
	user := k.config.PgBouncer.User
	if _, found := users[user]; !found && (!address.IsUnix() || user != config.DefaultUser) {
		return fmt.Errorf("what was rendered lacks pgbouncer.user %q, the bouncer would lock itself out; the file stays as it is", user)
	}
	return nil
}

// validate asks the file's own program whether it takes text, which is in the file
// called path. A text that is refused again is refused with the first error: what programs
// say has numbers of processes in it, and would be news each time.
func (k *fileWriter) validate(ctx context.Context, path string, text []byte) error {
	if len(k.file.Validate) == 0 {
		return nil
	}
	command := slices.Clone(k.file.Validate)
	for i := range command[1:] {
		command[i+1] = strings.ReplaceAll(command[i+1], "%s", path)
	}
	err := runCommand(ctx, k.config, command, strings.NewReplacer(path, k.file.Path))
	if err == nil {
		k.refusal = refusal{}
		return nil
	}
	if k.refusal.err == nil || !bytes.Equal(k.refusal.text, text) {
		k.refusal = refusal{text, fmt.Errorf("the new file is refused by %w; the file stays as it is", err)}
	}
	return k.refusal.err
}

// refusal is a text that the file's own program did not take.
type refusal struct {
	text []byte
	err  error
}

// runCommand runs a command of the operator's; what it says is part of the error, as
// replace changes it.
func runCommand(ctx context.Context, c config.Config, command []string, replace *strings.Replacer) error {
	ctx, cancel := context.WithTimeout(ctx, fileCommandBound)
	defer cancel()
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Env = environ.For(c.PassEnvironment)
	cmd.WaitDelay = time.Second // a child of it may keep its output open
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("command %s: %w: %s", command[0], err, abridgeText([]byte(replace.Replace(string(out)))))
	}
	return nil
}

// takeEffect runs the file's command; for PgBouncer's own users it is RELOAD.
func (k *fileWriter) takeEffect(ctx context.Context) error {
	if len(k.file.Command) > 0 {
		if err := runCommand(ctx, k.config, k.file.Command, strings.NewReplacer()); err != nil {
			return err
		}
		k.log.Info().Str("command", k.file.Command[0]).Msg("file has taken effect")
		return nil
	}
	if !k.isUserlist() {
		return nil
	}
	var errs []error
	for _, p := range k.processes.all {
		if p.link.Now().Up { // one that starts reads it
			errs = append(errs, reload(ctx, p.config))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	k.log.Info().Msg("RELOAD done")
	return nil
}

func reload(ctx context.Context, c config.Config) error {
	console := pooler.NewConsole(c)
	defer console.Close()
	return console.Reload(ctx)
}

func abridgeText(out []byte) string {
	return printable.Line(printable.Cut(strings.TrimSpace(string(out)), 500))
}

// warn keeps what was left out of the file, and says it once.
func (k *fileWriter) warn(left []string) {
	k.mu.Lock()
	before := k.status.Warnings
	k.status.Warnings = left
	k.mu.Unlock()
	if !slices.Equal(before, left) && len(left) > 0 {
		k.log.Warn().Strs("values", left).Msg("values from Consul were left out of the file")
	}
}

// note keeps what is wrong, and says it once.
func (k *fileWriter) note(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	k.mu.Lock()
	before := k.status.Error
	k.status.Error = ""
	if err != nil {
		k.status.Error = err.Error()
	}
	k.mu.Unlock()
	switch {
	case err != nil && before != err.Error() && errors.Is(err, render.ErrWaiting):
		k.log.Info().Err(err).Msg("file waits")
	case err != nil && before != err.Error():
		k.log.Error().Err(err).Msg("file is not kept")
	case err == nil && before != "":
		k.log.Info().Msg("file is kept again")
	}
}
