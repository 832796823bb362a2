// Command demo runs a sharded cluster on this machine, to be broken by key (`make demo`).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/lictor-ha/lictor/e2e/demo"
)

func main() {
	o, err := options(os.Args[1:], os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return
	case err != nil:
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(2)
	}
	if err := demo.Run(context.Background(), o); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// options reads the command line; help goes to out.
func options(args []string, out io.Writer) (demo.Options, error) {
	o := demo.Options{Out: os.Stdout, In: os.Stdin}
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	flags.SetOutput(out)
	flags.BoolVar(&o.Once, "once", false, "start, kill the primary's host of shard 1, await recovery, report, stop")
	flags.StringVar(&o.Report, "report", "", "write a report in JSON to this file")
	flags.StringVar(&o.Scenario, "scenario", "", "run this scenario, or all, and print what the clients saw")
	flags.BoolVar(&o.Keep, "keep", false, "keep the data and logs, and say where")
	flags.BoolVar(&o.Async, "async", false, "asynchronous replication")
	flags.StringVar(&o.Dir, "dir", "", "directory for all data (default: a new one)")
	flags.IntVar(&o.TTL, "ttl", 0, "lease of the leaders in seconds (default: Lictor's)")
	flags.Usage = func() {
		fmt.Fprint(out, "Runs Consul's servers, shards with their agents, PgBouncers with their bouncers, HAProxy and clients that\n"+
			"write, all on this machine, and removes them at its end. On a terminal keys break it; --scenario NAME plays\n"+
			"one of these:\n\n"+demo.Scenarios()+"\nThe binary that is shown is the one that LICTOR_BIN names.\n\n")
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if rest := flags.Args(); len(rest) > 0 {
		return o, fmt.Errorf("%q: takes no arguments", rest)
	}
	if err := o.Check(); err != nil {
		return o, fmt.Errorf("--scenario: %w", err)
	}
	return o, nil
}
