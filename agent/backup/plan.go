package backup

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Wanted is a recovery that somebody asks for.
type Wanted struct {
	Target time.Time
	// Label is the backup; empty: the newest from which it is possible.
	Label string
	// System is the cluster's system identifier, Timeline its present one.
	System   string
	Timeline int
	// Dir is a directory on the disk to which it is restored.
	Dir string
}

// Plan is a recovery that was found possible.
type Plan struct {
	Target time.Time
	From   Backup
	Line   Line
}

// Refusal says why there can be no such recovery.
type Refusal struct {
	// Field is what was asked for that cannot be: FieldTarget, FieldLabel; empty: neither.
	Field string
	Why   error
}

// The fields of what is asked for.
const (
	FieldTarget = "target"
	FieldLabel  = "label"
)

func (r Refusal) Error() string {
	if r.Field == "" {
		return r.Why.Error()
	}
	return r.Field + ": " + r.Why.Error()
}

func (r Refusal) Unwrap() error { return r.Why }

// Plan looks whether the repository has a backup, on the right timeline, from which a recovery
// to a moment is possible, and whether there is room for it. It touches nothing.
func (r Repository) Plan(ctx context.Context, w Wanted) (Plan, error) {
	p := Plan{Target: w.Target}
	at := TargetText(w.Target)
	if now := time.Now(); w.Target.After(now) {
		return p, Refusal{FieldTarget, fmt.Errorf("%s is in the future: it is %s", at, TargetText(now))}
	}
	info, err := r.Info(ctx, w.System)
	if err == nil && info.Trouble != "" && len(info.Backups) == 0 {
		err = errors.New(info.Trouble)
	}
	if err != nil {
		return p, unreadable(err)
	}
	field := FieldTarget
	if w.Label != "" {
		field = FieldLabel
	}
	// What no timeline has is refused whatever the archive has of them.
	if _, err := info.Before(w.Target, w.Label, Line{}); err != nil {
		return p, Refusal{field, fmt.Errorf("%s: %w", at, err)}
	}
	if p.Line, err = r.Line(ctx, info, w.Timeline, w.Target); err != nil {
		return p, HistoryError{unreadable(err)}
	}
	if p.From, err = info.Before(w.Target, w.Label, p.Line); err != nil {
		return p, Refusal{field, fmt.Errorf("%s: %w", at, err)}
	}
	if err := p.From.Room(w.Dir); err != nil {
		return p, Refusal{"", err}
	}
	return p, nil
}

// Reaches looks whether the archive has WAL until after a plan's target, and says until when.
func (r Repository) Reaches(ctx context.Context, p Plan) (archived time.Time, err error) {
	if archived, err = r.Archived(ctx, p.Line); err != nil {
		return archived, unreadable(err)
	}
	if !p.Target.Before(archived) {
		return archived, Refusal{FieldTarget, fmt.Errorf("%s is later than the last WAL of timeline %d in the archive, which came there at %s",
			TargetText(p.Target), p.Line.Timeline, archived.UTC().Format(time.RFC3339))}
	}
	return archived, nil
}

// HistoryError is of histories that the archive does not tell: it may be behind.
type HistoryError struct{ error }

func (e HistoryError) Unwrap() error { return e.error }

func unreadable(err error) error { return fmt.Errorf("pgBackRest cannot read the repository: %w", err) }
