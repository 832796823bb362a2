// Command lictor is the whole of Lictor in one binary: agent, bouncer, guard and
// the operator's commands. Each command calls one package.
package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// version is set by the build (Makefile); X.Y.Z, as patronictl expects.
var version = "0.1.0"

func main() {
	root := &cobra.Command{
		Use:           "lictor",
		Short:         "High availability for sharded PostgreSQL, native to Consul",
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(
		agentCommand(), guardCommand(), probeDiskCommand(), bouncerCommand(),
		listCommand(), switchoverCommand(), routesCommand(),
		validateCommand(), sampleConfigCommand(), demoCommand(),
	)
	if err := root.ExecuteContext(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "lictor:", err)
		os.Exit(1)
	}
}

// newLogger logs for people on a terminal and as JSON elsewhere; format may ask
// for one of console, json, patroni.
func newLogger(level, format string) (zerolog.Logger, error) {
	l := zerolog.InfoLevel
	if level != "" {
		name := strings.ToLower(level)
		if name == "warning" {
			name = "warn"
		}
		var err error
		if l, err = zerolog.ParseLevel(name); err != nil {
			return zerolog.Nop(), fmt.Errorf("log.level: %q: must be one of debug, info, warning, error", level)
		}
	}
	zerolog.TimeFieldFormat = time.RFC3339Nano
	out := zerolog.New(os.Stderr)
	switch {
	case format == "patroni":
		// Its users parse lines whose level starts at the character 24.
		out = zerolog.New(zerolog.ConsoleWriter{
			Out: os.Stderr, NoColor: true, TimeFormat: "2006-01-02 15:04:05,000",
			FormatLevel: func(v any) string { return strings.ToUpper(fmt.Sprint(v)) + ":" },
		})
	case format == "console", (format == "" || format == "auto") && term.IsTerminal(int(os.Stderr.Fd())):
		out = zerolog.New(zerolog.ConsoleWriter{Out: os.Stderr, TimeFormat: "15:04:05.000"})
	}
	return out.Level(l).With().Timestamp().Logger(), nil
}

func contextWithTimeout(cmd *cobra.Command, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(cmd.Context(), d)
}
