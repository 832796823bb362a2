package pooler

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/environ"
	"github.com/lictor-ha/lictor/bouncer/config"
)

const (
	// restartLeast and restartMost limit the pause before PgBouncer is started
	// again; one that ran for restartCalm begins anew.
	restartLeast = 100 * time.Millisecond
	restartMost  = 5 * time.Second
	restartCalm  = 10 * time.Second
	// firstFilePace is how often it is looked whether the configuration is there.
	firstFilePace = 50 * time.Millisecond
)

// supervisor runs PgBouncer where nobody else does, in a container for instance.
// A PgBouncer that answers already, left by a bouncer that was killed, is left
// alone until it ends.
type supervisor struct {
	config config.Config
	log    zerolog.Logger
	output io.Writer
}

func NewSupervisor(c config.Config, log zerolog.Logger) *supervisor {
	return &supervisor{config: c, log: log}
}

// Run supervises until ctx is done, and then ends PgBouncer: first by SIGINT, which
// lets running transactions end (in all versions; SIGTERM's meaning changed in
// 1.23), after stop_timeout by SIGQUIT and SIGKILL.
func (s *supervisor) Run(ctx context.Context) {
	pause := restartLeast
	for s.awaitFile(ctx) {
		if s.leaveAlone(ctx) {
			continue
		}
		begun := time.Now()
		err := s.once(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(begun) > restartCalm {
			pause = restartLeast
		}
		s.log.Error().Err(err).Dur("again_in", pause).Msg("PgBouncer has ended and is started again")
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		pause = min(2*pause, restartMost)
	}
}

// awaitFile waits for the configuration that PgBouncer is to start with.
func (s *supervisor) awaitFile(ctx context.Context) bool {
	for ctx.Err() == nil {
		if _, err := os.Stat(s.config.PgBouncer.Config); err == nil {
			return true
		}
		select {
		case <-time.After(firstFilePace):
		case <-ctx.Done():
		}
	}
	return false
}

// leaveAlone waits for the end of a PgBouncer that is there already.
func (s *supervisor) leaveAlone(ctx context.Context) bool {
	conn, err := dialAdmin(ctx, s.config)
	if err != nil {
		return false
	}
	defer conn.Close()
	s.log.Warn().Str("admin", s.config.PgBouncer.Admin).Msg("PgBouncer runs already; it is left alone, and started when it ends")
	for err == nil && ctx.Err() == nil && isListening(s.config, socketTable) {
		wait, cancel := context.WithTimeout(ctx, linkPing)
		err = conn.AwaitEnd(wait)
		cancel()
	}
	if ctx.Err() == nil {
		s.log.Info().Err(err).Msg("the PgBouncer that ran already has ended")
	}
	return true
}

// once runs PgBouncer until it ends or ctx is done.
func (s *supervisor) once(ctx context.Context) error {
	command := s.config.PgBouncer.Command
	cmd := exec.Command(command[0], command[1:]...) //nolint:noctx // it is ended below, gently at first
	lines := &lineLog{log: s.log}
	cmd.Env, cmd.Stdout, cmd.Stderr = environ.For(s.config.PassEnvironment), lines, lines
	if s.output != nil {
		cmd.Stdout, cmd.Stderr = s.output, s.output
	}
	// A group of its own: a terminal's SIGINT is for the bouncer, which decides.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("pgbouncer.command: starting %s: %w", command[0], err)
	}
	s.log.Info().Int("pid", cmd.Process.Pid).Str("program", command[0]).Msg("PgBouncer started")
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		if err == nil {
			err = errors.New("it ended by itself, without an error; does it run in the foreground (no -d)?")
		}
		return fmt.Errorf("pgbouncer.command: %s: %w", command[0], err)
	case <-ctx.Done():
	}
	patience := time.Duration(s.config.PgBouncer.StopTimeout * float64(time.Second))
	for _, step := range []struct {
		signal   syscall.Signal
		patience time.Duration
	}{{syscall.SIGINT, patience}, {syscall.SIGQUIT, time.Second}, {syscall.SIGKILL, time.Second}} {
		// To the group: the command may be a wrapper around PgBouncer.
		if err := syscall.Kill(-cmd.Process.Pid, step.signal); err != nil {
			s.log.Debug().Err(err).Stringer("signal", step.signal).Msg("PgBouncer could not be signalled")
		}
		select {
		case err := <-ended:
			s.log.Info().AnErr("result", err).Stringer("signal", step.signal).Msg("PgBouncer has ended with the bouncer")
			return nil
		case <-time.After(step.patience):
		}
	}
	return <-ended // nothing survives SIGKILL
}

// lineLog logs what a program writes, line by line.
type lineLog struct {
	log zerolog.Logger

	mu   sync.Mutex
	rest []byte
}

// lineMost is the longest line that is kept together, in bytes.
const lineMost = 1 << 14

func (l *lineLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rest = append(l.rest, p...)
	for {
		end := bytes.IndexByte(l.rest, '\n')
		if end < 0 && len(l.rest) < lineMost {
			return len(p), nil
		}
		if end < 0 {
			end = lineMost - 1
		}
		l.log.Info().Str("from", "pgbouncer").Msg(string(bytes.TrimRight(l.rest[:end], "\r")))
		l.rest = append(l.rest[:0], l.rest[end+1:]...)
	}
}
