package drill

import (
	"bytes"
	_ "embed" // the page
	"fmt"
	"html/template"
	"time"

	"github.com/lictor-ha/lictor/agent/events"
	"github.com/lictor-ha/lictor/agent/printable"
)

//go:embed page.html
var pageText string

// Page is the report as one HTML page that needs nothing else: no scripts, no files. Whatever
// stands in Consul or came from a server is text in it.
func Page(r Report) ([]byte, error) {
	page, err := template.New("page").Funcs(template.FuncMap{"text": printable.Text, "duration": duration, "time": clock, "phases": phases}).Parse(pageText)
	if err != nil {
		return nil, fmt.Errorf("the page of the report: %w", err)
	}
	var out bytes.Buffer
	if err := page.Execute(&out, pageOf(r)); err != nil {
		return nil, fmt.Errorf("the page of the report: %w", err)
	}
	return out.Bytes(), nil
}

// pageData is what the template gets.
type pageData struct {
	Report
	Headline, Class, What string
	Done                  int
	Measured              bool // some shard had a probe
	Wrote                 bool // some of them wrote
	Gap                   time.Duration
	Errors                int
	Lost                  int64
	Sheets                []sheet
}

// sheet is one shard.
type sheet struct {
	Shard
	Class string
	Bars  []bar
	Chart chart
}

// bar is one step, in thousandths of the whole time.
type bar struct {
	Step
	Left, Width int64
	Number      int
}

func pageOf(r Report) pageData {
	d := pageData{Report: r, Class: class(r.Verdict), What: kindWords(r.Kind)}
	d.Headline = map[State]string{
		Passed: "The drill went as it should.", Surprised: "The drill was stopped by a surprise.",
		Interrupted: "The drill was interrupted.", UnderWay: "The drill is under way.", NotBegun: "The drill has not begun.",
	}[r.Verdict]
	for _, s := range r.Shards {
		if s.State == Passed {
			d.Done++
		}
		if p := s.Probe; p != nil {
			d.Measured, d.Wrote = true, d.Wrote || p.Mode == Writes
			d.Gap, d.Errors, d.Lost = max(d.Gap, p.Gap()), d.Errors+p.Errors, d.Lost+p.Lost
		}
		d.Sheets = append(d.Sheets, sheet{Shard: s, Class: class(s.State), Bars: bars(s), Chart: chartOf(s)})
	}
	return d
}

// class is the style of a state.
func class(s State) string {
	switch s {
	case Passed:
		return "good"
	case Surprised:
		return "bad"
	case Interrupted, UnderWay, NotBegun:
	}
	return "faint"
}

// kindWords say what is done in a drill of a kind, to whoever does not run databases.
func kindWords(kind string) string {
	return map[string]string{
		"switchover": "Each database handed over, on purpose, from the server that led it to another one, as is done before maintenance.",
		"restart":    "PostgreSQL was restarted on every server of each database, one after another, as is done for an update.",
		"kill-agent": "The program that watches over each database's leading server was killed, as by a crash.",
		"host":       "The server that led each database was lost, as by a failure of its hardware, and brought back afterwards.",
	}[kind]
}

// bars are a shard's steps as parts of its time.
func bars(s Shard) []bar {
	whole := max(1, s.Took.Milliseconds())
	var all []bar
	for i, step := range s.Steps {
		left := min(1000, 1000*step.AtMS/whole)
		all = append(all, bar{Step: step, Left: left, Width: max(2, min(1000-left, 1000*step.TookMS/whole)), Number: i % 6})
	}
	return all
}

// chart is how long clients waited, over the time: one column for some attempts, the longest wait of
// them.
type chart struct {
	Columns []column
	Top     time.Duration // of the scale
	Length  time.Duration
}

type column struct {
	X, Y, Height int64
	Failed       bool
}

// What a chart measures, in units of its picture.
const (
	chartWidth   = 1000
	chartHeight  = 120
	chartColumns = 250
	// chartFailed is the least height of a column that has a failure: many fail at once, and must be
	// seen beside a long wait.
	chartFailed = chartHeight / 6
)

func chartOf(s Shard) chart {
	if s.Probe == nil || len(s.Probe.Samples) == 0 {
		return chart{}
	}
	samples := s.Probe.Samples
	// A wait is drawn where it began.
	began := func(x Sample) time.Time { return x.At.Add(-x.Took) }
	first, last := began(samples[0]), samples[len(samples)-1].At
	c := chart{Length: max(time.Millisecond, last.Sub(first))}
	longest, failed := make([]time.Duration, chartColumns), make([]bool, chartColumns)
	for _, x := range samples {
		i := min(chartColumns-1, max(0, int(int64(chartColumns)*int64(began(x).Sub(first))/int64(c.Length))))
		longest[i], failed[i] = max(longest[i], x.Took), failed[i] || x.Failed
		c.Top = max(c.Top, x.Took)
	}
	c.Top = max(c.Top, time.Millisecond)
	for i, took := range longest {
		if took > 0 || failed[i] {
			height := max(1, int64(chartHeight*took/c.Top))
			if failed[i] {
				height = max(height, chartFailed)
			}
			c.Columns = append(c.Columns, column{X: int64(i * chartWidth / chartColumns), Y: chartHeight - height, Height: height, Failed: failed[i]})
		}
	}
	return c
}

// phases are those of an event, each with how long it took.
func phases(e events.Event) []Step {
	var all []Step
	var before int64
	for _, p := range e.Phases {
		all = append(all, Step{Name: p.Name, AtMS: p.AtMS, TookMS: max(0, p.AtMS-before)})
		before = p.AtMS
	}
	return all
}

// duration writes a time as people read it.
func duration(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < 2*time.Minute:
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return fmt.Sprintf("%.0f min", d.Minutes())
}

func clock(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02 15:04:05 MST")
}
