package backup

import (
	"strings"
	"testing"
	"time"
)

// FuzzParse: whatever a repository's host has pgBackRest say, the newest backup is one of those
// that are listed, and nothing is said of another stanza.
func FuzzParse(f *testing.F) {
	f.Add([]byte(said), "orders", system)
	f.Add([]byte(strings.ReplaceAll(said, `"error":false`, `"error":true`)), "orders", "")
	f.Add([]byte(`[{"name":"x","backup":[{"label":"\u001b[31m","timestamp":{"stop":9223372036854775807},"info":{"size":-1}}]}]`), "x", "")
	f.Add([]byte(`[{"name":"x","db":null,"repo":[{}],"backup":[{}]},{"name":"x"}]`), "x", "0")
	f.Fuzz(func(t *testing.T, out []byte, stanza, system string) {
		info, err := Parse(out, stanza, system)
		if err != nil {
			return
		}
		newest, err := info.Newest("")
		if (err == nil) != (len(info.Backups) > 0) {
			t.Errorf("%d backups, the newest is %+v, %v", len(info.Backups), newest, err)
		}
		for _, b := range info.Backups {
			if b.Stop.After(newest.Stop) {
				t.Errorf("%+v is newer than %+v", b, newest)
			}
		}
		info.Verified()
		if late := info.Late(time.Unix(0, 0), time.Hour); late == "" && len(info.Backups) == 0 {
			t.Error("no backup is not late")
		}
	})
}
