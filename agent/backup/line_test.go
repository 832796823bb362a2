package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
)

// archiveOf is a pgBackRest whose archive has these timelines, and segments of them.
type archiveOf struct {
	histories map[int]string
	began     map[int]time.Time
	segments  map[string]time.Time
}

func (a archiveOf) repository() Repository {
	return Repository{Stanza: "orders", Output: func(_ context.Context, args ...string) ([]byte, error) {
		command, name := args[len(args)-2], path.Base(args[len(args)-1])
		switch {
		case args[len(args)-1] == "info":
			return []byte(strings.Replace(said, `"backup":[`, `"archive":[{"database":{"id":1,"repo-key":1},"id":"15-1","max":"000000010000000000000005"}],"backup":[`, 1)), nil
		case command == "repo-ls" && name == "15-1":
			top := files{".": {}}
			for n, at := range a.began {
				top[fmt.Sprintf("%08X.history", n)] = file{at.Unix()}
			}
			for segment := range a.segments {
				top[segment[:16]] = file{}
			}
			return json.Marshal(top)
		case command == "repo-ls":
			list := files{}
			for segment, at := range a.segments {
				if segment[:16] == name {
					list[segment+"-0123456789.zst"] = file{at.Unix()}
					list[segment+".00000028.backup"] = file{at.Add(time.Hour).Unix()}
				}
			}
			return json.Marshal(list)
		case command == "repo-get":
			for n, history := range a.histories {
				if name == fmt.Sprintf("%08X.history", n) {
					return []byte(history), nil
				}
			}
		}
		return nil, fmt.Errorf("unexpected: %v", args)
	}}
}

// A recovery follows the timeline that the shard was on at the moment: not the one that a restore
// has begun since, which knows nothing of what that restore has discarded.
func TestLine(t *testing.T) {
	at := func(minute int) time.Time { return time.Date(2026, 11, 30, 10, minute, 0, 0, time.UTC) }
	before := func(minute int) string { return "before " + at(minute).Format("2006-01-02 15:04:05+00") }
	const failover = "no recovery target specified"
	// 1, a failover at 10 to 2, a restore at 20 to 5 (to 3, on which 2 is not), one at 30 to 15 (4), one at 40 to 35 (5), a failover at 50 (6).
	a := archiveOf{
		began: map[int]time.Time{2: at(10), 3: at(20), 4: at(30), 5: at(40), 6: at(50), 7: at(55), 9: at(59), 13: at(59)},
		histories: map[int]string{
			2:  "1\t0/A000000\t" + failover + "\n",
			3:  "1\t0/5000000\t" + before(6) + "\n",
			4:  "1\t0/A000000\t" + failover + "\n2\t0/F000000\t" + before(16) + "\n",
			5:  "1\t0/A000000\t" + failover + "\n2\t0/F000000\t" + before(16) + "\n4\t0/23000000\t" + before(36) + "\n",
			6:  "1\t0/A000000\t" + failover + "\n2\t0/F000000\t" + before(16) + "\n4\t0/23000000\t" + before(36) + "\n5\t0/32000000\t" + failover + "\n",
			7:  "1\t0/5000000\tafter LSN 0/5000000\n",
			9:  "",
			13: "1\t0/5000000\t" + before(6) + "\n12\t0/F000000\t" + before(22) + "\n",
		},
	}
	for name, test := range map[string]struct {
		present, minute int
		want, left      int
		why             string
	}{
		"the first timeline":                                    {present: 1, minute: 5, want: 1},
		"after a failover":                                      {present: 2, minute: 12, want: 2},
		"before a failover":                                     {present: 2, minute: 5, want: 2},
		"after a restore":                                       {present: 3, minute: 25, want: 3},
		"before what a restore has discarded":                   {present: 3, minute: 5, want: 3},
		"in what it has discarded, before a failover":           {present: 3, minute: 8, want: 2, left: 3},
		"in what it has discarded, after that":                  {present: 3, minute: 15, want: 2, left: 3},
		"where a restore began":                                 {present: 3, minute: 20, want: 3},
		"in what the second restore has discarded":              {present: 6, minute: 27, want: 3, left: 4},
		"in what the first one had, which the second took back": {present: 6, minute: 15, want: 6},
		"in what both have discarded":                           {present: 6, minute: 18, want: 2, left: 3},
		"in what the third one has discarded":                   {present: 6, minute: 38, want: 4, left: 5},
		"after all":                                             {present: 6, minute: 52, want: 6},
		"of a restore to a position, before it":                 {present: 7, minute: 3, want: 6, left: 7},
		"of a restore to a position, after it":                  {present: 7, minute: 57, want: 7},
		"its history is not archived":                           {present: 10, minute: 5, why: "has no history of timeline 10"},
		"nor is that of a restore":                              {present: 13, minute: 25, why: "it cannot be told whether 2026-11-30 10:25:00+00 was before that"},
		"its history is empty":                                  {present: 9, minute: 25, why: "is empty"},
	} {
		t.Run(name, func(t *testing.T) {
			r := a.repository()
			info, err := r.Info(t.Context(), system)
			if err != nil {
				t.Fatal(err)
			}
			line, err := r.Line(t.Context(), info, test.present, at(test.minute))
			if test.why == "" && (err != nil || line.Timeline != test.want || line.Left != test.left) || test.why != "" && (err == nil || !strings.Contains(err.Error(), test.why)) {
				t.Errorf("%d, left for %d, %v, want %d, left for %d", line.Timeline, line.Left, err, test.want, test.left)
			}
		})
	}
}

// A backup must lie on the line, not on what was left of an earlier timeline.
func TestBackupOfALine(t *testing.T) {
	line := Line{Timeline: 3, History: cluster.History{{Timeline: 1, LSN: 0x5000000}}}
	for name, test := range map[string]struct {
		b    Backup
		want bool
	}{
		"of the timeline":                  {Backup{Timeline: 3, End: 0x9000000}, true},
		"before it was begun":              {Backup{Timeline: 1, End: 0x4000000}, true},
		"of the first, after it was left":  {Backup{Timeline: 1, End: 0x6000000}, false},
		"of a timeline beside":             {Backup{Timeline: 2, End: 0x4000000}, false},
		"pgBackRest does not say of which": {Backup{}, true},
	} {
		if got := line.has(test.b); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	at := func(second int) time.Time { return time.Unix(int64(1000+second), 0) }
	info := Info{Backups: []Backup{{Label: "kept", Stop: at(0), Timeline: 1, End: 0x4000000}, {Label: "left", Stop: at(100), Timeline: 1, End: 0x6000000}}}
	if b, err := info.Before(at(300), "", line); err != nil || b.Label != "kept" {
		t.Errorf("%+v, %v", b, err)
	}
	if _, err := info.Before(at(300), "left", line); err == nil || !strings.Contains(err.Error(), "is of timeline 1, from which timeline 3 does not come") {
		t.Error(err)
	}
	if _, err := info.Before(at(300), "", Line{Timeline: 2}); err == nil || !strings.Contains(err.Error(), "no good backup from which timeline 2") {
		t.Error(err)
	}
}

// The archive of a line ends with the last segment of its last timeline.
func TestEndOfTheArchive(t *testing.T) {
	at := func(minute int) time.Time { return time.Date(2026, 11, 30, 10, minute, 0, 0, time.UTC) }
	a := archiveOf{began: map[int]time.Time{2: at(29), 3: at(31)}, segments: map[string]time.Time{
		"000000010000000000000004": at(4), "000000010000000100000001": at(5), "000000010000000100000002": at(6), "000000020000000100000002": at(30),
	}}
	r := a.repository()
	info, err := r.Info(t.Context(), system)
	if err != nil || len(info.Archives) != 1 || info.Archives[0] != (Archive{Repo: 1, ID: "15-1"}) {
		t.Fatalf("%+v, %v", info.Archives, err)
	}
	for timeline, want := range map[int]time.Time{1: at(6), 2: at(30), 3: at(6)} {
		line := Line{Timeline: timeline, archives: info.Archives}
		if timeline > 1 {
			line.History = cluster.History{{Timeline: 1, LSN: 1}}
		}
		if got, err := r.Archived(t.Context(), line); err != nil || !got.Equal(want) {
			t.Errorf("timeline %d: %s, %v", timeline, got, err)
		}
	}
	if got, err := r.Archived(t.Context(), Line{Timeline: 3, archives: info.Archives}); err == nil {
		t.Errorf("of a timeline without WAL: %s", got)
	}
	for _, out := range []string{"no JSON", `[]`} {
		broken := Repository{Output: func(context.Context, ...string) ([]byte, error) { return []byte(out), nil }}
		if got, err := broken.Archived(t.Context(), Line{Timeline: 1, archives: info.Archives}); err == nil {
			t.Errorf("%s: %s", out, got)
		}
	}
}

// What cannot be recovered is refused, with what was asked for.
func TestPlan(t *testing.T) {
	ended := time.Unix(1795991385, 0) // of the last backup in said
	a := archiveOf{segments: map[string]time.Time{"000000010000000000000005": ended.Add(time.Hour)}}
	for name, test := range map[string]struct {
		want       Wanted
		field, why string
	}{
		"possible":                {want: Wanted{Target: ended.Add(time.Minute)}},
		"from a named backup":     {want: Wanted{Target: ended.Add(time.Minute), Label: "20261129-222932F"}},
		"in the future":           {Wanted{Target: time.Now().Add(time.Hour)}, FieldTarget, "is in the future"},
		"before the first":        {Wanted{Target: ended.Add(-time.Hour)}, FieldTarget, "earlier than the end of the first good backup"},
		"another shard's backup":  {Wanted{Target: ended.Add(time.Minute), Label: "20261129-222933F"}, FieldLabel, "there is no good backup"},
		"beyond the last WAL":     {Wanted{Target: ended.Add(2 * time.Hour)}, FieldTarget, "later than the last WAL of timeline 1 in the archive"},
		"of another cluster":      {Wanted{Target: ended.Add(time.Minute), System: "78"}, FieldTarget, ErrNoBackup.Error()},
		"no directory to lie in":  {Wanted{Target: ended.Add(time.Minute), Dir: "/nowhere"}, "", "/nowhere"},
		"on a timeline not known": {Wanted{Target: ended.Add(time.Minute), Timeline: 7}, "-", "no history of timeline 7"},
	} {
		t.Run(name, func(t *testing.T) {
			w := test.want
			if w.System == "" {
				w.System = system
			}
			if w.Timeline == 0 {
				w.Timeline = 1
			}
			if w.Dir == "" {
				w.Dir = t.TempDir()
			}
			r := a.repository()
			plan, err := r.Plan(t.Context(), w)
			if err == nil {
				_, err = r.Reaches(t.Context(), plan)
			}
			if test.why == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			var refused Refusal
			if errors.As(err, &refused) == (test.field == "-") || refused.Field != strings.Trim(test.field, "-") || !strings.Contains(fmt.Sprint(err), test.why) {
				t.Errorf("%v, want %s", err, test.why)
			}
		})
	}
}
