package backup

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// said is what pgBackRest 2.45 says of a full backup and an incremental one, shortened.
const said = `[{"name":"orders","db":[{"id":1,"repo-key":1,"system-id":7713724171926193023,"version":"15"}],
"repo":[{"key":1,"cipher":"none","status":{"code":0,"message":"ok"}}],"status":{"code":0,"lock":{"backup":{"held":false}},"message":"ok"},
"backup":[
{"label":"20261129-222932F","type":"full","error":false,"database":{"id":1,"repo-key":1},"annotation":{"lictor-verified":"2026-11-30T01:02:03Z"},
 "info":{"delta":22992556,"repository":{"delta":3056846,"size":3056846},"size":22992556},"timestamp":{"start":1795991372,"stop":1795991380}},
{"label":"20261129-222932F_20261129-222943I","type":"incr","error":false,"database":{"id":1,"repo-key":1},
 "info":{"delta":2097418,"repository":{"delta":252324,"size":3140729},"size":23606957},"timestamp":{"start":1795991383,"stop":1795991385}}]}]`

const system = "7713724171926193023"

func TestParse(t *testing.T) {
	info, err := Parse([]byte(said), "orders", system)
	if err != nil {
		t.Fatal(err)
	}
	if info.Bytes != 3056846+252324 || info.Trouble != "" || len(info.Bad) > 0 {
		t.Errorf("%+v", info)
	}
	for kind, want := range map[string]string{"": "20261129-222932F_20261129-222943I", Full: "20261129-222932F", Incremental: "20261129-222932F_20261129-222943I"} {
		if b, err := info.Newest(kind); err != nil || b.Label != want {
			t.Errorf("newest %q: %+v, %v", kind, b, err)
		}
	}
	if b, _ := info.Newest(""); b.Stop.Unix() != 1795991385 || b.Size != 23606957 {
		t.Errorf("newest: %+v", b)
	}
	if _, err := info.Newest(Differential); !errors.Is(err, ErrNoBackup) {
		t.Errorf("a differential one: %v", err)
	}
	if want := time.Date(2026, 11, 30, 1, 2, 3, 0, time.UTC); !info.Verified().Equal(want) {
		t.Errorf("verified %s", info.Verified())
	}
	last := time.Unix(1795991385, 0)
	for age, want := range map[time.Duration]string{time.Hour: "", 27 * time.Hour: "the last good backup, 20261129-222932F_20261129-222943I, ended at 2026-11-29T22:29:45Z, more than 26 h ago"} {
		if got := info.Late(last.Add(age), 26*time.Hour); got != want {
			t.Errorf("after %s: %q, want %q", age, got, want)
		}
	}
	verified := info.Verified()
	for at, want := range map[time.Time]string{
		verified.Add(360 * time.Hour): "",
		verified.Add(361 * time.Hour): "no backup was restored and checked since 2026-11-30T01:02:03Z, more than 15 days ago",
	} {
		if got := info.Unverified(at, 360*time.Hour); got != want {
			t.Errorf("at %s: %q, want %q", at, got, want)
		}
	}
	never := Info{Backups: []Backup{{Stop: last}}}
	for age, want := range map[time.Duration]string{180 * time.Hour: "", 181 * time.Hour: "none of the backups was restored and checked"} {
		if got := never.Unverified(last.Add(age), 360*time.Hour); got != want {
			t.Errorf("never, after %s: %q, want %q", age, got, want)
		}
	}
	if got := (Info{}).Unverified(last, time.Hour); got != "" {
		t.Errorf("without a backup: %q", got)
	}

	for name, test := range map[string]struct {
		from, to, system string
		backups          int
		trouble, bad     string
	}{
		"another cluster's":        {system: "7713724171926193024", backups: 0},
		"any cluster's":            {system: "", backups: 2},
		"a damaged page":           {from: `"type":"incr","error":false`, to: `"type":"incr","error":true`, system: system, backups: 1, bad: "20261129-222932F_20261129-222943I"},
		"no damage looked for":     {from: `"error":false`, to: `"error":null`, system: system, backups: 2},
		"no backup yet":            {from: `"status":{"code":0,"lock"`, to: `"status":{"code":2,"lock"`, system: system, backups: 2},
		"no stanza":                {from: `"status":{"code":0,"message":"ok"}`, to: `"status":{"code":1,"message":"missing stanza path"}`, system: system, backups: 2, trouble: "repository 1: missing stanza path"},
		"the repository is away":   {from: `"status":{"code":0,"message":"ok"}`, to: `"status":{"code":99,"message":"[HostConnectError] x"}`, system: system, backups: 2, trouble: "repository 1: [HostConnectError] x"},
		"an annotation of another": {from: `"2026-11-30T01:02:03Z"`, to: `"yes"`, system: system, backups: 2},
	} {
		t.Run(name, func(t *testing.T) {
			info, err := Parse([]byte(strings.Replace(said, test.from, test.to, 1)), "orders", test.system)
			if err != nil || len(info.Backups) != test.backups || info.Trouble != test.trouble || strings.Join(info.Bad, " ") != test.bad {
				t.Errorf("%+v, %v", info, err)
			}
		})
	}
	for name, out := range map[string]string{"no JSON": "ERROR: [075]", "another stanza": said, "nothing": "[]"} {
		if _, err := Parse([]byte(out), "users", system); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	none, err := Parse([]byte(said), "orders", "1")
	if err != nil || none.Late(last, 26*time.Hour) != ErrNoBackup.Error() || !none.Verified().IsZero() {
		t.Errorf("none of this cluster: %q, %v", none.Late(last, 26*time.Hour), err)
	}
}
