// Command capacity measures what shards cost Consul: it starts three servers on
// this machine and does to them what the agents of many shards do, with the
// agents' own code for Consul, but without PostgreSQL. docs/capacity.md has the
// formula that the figures are compared with.
//
// Per member: one blocking query on the shard, one on its route, a session that
// is renewed; per shard: a leader that beats; with -busy every member's position
// moves, so that it writes its own key once a loop_wait.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"time"
)

// options are the flags.
type options struct {
	shards, members int
	busy            bool
	ttl, loopWait   time.Duration
	warm, measure   time.Duration
	consul          string
	port            int
}

func main() {
	var o options
	flag.IntVar(&o.shards, "shards", 50, "shards")
	flag.IntVar(&o.members, "members", 3, "members of each shard")
	flag.BoolVar(&o.busy, "busy", false, "every shard takes writes")
	flag.DurationVar(&o.ttl, "ttl", 8*time.Second, "the shards' ttl")
	flag.DurationVar(&o.loopWait, "loop-wait", 2*time.Second, "the shards' loop_wait")
	flag.DurationVar(&o.warm, "warm", 10*time.Second, "how long to wait before measuring")
	flag.DurationVar(&o.measure, "for", 20*time.Second, "how long to measure")
	flag.StringVar(&o.consul, "consul", os.Getenv("CONSUL_BIN"), "the Consul binary (e2e/tools/consul.sh prints its path)")
	flag.IntVar(&o.port, "port", 28600, "the first of the 15 ports to use")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "capacity:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	dir, err := os.MkdirTemp("", "lictor-capacity-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	servers, err := startServers(ctx, o, dir)
	if err != nil {
		return err
	}
	defer servers.stop()
	load := newLoad(o, servers.addresses())
	defer load.stop()
	if err := load.start(ctx); err != nil {
		return err
	}
	if err := sleep(ctx, o.warm); err != nil {
		return err
	}
	before, err := take(ctx, servers, load)
	if err != nil {
		return err
	}
	if err := sleep(ctx, o.measure); err != nil {
		return err
	}
	after, err := take(ctx, servers, load)
	if err != nil {
		return err
	}
	report(o, before, after, load)
	return nil
}

// sleep waits for d: what is measured goes on meanwhile.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func report(o options, before, after sample, l *load) {
	seconds := after.at.Sub(before.at).Seconds()
	rate := func(a, b float64) float64 { return (b - a) / seconds }
	kind := "idle"
	if o.busy {
		kind = "busy"
	}
	fmt.Printf("%d %s shards of %d, ttl %v, loop_wait %v, three servers, %.0f s\n", o.shards, kind, o.members, o.ttl, o.loopWait, seconds)
	for _, line := range []struct {
		what, unit        string
		formula, measured float64
	}{
		{"raft entries", "/s", l.writesPerSecond(), rate(before.raft, after.raft)},
		{"requests that renew a session", "/s", l.renewsPerSecond(), rate(before.renews, after.renews)},
		{"answers of watches", "/s", l.answersPerSecond(), rate(before.answers, after.answers)},
		{"open blocking queries", "", l.watches(), float64(after.open)},
		{"bytes of watches", " kB/s", l.answersPerSecond() * after.answerSize / 1e3, rate(before.bytes, after.bytes) / 1e3},
	} {
		fmt.Printf("%-32s formula %9.1f%-5s measured %9.1f%s\n", line.what, line.formula, line.unit, line.measured, line.unit)
	}
	fmt.Printf("%-32s %.0f bytes\n", "one answer of a shard's watch", after.answerSize)
	for i := range after.cpu {
		fmt.Printf("server %d: %.2f s of CPU a second, %.0f MiB resident\n", i+1, rate(before.cpu[i], after.cpu[i]), after.rss[i])
	}
	p50, p99, worst, failed := l.latencies()
	fmt.Printf("beats: median %v, 99 %% within %v, worst %v, %d failed\n", p50.Round(100*time.Microsecond), p99.Round(100*time.Microsecond), worst.Round(time.Millisecond), failed)
}
