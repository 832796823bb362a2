// Command mutants changes the decision core, or the state machine, in one place after the other and prints which
// test notices: `make mutants`. It fails when nothing notices a change that has no reason in
// survivors.txt.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/lictor-ha/lictor/e2e/mutants"
)

func main() {
	only := flag.String("only", "", "regular expression: only mutants whose names match")
	seeds := flag.Int("seeds", 0, "random schedules that the simulator plays of those that the tables do not kill, beside the directed ones; 0: none")
	parallel := flag.Int("parallel", runtime.NumCPU(), "how many run at a time")
	core := flag.String("core", mutants.Cores()[0], "the package that is changed: "+strings.Join(mutants.Cores(), ", "))
	list := flag.Bool("list", false, "only print the names")
	flag.Parse()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt)
	defer cancel()
	if err := run(ctx, *core, *only, *seeds, *parallel, *list); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1) //nolint:gocritic // nothing to clean up that is deferred here
	}
}

func run(ctx context.Context, core, only string, seeds, parallel int, list bool) error {
	if !slices.Contains(mutants.Cores(), core) {
		return fmt.Errorf("-core: %q, must be one of %s", core, strings.Join(mutants.Cores(), ", "))
	}
	choose, err := regexp.Compile(only)
	if err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	known, err := mutants.Survivors()
	if err != nil {
		return err
	}
	rules, err := mutants.Rules(".")
	if err != nil {
		return err
	}
	rules = slices.DeleteFunc(rules, func(r mutants.Rule) bool { return !choose.MatchString("rule " + r.Name) })
	if !list {
		if err := mutants.Play(ctx, ".", rules); err != nil {
			return err
		}
	}
	for _, r := range rules {
		if list {
			fmt.Println("rule " + r.Name)
		}
	}
	dir, err := os.MkdirTemp("", "lictor-mutants-")
	if err != nil {
		return fmt.Errorf("scratch directory: %w", err)
	}
	defer os.RemoveAll(dir)
	suite, err := mutants.Build(ctx, ".", dir, core, seeds)
	if err != nil {
		return err
	}
	var (
		mu                            sync.Mutex
		killed, survived, unexplained int
		failed                        error
		all                           sync.WaitGroup
	)
	slots := make(chan struct{}, parallel)
	for n, m := range suite.Mutants {
		if !choose.MatchString(m.Name()) {
			continue
		}
		if list {
			fmt.Println(m.Name())
			continue
		}
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			by, err := suite.Kill(ctx, n)
			mu.Lock()
			defer mu.Unlock()
			reason, explained := known[m.Name()]
			switch {
			case err != nil:
				failed = err
			case by != "":
				killed++
				fmt.Printf("killed    %s\n          by %s\n", m.Name(), by)
				if explained {
					fmt.Println("          take it out of survivors.txt")
				}
			case explained:
				survived++
				fmt.Printf("survived  %s\n          %s\n", m.Name(), reason)
			default:
				unexplained++
				fmt.Printf("SURVIVED  %s\n          line %d\n", m.Name(), m.Line)
			}
		})
		if ctx.Err() != nil {
			break
		}
	}
	all.Wait()
	if failed != nil || list {
		return failed
	}
	fmt.Printf("%d killed, %d survived with a reason, %d without\n", killed, survived, unexplained)
	if unexplained > 0 {
		return fmt.Errorf("nothing notices %d changes: write a test, delete what nobody needs, or a reason into e2e/mutants/survivors.txt", unexplained)
	}
	return nil
}
