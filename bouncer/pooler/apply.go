package pooler

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

const (
	// standBound is how long a RELOAD may take to show. PgBouncer's is done
	// when it answers; the rest is for one that somebody else causes meanwhile.
	standBound = 500 * time.Millisecond
	standPace  = 20 * time.Millisecond
)

// errNotStanding says that PgBouncer took a file but not what is in it.
var errNotStanding = errors.New("PgBouncer did not take the configuration")

// ErrStands says that PgBouncer has all of a file, though its RELOAD has failed.
var ErrStands = errors.New("settings and databases are those of the file all the same")

// errShared says that it cannot be known to which process of PgBouncer something was done.
var errShared = errors.New("PgBouncer has so_reuseport: other processes may have its port, and only the one that has answered was brought to the newest routes; " +
	"list all of them in pgbouncer.processes, or take so_reuseport out and start it again")

// Applier brings a checked file into PgBouncer: RELOAD and read back.
type Applier struct {
	console *Console
	// listed: every process on PgBouncer's port is known.
	listed bool
	// listening is where PgBouncer listened at the last read-back.
	listening Listening
	// settings are those of the file that PgBouncer was last seen to have taken.
	settings map[string]string
}

func NewApplier(c config.Config, console *Console) *Applier {
	return &Applier{console: console, listed: c.Listed()}
}

// Listens is where PgBouncer listened at the last read-back.
func (a *Applier) Listens() Listening { return a.listening }

// IsRefusal reports whether an error of take is PgBouncer's word on the file.
func IsRefusal(err error) bool {
	return errors.Is(err, errNotStanding) || errors.Is(err, pgbouncer.ErrRefused)
}

// Take makes PgBouncer take the installed file and returns the databases as they stand.
func (a *Applier) Take(ctx context.Context, file pgbouncer.File) (map[string]pgbouncer.Database, error) {
	// Settings that it has, and that are the same in this file, it has afterwards.
	same := a.settings != nil && a.console.isSame() && maps.Equal(a.settings, file.Settings)
	a.settings = nil
	standing, settings, err := a.console.ReloadAndShow(ctx, !same)
	if errors.Is(err, pgbouncer.ErrRefused) {
		return a.explain(ctx, file, err)
	}
	if err != nil {
		return nil, err
	}
	bound := time.NewTimer(standBound)
	defer bound.Stop()
	for {
		wrong := Differences(file, standing)
		if len(wrong) == 0 {
			if !same {
				err = a.spotCheck(settings, file)
			}
			if err == nil {
				a.settings = file.Settings
			}
			return standing, err
		}
		select {
		case <-ctx.Done():
			return standing, ctx.Err()
		case <-bound.C:
			return standing, fmt.Errorf("%w: %s; PgBouncer's log says why", errNotStanding, strings.Join(wrong, "; "))
		case <-time.After(standPace):
		}
		if standing, err = a.console.Databases(ctx); err == nil && !same {
			settings, err = a.console.Config(ctx)
		}
		if err != nil {
			return nil, err
		}
	}
}

// explain adds to PgBouncer's refusal, by which it only points at its log, what it has not taken. That
// may be nothing: from 1.25 on RELOAD also fails when all of the file stands, but a certificate could
// not be read anew (ErrStands).
func (a *Applier) explain(ctx context.Context, file pgbouncer.File, refusal error) (map[string]pgbouncer.Database, error) {
	standing, err := a.console.Databases(ctx)
	if err != nil {
		return nil, refusal
	}
	settings, err := a.console.Config(ctx)
	if err != nil {
		return standing, refusal
	}
	if err := a.spotCheck(settings, file); err != nil {
		return standing, fmt.Errorf("%w; %w", refusal, err)
	}
	if wrong := Differences(file, standing); len(wrong) > 0 {
		return standing, fmt.Errorf("%w; %s", refusal, strings.Join(wrong, "; "))
	}
	return standing, fmt.Errorf("%w; %w", refusal, ErrStands)
}

// Differences lists where PgBouncer's databases are not those of the file.
func Differences(file pgbouncer.File, standing map[string]pgbouncer.Database) (wrong []string) {
	for _, e := range file.Databases {
		if e.Name == "*" {
			continue // not a database but a fallback; it is not shown
		}
		d, found := standing[e.Name]
		switch {
		case !found:
			wrong = append(wrong, fmt.Sprintf("database %q is missing", e.Name))
		case d.Host != e.Host() || e.Host() != "" && d.Port != e.Port():
			wrong = append(wrong, fmt.Sprintf("database %q is at %q port %d, not at %q port %d", e.Name, d.Host, d.Port, e.Host(), e.Port()))
		}
		if len(wrong) > 5 {
			return append(wrong, "...")
		}
	}
	return wrong
}

// spotCheck looks whether PgBouncer has the settings of the file. Before 1.25 it
// does not tell of a file that it could not read to the end, and might not even
// change anything visible at RELOAD, though it could not start with it any more.
func (a *Applier) spotCheck(standing map[string]pgbouncer.Setting, file pgbouncer.File) error {
	a.listening = listeningBy(standing)
	for _, name := range slices.Sorted(maps.Keys(file.Settings)) {
		want := file.Settings[name]
		have, known := standing[name]
		switch {
		case !known && name == "service_name": // SHOW CONFIG has it as job_name
		case !known:
			return fmt.Errorf("%w: it has no setting %s", errNotStanding, name)
		case have.Changeable && !sameSetting(name, want, have.Value):
			return fmt.Errorf("%w: %s is %q, not %q; PgBouncer's log says why", errNotStanding, name, have.Value, want)
		}
	}
	if shared := config.IsOn(standing["so_reuseport"].Value); shared && !a.listed {
		return errShared
	}
	return nil
}

// sameSetting compares a value with what SHOW CONFIG makes of it, which writes
// numbers and switches in its own way. Texts are not compared, except words of which
// there are few: one that is not understood is passed over.
func sameSetting(name, want, have string) bool {
	if want == have {
		return true
	}
	if config.SettingWords(name) != nil {
		return strings.EqualFold(want, have)
	}
	h, err := strconv.ParseFloat(have, 64)
	if err != nil {
		return true
	}
	if w, err := strconv.ParseFloat(want, 64); err == nil {
		return w == h
	}
	switch strings.ToLower(want) {
	case "yes", "true", "on", "y", "t":
		return h == 1
	case "no", "false", "off", "n", "f":
		return h == 0
	}
	return false
}
