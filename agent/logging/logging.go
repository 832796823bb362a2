// Package logging makes Lictor's loggers: lines for people on a terminal, JSON
// elsewhere, or lines as Patroni writes them. The level can be changed while the
// logger is in use, and no secret of the configuration ever gets into a line.
package logging

import (
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
)

// The formats of log.format.
const (
	FormatAuto    = "auto"    // console on a terminal, else json
	FormatConsole = "console" // for people
	FormatJSON    = "json"    // one object a line
	FormatPatroni = "patroni" // 2026-11-21 02:46:04,971 INFO: text; the level starts at the character 24
)

// Log makes loggers that share one level and one list of secrets.
type Log struct {
	base    zerolog.Logger
	level   atomic.Int32 // a zerolog.Level: the one in force
	set     atomic.Int32 // the one that was asked for last by Set
	secrets atomic.Pointer[secrets]
	queue   *queue // nil: whoever logs writes
}

// NewQueued is New for a log of which nobody must ever wait, whoever reads it or does
// not. Close it at the end, or its last lines are lost.
func NewQueued(level, format string, out io.Writer, terminal bool) (*Log, error) {
	q := newQueue(out)
	l, err := New(level, format, q, terminal)
	if err != nil {
		return nil, err
	}
	l.queue = q
	q.lost = func(lines int) {
		l.base.Warn().Int("lines", lines).Msg("log lines were lost, as nobody took them in time")
	}
	go q.run() // until Close
	return l, nil
}

// Close waits until all lines of a queued log are written, at most for limit.
func (l *Log) Close(limit time.Duration) {
	if l.queue != nil {
		l.queue.close(limit)
	}
}

// New makes a log that writes to out, which is a terminal or not. An unknown
// level or format is an error that names the setting.
func New(level, format string, out io.Writer, terminal bool) (*Log, error) {
	l := &Log{}
	if err := l.Set(level); err != nil {
		return nil, err
	}
	out = &veil{out: out, secrets: &l.secrets}
	switch format {
	case "", FormatAuto:
		if terminal {
			out = console(out)
		}
	case FormatConsole:
		out = console(out)
	case FormatJSON:
	case FormatPatroni:
		out = patroni(out)
	default:
		return nil, fmt.Errorf("log.format: %q: must be one of %s, %s, %s, %s", format, FormatAuto, FormatConsole, FormatJSON, FormatPatroni)
	}
	// The time is put in by a hook: zerolog's own has its format from a variable
	// of the package.
	l.base = zerolog.New(tidy{out}).Sample(l).Hook(stamp{})
	return l, nil
}

// Logger is a logger of this log.
func (l *Log) Logger() zerolog.Logger { return l.base }

// Sample implements zerolog.Sampler: it is asked before a line is made.
func (l *Log) Sample(level zerolog.Level) bool { return level >= zerolog.Level(l.level.Load()) }

// Set changes the level, from now on and for every logger of this log: debug,
// info, warning or error; empty is info.
func (l *Log) Set(level string) error {
	parsed, err := parseLevel(level)
	if err != nil {
		return err
	}
	l.set.Store(int32(parsed))
	l.level.Store(int32(parsed))
	return nil
}

// ToggleDebug switches between debug and the level that was set (info, where that is
// debug), and returns the one that is in force now.
func (l *Log) ToggleDebug() string {
	if l.level.Load() == int32(zerolog.DebugLevel) {
		l.level.Store(max(l.set.Load(), int32(zerolog.InfoLevel)))
	} else {
		l.level.Store(int32(zerolog.DebugLevel))
	}
	return l.Level()
}

// Level is the level in force, in the words of log.level.
func (l *Log) Level() string {
	if level := zerolog.Level(l.level.Load()); level != zerolog.WarnLevel {
		return level.String()
	}
	return "warning"
}

func parseLevel(level string) (zerolog.Level, error) {
	switch strings.ToLower(level) {
	case "", "info":
		return zerolog.InfoLevel, nil
	case "debug":
		return zerolog.DebugLevel, nil
	case "warning", "warn":
		return zerolog.WarnLevel, nil
	case "error":
		return zerolog.ErrorLevel, nil
	}
	return 0, fmt.Errorf("log.level: %q: must be one of debug, info, warning, error", level)
}

// timeLayout is what the hook writes and the console reads.
const timeLayout = "2006-01-02T15:04:05.000Z07:00"

type stamp struct{}

// Run implements zerolog.Hook.
func (stamp) Run(e *zerolog.Event, _ zerolog.Level, _ string) {
	e.Str(zerolog.TimestampFieldName, time.Now().Format(timeLayout))
}

// retime turns the hook's time into another layout.
func retime(layout string) zerolog.Formatter {
	return func(value any) string {
		text, _ := value.(string)
		at, err := time.Parse(timeLayout, text)
		if err != nil {
			return text
		}
		return at.Local().Format(layout)
	}
}

func console(out io.Writer) io.Writer {
	return zerolog.ConsoleWriter{
		Out: out, FormatTimestamp: retime("15:04:05.000"), FormatMessage: shown(text), FormatFieldValue: shown(text), FormatErrFieldValue: shown(text),
	}
}

// patroni writes lines as Patroni's default format has them, with Python's words
// for the levels.
func patroni(out io.Writer) io.Writer {
	return zerolog.ConsoleWriter{
		Out: out, NoColor: true, FormatTimestamp: retime("2006-01-02 15:04:05,000"),
		FormatLevel: func(value any) string {
			switch word := fmt.Sprint(value); word {
			case "warn":
				return "WARNING:"
			case "fatal", "panic":
				return "CRITICAL:"
			default:
				return strings.ToUpper(word) + ":"
			}
		},
		// A line is a line: what was quoted from elsewhere may have more.
		FormatMessage:    shown(func(value any) string { return strings.Join(strings.Fields(text(value)), " ") }),
		FormatFieldValue: shown(text), FormatErrFieldValue: shown(text),
	}
}
