package pg

import (
	"strings"
	"testing"

	"github.com/lictor-ha/lictor/agent/printable"
)

// FuzzParseHistory: a history comes from another server, or from an archive. What is read can be written and read
// again, and what is refused makes no long line.
func FuzzParseHistory(f *testing.F) {
	f.Add("1\t0/3000000\tno recovery target specified\n\n2\t0/5000060\tbefore 2026-01-02 15:04:05+00\n")
	f.Add("# comment\n1\t1/0\n")
	f.Add("1 0/0")
	f.Add("1\t" + strings.Repeat("f", 5000))
	f.Add(strings.Repeat("9", 5000) + "\t0/0")
	f.Fuzz(func(t *testing.T, content string) {
		history, err := ParseHistory(content)
		if err != nil {
			if len(err.Error()) > 2*printable.MaxText {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
			return
		}
		for _, h := range history {
			if lsn, err := ParseLSN(FormatLSN(h.LSN)); err != nil || lsn != h.LSN {
				t.Errorf("%X comes back as %X, %v", h.LSN, lsn, err)
			}
			Discards(h.Reason)
		}
	})
}
