package drill

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/lictor-ha/lictor/agent/events"
)

// evil is what a terminal or a browser acts on.
const evil = "\x1b[95m\u202e<script>alert(1)</script>\" onload=\"x\u0085{{.Kind}}</style>"

func TestRecord(t *testing.T) {
	at := func(ms int) time.Time { return time.UnixMilli(int64(ms)) }
	r := newRecord(Writes, at(0))
	r.ack(1, at(50), 5*time.Millisecond)
	r.fail(at(400), 300*time.Millisecond, "closed")
	r.ack(3, at(950), 10*time.Millisecond)
	r.ack(4, at(1000), 10*time.Millisecond)
	got, acked, _ := r.state()
	if got.Attempts != 4 || got.Acked != 3 || got.Errors != 1 || got.GapMS != 900 || !got.GapAt.Equal(at(50)) || !slices.Equal(acked, []int64{1, 3, 4}) || len(got.Samples) != 4 {
		t.Errorf("%+v %v", got, acked)
	}
	r.end(at(3000)) // it has waited since
	if got, _, _ = r.state(); got.GapMS != 2000 || !got.GapAt.Equal(at(1000)) {
		t.Errorf("the last wait: %+v", got)
	}
	for range 2 * maxFailures {
		r.fail(at(3000), 0, "closed")
	}
	if got, _, _ = r.state(); len(got.Failures) != maxFailures || got.Errors != 2*maxFailures+1 {
		t.Errorf("%d of %d errors are kept", len(got.Failures), got.Errors)
	}
}

func TestMissing(t *testing.T) {
	if lost, ids := missing([]int64{1, 2, 4, 5}, []int64{0, 1, 3, 4, 9}); lost != 2 || !slices.Equal(ids, []int64{2, 5}) {
		t.Errorf("%d: %v", lost, ids)
	}
	many := make([]int64, 100)
	for i := range many {
		many[i] = int64(i)
	}
	if lost, ids := missing(many, nil); lost != 100 || len(ids) != maxLostIDs {
		t.Errorf("%d: %v", lost, ids)
	}
	if lost, ids := missing(nil, many); lost != 0 || ids != nil {
		t.Errorf("%d: %v", lost, ids)
	}
}

func TestOptions(t *testing.T) {
	for _, v := range []string{"PGHOST", "PGPORT", "PGDATABASE", "PGUSER", "PGPASSWORD", "PGSERVICE"} {
		t.Setenv(v, "")
	}
	for _, c := range []struct {
		connection string
		several    bool
		database   string // for the shard "orders"
		wrong      string
	}{
		{connection: "host=lb user=u", several: true, database: "orders"},
		{connection: "host=lb user=u dbname=%s_app", several: true, database: "orders_app"},
		{connection: "postgresql://u@lb:6432/%s", several: true, database: "orders"},
		{connection: "postgresql://u@lb:6432/", several: true, database: "orders"},
		{connection: "host=lb user=u dbname=app", database: "app"},
		{connection: "host=lb user=u dbname=app", several: true, wrong: "for every shard"},
		{connection: "host=%s.lb user=u dbname=app", several: true, database: "app"},
		{connection: "host=lb port=x password=hush", wrong: "is not a connection string"},
		{connection: "postgresql://u:hush@lb:x/", wrong: ""},
	} {
		o := Options{Connection: c.connection, Limit: time.Second}
		err := o.Check(c.several)
		if err != nil && strings.Contains(err.Error(), "hush") {
			t.Errorf("%s: the password is shown: %v", c.connection, err)
		}
		if (err != nil) != (c.database == "") || err != nil && !strings.Contains(err.Error(), c.wrong) {
			t.Errorf("%s: %v, want %q", c.connection, err, c.wrong)
		}
		if c.database == "" {
			continue
		}
		config, err := o.config("orders")
		if err != nil || config.Database != c.database {
			t.Errorf("%s: %v %v", c.connection, config, err)
		}
	}
}

// A name never becomes a word of its own, whatever is in it, and no shell sees it.
func TestCommandLine(t *testing.T) {
	target := Target{Kind: "host", Shard: "orders", Member: "a", Host: "db1 ; reboot $(id)"}
	for _, c := range []struct {
		text  string
		want  []string
		wrong bool
	}{
		{text: ""},
		{text: "ssh root@%h 'systemctl kill lictor-agent@%s'", want: []string{"ssh", "root@db1 ; reboot $(id)", "systemctl kill lictor-agent@orders"}},
		{text: `echo %m %% %H %F 100%%h`, want: []string{"echo", "a", "%", "%H", "%F", "100%h"}},
		{text: "ssh '%h", wrong: true},
		{text: "%h", wrong: true},
		{text: "   ", wrong: true},
	} {
		command, err := ParseCommand(c.text)
		if (err != nil) != c.wrong {
			t.Errorf("%q: %v", c.text, err)
		}
		if c.wrong {
			continue
		}
		if got := command.Line(target); !slices.Equal(got, c.want) || command.Exists() != (len(c.want) > 0) {
			t.Errorf("%q: %q, want %q", c.text, got, c.want)
		}
	}
}

func TestCommandRuns(t *testing.T) {
	target := Target{Kind: "host", Shard: "orders", Member: "a", Host: "db1"}
	run := func(ctx context.Context, text string) (string, error) {
		t.Helper()
		command, err := ParseCommand(text)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		err = command.Run(ctx, target, &out)
		return out.String(), err
	}
	out, err := run(t.Context(), `sh -c 'echo "$1 $LICTOR_DRILL_HOST $LICTOR_DRILL_MEMBER $LICTOR_DRILL_SHARD $LICTOR_DRILL_KIND"; printf "\033[2Jx" >&2' sh %h`)
	if err != nil || out != `db1 db1 a orders host`+"\n"+`\x1b[2Jx` {
		t.Errorf("%q, %v", out, err)
	}
	if _, err := run(t.Context(), "sh -c 'exit 3'"); err == nil || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("%v", err)
	}
	if _, err := run(t.Context(), "/nowhere/at-all %h"); err == nil || !strings.Contains(err.Error(), "/nowhere/at-all db1: ") {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	began := time.Now()
	if _, err := run(ctx, "sleep 60"); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > 30*time.Second {
		t.Errorf("%v after %s", err, time.Since(began))
	}
}

// Whatever came from elsewhere is text on the page, and it asks for nothing from anywhere.
func TestPage(t *testing.T) {
	at := time.Date(2026, 11, 30, 2, 0, 0, 0, time.UTC)
	report := Report{
		Kind: "host", Namespace: evil, Began: at, Ended: at.Add(time.Minute), Verdict: Surprised, What: evil, Do: evil,
		Shards: []Shard{
			{
				Name: evil, From: evil, To: evil, Host: evil, State: Surprised, What: evil, Do: evil, Began: at, Took: 20 * time.Second, Slow: evil, Notes: []string{evil},
				Steps: []Step{{Name: "checks", TookMS: 900}, {Name: evil, AtMS: 900, TookMS: 8000}, {Name: "late", AtMS: 99_000, TookMS: 1}},
				Probe: &Result{
					Mode: Writes, Why: evil, Attempts: 100, Acked: 90, Errors: 10, GapMS: 8400, GapAt: at, Lost: 2, Failures: []Failure{{At: at, Text: evil}},
					Samples: []Sample{{At: at, Took: time.Millisecond}, {At: at.Add(9 * time.Second), Took: 8 * time.Second, Failed: true}, {At: at.Add(10 * time.Second)}},
				},
				Events: []events.Event{{At: at, Kind: events.Kind(evil), From: evil, To: evil, Outcome: events.Outcome(evil), Cause: evil, Phases: []events.Phase{{Name: evil, AtMS: 5}}}},
			},
			{Name: "calm", State: Passed, Began: at, Took: time.Second, Probe: &Result{Mode: Reads}},
			{Name: "users", State: NotBegun},
		},
	}
	content, err := Page(report)
	if err != nil {
		t.Fatal(err)
	}
	page := string(content)
	for _, bad := range []string{"<script", "onload=\"", "http://", "https://", "src=", "@import", "url(", "ZgotmplZ"} {
		if strings.Contains(page, bad) {
			t.Errorf("the page has %q", bad)
		}
	}
	for _, r := range page {
		if r != '\n' && !unicode.IsPrint(r) {
			t.Fatalf("%U in the page", r)
		}
	}
	for _, want := range []string{
		"stopped by a surprise", "&lt;script&gt;", "1 of 3", "8.4 s", `class="failed"`, "not begun", "2 acknowledged rows were missing", "Content-Security-Policy",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	if strings.Count(page, "<h2>") != 3 { // of two shards that were begun, and how it was measured
		t.Errorf("%d headings", strings.Count(page, "<h2>"))
	}
	for _, verdict := range []State{Passed, Interrupted, UnderWay, NotBegun} {
		content, err := Page(Report{Kind: "switchover", Verdict: verdict, Began: at})
		if err != nil || !strings.Contains(string(content), "The drill") {
			t.Errorf("%s: %v", verdict, err)
		}
	}
}

// The chart shows each wait where it began, and fits its picture.
func TestChart(t *testing.T) {
	at := time.Unix(1000, 0)
	var samples []Sample
	for i := range 400 {
		samples = append(samples, Sample{At: at.Add(time.Duration(i) * 50 * time.Millisecond), Took: 2 * time.Millisecond})
	}
	samples[200].Took, samples[300].Failed = 4*time.Second, true
	c := chartOf(Shard{Probe: &Result{Samples: samples}})
	if c.Top != 4*time.Second || len(c.Columns) == 0 || len(c.Columns) > chartColumns {
		t.Fatalf("top %s, %d columns", c.Top, len(c.Columns))
	}
	tall, failed := int64(-1), 0
	for _, x := range c.Columns {
		if x.X < 0 || x.X >= chartWidth || x.Height < 1 || x.Height > chartHeight || x.Y+x.Height != chartHeight {
			t.Errorf("%+v", x)
		}
		if x.Height == chartHeight {
			tall = x.X
		}
		if x.Failed {
			failed++
			if x.Height < chartFailed {
				t.Errorf("a failure beside a long wait is not seen: %+v", x)
			}
		}
	}
	// It was answered after 10 s of 20, and had begun after 6.
	if tall < 290 || tall > 310 || failed != 1 {
		t.Errorf("the longest wait stands at %d, %d failed", tall, failed)
	}
	if c := chartOf(Shard{Probe: &Result{}}); len(c.Columns) != 0 {
		t.Errorf("of nothing: %+v", c)
	}
}
