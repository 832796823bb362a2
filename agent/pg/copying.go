package pg

import (
	"fmt"
	"strings"
)

// Copying says how far the data directory of a replica is, and by which method it is made.
type Copying struct {
	// Method is the one of create_replica_methods that is at work.
	Method string
	// Done is how many bytes there are, Total how many there will be; zero: not known.
	Done, Total int64
	// Percent is what the method's own program has printed last; zero: nothing.
	Percent float64
	// Failed says why the methods before it have failed, empty: there were none.
	Failed string
}

// String says it in words.
func (c Copying) String() string {
	var b strings.Builder
	b.WriteString(c.Method)
	switch {
	case c.Percent > 0:
		fmt.Fprintf(&b, ", %.0f %%", c.Percent)
	case c.Total > 0:
		fmt.Fprintf(&b, ", %d of %d MB", min(c.Done, c.Total)>>20, c.Total>>20) // the WAL that comes with it is not in the total
	case c.Done > 0:
		fmt.Fprintf(&b, ", %d MB", c.Done>>20)
	}
	if c.Failed != "" {
		b.WriteString("; " + c.Failed)
	}
	return b.String()
}
