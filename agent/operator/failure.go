package operator

import (
	"errors"
	"fmt"

	"github.com/lictor-ha/lictor/agent/cluster/settings"
)

// Exit codes of the commands: scripts may rely on them.
const (
	ExitDone       = 0
	ExitFailed     = 1 // something that was needed did not work
	ExitUsage      = 2 // the command line or a file it names makes no sense
	ExitRefused    = 3 // the shard, or the person who was asked, said no; nothing has changed
	ExitRolledBack = 4 // it was begun, and everything is as before
	ExitUnknown    = 5 // what was asked may or may not have taken effect, or may yet
	ExitFindings   = 6 // doctor or a --check has found what needs doing
	ExitSurprise   = 7 // a drill met with what must not be
)

// ExitCodes explains the exit codes to people.
const ExitCodes = `Exit codes:
  0  done
  1  failed: something that was needed did not work
  2  usage: the command line, or a file that it names, makes no sense
  3  refused, by the shard or at a prompt: nothing has changed
  4  rolled back: it was begun, and everything is as before
  5  unknown: it may or may not have taken effect, or may yet
  6  doctor, or a command with --check, found what needs doing
  7  drill: it was stopped by a surprise`

// failure is an error with the exit code of its kind.
type failure struct {
	code int
	err  error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// Usage marks an error as one of the command line.
func Usage(err error) error { return &failure{ExitUsage, err} }

// Refused marks an error as a refusal: nothing has changed.
func Refused(err error) error { return &failure{ExitRefused, err} }

// Findings marks an error as what a check has found.
func Findings(err error) error { return &failure{ExitFindings, err} }

func usagef(format string, args ...any) error { return Usage(fmt.Errorf(format, args...)) }

func refusedf(format string, args ...any) error {
	return Refused(fmt.Errorf(format, args...))
}

func rolledBack(err error) error { return &failure{ExitRolledBack, err} }

// afterSome is the error of a step of several, of which some were done before: that one was refused, or
// rolled back, does not say that nothing has changed.
func afterSome(done, of int, err error) error {
	if code := ExitCode(err); done == 0 || code != ExitRefused && code != ExitRolledBack {
		return err
	}
	return &failure{ExitFailed, fmt.Errorf("%d of %d are done: %w", done, of, err)}
}

func unknownf(format string, args ...any) error {
	return &failure{ExitUnknown, fmt.Errorf(format, args...)}
}

// ExitCode is the exit code for what a command returned.
func ExitCode(err error) int {
	var f *failure
	var refused *settings.Refused
	switch {
	case err == nil:
		return ExitDone
	case errors.As(err, &f):
		return f.code
	case errors.As(err, &refused): // of agent, bouncer and validate
		return ExitUsage
	}
	return ExitFailed
}
