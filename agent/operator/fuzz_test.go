package operator

import (
	"bytes"
	"net/http"
	"strconv"
	"strings"
	"testing"

	consulapi "github.com/hashicorp/consul/api"
)

// FuzzLists: whatever an answer of Consul's says, reading it ends, no more of it is kept than may
// be, and of no shard what nobody looks at.
func FuzzLists(f *testing.F) {
	f.Add([]byte(`[{"Key":"service/x/leader","Value":"YQ==","Session":"s","ModifyIndex":5},{"Key":"service/x/history","Value":"YQ=="}]`), "7", "true", "0")
	f.Add([]byte(`[{"Key":"service/x/members/a","Value":null},{"Key":"service/x/members/a/b","Value":"YQ=="},null,{}]`), "18446744073709551615", "false", "-1")
	f.Add([]byte(`["service/x/leader","service/x","service//leader","service/x/members/"]`), "0", "", "99999999999999999999")
	f.Add([]byte(`[{"Key":"service/x/config","Value":"`+strings.Repeat("QUFB", 64)+`"}`), "-1", "", "")
	f.Add([]byte(`{"Key":1}`), "", "", "")
	f.Add([]byte(`null`), "", "", "")
	old := &consulapi.KVPair{Key: "service/x/leader", Value: []byte("a"), Session: "s", ModifyIndex: 5}
	f.Fuzz(func(t *testing.T, body []byte, index, led, behind string) {
		header := http.Header{"X-Consul-Index": {index}, "X-Consul-Knownleader": {led}, "X-Consul-Lastcontact": {behind}}
		if a, err := headed(header, 7); err == nil {
			if said, _ := strconv.ParseUint(index, 10, 64); a.index != 0 && a.index < 7 || a.index != 0 && a.index != said || led == "false" {
				t.Errorf("index %q, leader %q: %+v", index, led, a)
			}
		}
		const most = 512
		for _, prefix := range []string{"service/", ""} {
			pairs, err := readPairs(bytes.NewReader(body), knownPairs(consulapi.KVPairs{old}), &budget{shards: prefix, ofShard: most / 2, left: most})
			if err == nil && sizeOf(pairs) > most {
				t.Errorf("%d bytes are kept", sizeOf(pairs))
			}
			for _, p := range pairs {
				rest := p.Key[strings.LastIndex(p.Key, "/")+1:]
				if p == nil || prefix != "" && (rest == "history" || rest == "") {
					t.Errorf("kept: %+v", p)
				}
				if p != old && same(p, old) && p.Key == old.Key {
					t.Errorf("kept twice: %+v", p)
				}
			}
		}
		shards, _ := countNames(bytes.NewReader(body), "service/")
		for scope, c := range shards {
			if strings.Contains(scope, "/") || c.keys < 1 {
				t.Errorf("%q: %+v", scope, c)
			}
		}
	})
}

// FuzzStarted: what somebody who answers in an agent's place says of its start is a time, or nothing.
func FuzzStarted(f *testing.F) {
	f.Add("# HELP process_start_time_seconds Start time.\nprocess_start_time_seconds{name=\"a\",scope=\"x\"} 1.7646e+09\n")
	f.Add("process_start_time_seconds \x1b[31m\n")
	f.Add("process_start_time_seconds{ NaN")
	f.Add("process_start_time_seconds_more 1\nprocess_start_time_seconds{} +Inf\n")
	f.Fuzz(func(t *testing.T, metrics string) {
		said, err := startedBy(metrics)
		if at, wrong := strconv.ParseFloat(said, 64); err == nil && (wrong != nil || !(at > 0)) {
			t.Errorf("%q: %q", metrics, said)
		}
		if err != nil && (said != "" || strings.ContainsAny(err.Error(), "\x1b\n")) {
			t.Errorf("%q: %q, %q", metrics, said, err)
		}
	})
}
