// Package netns runs functions in network namespaces.
package netns

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// In calls do on a thread of its own that is in the network namespace: a socket belongs
// to the namespace of the thread that makes it, for good. do must need no other thread;
// a dialer needs none for addresses that are numbers.
func In[T any](namespace *os.File, do func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	results := make(chan result, 1)
	go func() {
		// Not unlocked: nobody else may get a thread that is in a foreign namespace,
		// so it must end.
		runtime.LockOSThread()
		if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET); err != nil {
			results <- result{err: fmt.Errorf("entering the network namespace %s: %w", namespace.Name(), err)}
			return
		}
		value, err := do()
		results <- result{value, err}
	}()
	r := <-results
	return r.value, r.err
}
