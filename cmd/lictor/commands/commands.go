// Package commands is the command line of lictor: agent, bouncer, guard and the
// operator's commands. Each command calls one package.
package commands

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/logging"
	"github.com/lictor-ha/lictor/agent/operator"
	"github.com/lictor-ha/lictor/agent/printable"
)

// version is set by the build (Makefile); X.Y.Z, as patronictl expects.
var version = "0.1.0"

// Run executes the command that the program's arguments name, and returns its exit code.
func Run(ctx context.Context) int {
	root, began := rootCommand()
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	if !*began {
		err = operator.Usage(err)
		if cmd != root {
			err = fmt.Errorf("%w; usage: %s", err, cmd.UseLine())
		}
	}
	fmt.Fprintln(os.Stderr, "lictor:", operator.Explain(err))
	return operator.ExitCode(err)
}

// Groups of commands in the help.
const (
	groupShards   = "shards"
	groupServices = "services"
	groupSetUp    = "setup"
)

// Root is the tree of all commands, for what writes about them.
func Root() *cobra.Command {
	root, _ := rootCommand()
	return root
}

// keepLittleGarbage is for the programs that run for years beside others. They keep a few
// MiB, and let half as much garbage come together where Go would take the same again; who
// sets GOGC decides for himself.
func keepLittleGarbage() {
	const percent = 50
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(percent)
	}
}

// rootCommand makes the tree of commands. began tells, after it was executed,
// whether a command began: an error before that is one of the command line.
func rootCommand() (root *cobra.Command, began *bool) {
	root = &cobra.Command{
		Use:           "lictor",
		Short:         "High availability for sharded PostgreSQL, native to Consul",
		Long:          "High availability for sharded PostgreSQL, native to Consul.\n\n" + operator.ExitCodes,
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return flagError(err) })
	root.SetHelpCommandGroupID(groupSetUp)
	root.SetCompletionCommandGroupID(groupSetUp)
	root.AddGroup(
		&cobra.Group{ID: groupShards, Title: "Shards:"}, &cobra.Group{ID: groupServices, Title: "Services:"},
		&cobra.Group{ID: groupSetUp, Title: "Setting up:"},
	)
	root.AddCommand(
		listCommand(), topologyCommand(), fleetCommand(), doctorCommand(), eventsCommand(), historyCommand(),
		showConfigCommand(), editConfigCommand(), switchoverCommand(), failoverCommand(), demoteClusterCommand(), promoteClusterCommand(), evacuateCommand(), rebalanceCommand(), drillCommand(), rotateSecretCommand(), restartCommand(), reloadCommand(),
		reinitCommand(), restoreCommand(), upgradeCommand(), pauseCommand(true), pauseCommand(false), queryCommand(), dsnCommand(), flushCommand(), removeCommand(), repackCommand(), windowsCommand(),
		versionCommand(), guardCommand(), probeDiskCommand(),
	)
	for group, commands := range map[string][]*cobra.Command{
		groupShards:   {routesCommand()},
		groupServices: {agentCommand(), bouncerCommand(), backupCommand(), webCommand()},
		groupSetUp:    {validateCommand(), generateConfigCommand(), sampleConfigCommand()},
	} {
		for _, cmd := range commands {
			cmd.GroupID = group
			root.AddCommand(cmd)
		}
	}
	began = new(bool)
	noteBegin(root, began)
	return root, began
}

// flagError says in words which rule a flag's value breaks.
func flagError(err error) error {
	var invalid *pflag.InvalidValueError
	var number *strconv.NumError
	switch {
	case !errors.As(err, &invalid):
		return err
	case errors.As(err, &number) && errors.Is(number, strconv.ErrRange):
		return fmt.Errorf("--%s: %q, is too large a number", invalid.GetFlag().Name, invalid.GetValue())
	}
	rule, known := map[string]string{
		"int": "must be a whole number", "bool": "must be true or false", "duration": "must be a time with a unit, such as 90s or 5m", "float64": "must be a number",
	}[invalid.GetFlag().Value.Type()]
	if !known {
		return err
	}
	return fmt.Errorf("--%s: %q, %s", invalid.GetFlag().Name, invalid.GetValue(), rule)
}

// noteBegin has every command say when it begins.
func noteBegin(cmd *cobra.Command, began *bool) {
	if run := cmd.RunE; run != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			*began = true
			return run(cmd, args)
		}
	}
	for _, below := range cmd.Commands() {
		noteBegin(below, began)
	}
}

// say writes a line for people. Members, bouncers and programs have their words in it.
func say(out io.Writer, format string, args ...any) {
	fmt.Fprintln(out, printable.Block(fmt.Sprintf(format, args...)))
}

// lastLines is how long the end of a service waits for its last log lines.
const lastLines = time.Second

// newLog logs to stderr, for people on a terminal and as JSON elsewhere; format may
// ask for one of console, json, patroni. A service neither waits for nor ends with
// whoever reads its log: no lease is lost by it. The log is to be closed.
func newLog(level, format string) (*logging.Log, error) {
	// Without a handler a write to a pipe that was closed ends a Go program.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	return logging.NewQueued(level, format, os.Stderr, term.IsTerminal(int(os.Stderr.Fd())))
}

// newFileLog logs into a file, where log.dir says so, else as newLog does. The file is closed with
// the process.
func newFileLog(c config.Log) (*logging.Log, error) {
	if c.Dir == "" {
		return newLog(c.Level, c.Format)
	}
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) // stderr takes what the file does not
	out, err := logging.OpenFile(c.Dir, logging.Rotation{Size: c.FileSize, Keep: c.FileNum, Mode: fs.FileMode(c.Mode)}, os.Stderr)
	if err != nil {
		return nil, err
	}
	return logging.NewQueued(c.Level, c.Format, out, false)
}
