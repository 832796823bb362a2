package agent

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/backup"
	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/postgres"
)

// backupWatch has the leader ask pgBackRest what backups the shard has. It asks the
// repository itself, as that alone knows of backups that somebody else took, of those that
// were removed, and of a disk that was lost; and the leader alone asks, so that a fleet does
// not ask thrice. Nothing that the member decides rests on it.
type backupWatch struct {
	*board
	m   *loopState
	pg  *postgres.Instance
	cfg config.Backup
}

// run asks while this member leads.
func (w *backupWatch) run(ctx context.Context) {
	every := time.Duration(w.cfg.Every) * time.Second
	leads := func(s api.State) bool { return s.Leader }
	for w.await(ctx, leads) == nil {
		w.ask(ctx)
		until, cancel := context.WithTimeout(ctx, every)
		lost := w.await(until, func(s api.State) bool { return !s.Leader }) == nil
		cancel()
		if lost {
			w.post(func() { w.saw(nil) })
		}
	}
}

// notes reads, on every member, which backup was verified on this host last: the repository's
// host asks the agents for it (backup.NotedVerification).
func (w *backupWatch) notes(ctx context.Context) {
	every := time.NewTicker(time.Duration(w.cfg.Every) * time.Second)
	defer every.Stop()
	for {
		var noted api.Verification
		content, err := w.pg.VerificationNote()
		if err == nil && content != nil {
			noted, err = backup.ReadNote(content)
		}
		w.post(func() {
			w.m.verified = noted
			w.m.Problem("verification", "which backup was verified last is not known", errorText(err))
		})
		select {
		case <-every.C:
		case <-ctx.Done():
			return
		}
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// ask asks pgBackRest once. What was known before stays known when it does not answer.
func (w *backupWatch) ask(ctx context.Context) {
	out, err := w.pg.Output(ctx, backup.QuestionLimit, "lictor.backup.command", w.cfg.Command, backup.InfoOptions(w.cfg.Stanza)...)
	if ctx.Err() != nil {
		return
	}
	system := w.State().Postgres.SystemIdentifier
	var info backup.Info
	if err == nil {
		info, err = backup.Parse(out, w.cfg.Stanza, system)
	}
	now := time.Now()
	w.post(func() {
		switch {
		case err == nil && info.Trouble == "":
			w.saw(known(info, now, w.cfg))
		case err == nil && len(info.Backups) > 0: // another repository has some
			seen := known(info, now, w.cfg)
			seen.Up, seen.Troubles = false, append(seen.Troubles, unreadable(info.Trouble))
			w.saw(seen)
		default:
			seen := api.Backups{}
			if w.m.backups != nil {
				seen = *w.m.backups
			}
			why := info.Trouble
			if err != nil {
				why = err.Error()
			}
			seen.At, seen.Up, seen.Troubles = now, false, []string{unreadable(why)}
			w.saw(&seen)
		}
	})
}

func unreadable(why string) string {
	return "pgBackRest cannot read the repository: " + strings.Join(strings.Fields(why), " ")
}

// known is what pgBackRest says, in the API's words.
func known(info backup.Info, now time.Time, cfg config.Backup) *api.Backups {
	seen := &api.Backups{
		At: now, Last: map[string]time.Time{}, Verified: info.Verified(), Count: len(info.Backups), Damaged: len(info.Bad), Bytes: info.Bytes, Up: true,
		Unverified: info.Unverified(now, time.Duration(cfg.MaxVerifiedAge)*time.Hour),
	}
	for _, kind := range backup.Types() {
		if b, err := info.Newest(kind); err == nil {
			seen.Last[kind] = b.Stop
		}
	}
	if late := info.Late(now, time.Duration(cfg.MaxAge)*time.Hour); late != "" {
		seen.Troubles = append(seen.Troubles, late)
	}
	if len(info.Bad) > 0 {
		seen.Troubles = append(seen.Troubles, fmt.Sprintf("pgBackRest has found damaged pages in %s: the database has them, too", strings.Join(info.Bad, ", ")))
	}
	return seen
}

// saw takes in, on the loop, what was said; nil: this member does not lead any more.
func (w *backupWatch) saw(b *api.Backups) {
	w.m.backups = b
	w.m.Problem("backups", "the shard's backups are not as they should be", b.Problem())
}
