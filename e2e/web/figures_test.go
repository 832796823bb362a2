package web

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/testkit"
)

// What the page promises for a thousand shards.
const (
	manyShards  = 1000
	mostOpen    = 3
	mostLatency = time.Second
	mostMemory  = 60 << 20
	lookers     = 20
)

// A thousand shards and many browsers: Consul is asked no more than for one, a change is seen at
// once, and memory stays small.
func TestThousandShards(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	s := newSite(ctx, t, manyShards)
	began := time.Now()
	all := make([]*browser, lookers)
	for i := range all {
		all[i] = s.browse(ctx)
	}
	for _, b := range all {
		b.await(func(rows map[string]string) bool { return len(rows) == manyShards })
	}
	t.Logf("%d browsers have %d shards after %v", lookers, manyShards, time.Since(began).Round(time.Millisecond))
	var took []time.Duration
	for i := range 8 {
		state := fmt.Sprintf("stopped %d", i)
		began := time.Now()
		s.change("service/s700/members/s700-db3", func(m map[string]any) { m["state"] = state })
		for _, b := range all {
			b.await(func(rows map[string]string) bool { return strings.Contains(rows["s700"], state) })
		}
		took = append(took, time.Since(began))
		get(ctx, t, s.url+"shards/s700")
	}
	slices.Sort(took)
	t.Logf("a change is with all %d browsers after %v (median), %v (slowest)", lookers, took[len(took)/2], took[len(took)-1])
	_, open := s.proxy.mostOpen()
	if open > mostOpen {
		t.Errorf("%d questions to Consul were open, want %d", open, mostOpen)
	}
	resident, err := peak(s.page.Process.Pid)
	testkit.Must(t, err)
	t.Logf("%d MiB of memory at the most, %d questions to Consul open", resident>>20, open)
	if os.Getenv("LICTOR_TEST_FIGURES") == "" {
		return // beside other tests, garbage is collected late and everything takes longer
	}
	if took[len(took)/2] > mostLatency {
		t.Errorf("a change is seen after %v, want %v: %v", took[len(took)/2], mostLatency, took)
	}
	if resident > mostMemory {
		t.Errorf("%d MiB of memory at the most, want %d", resident>>20, mostMemory>>20)
	}
}

// Without Consul the page goes on showing what it knows, and says how old that is.
func TestConsulGone(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s := newSite(ctx, t, 3)
	b := s.browse(ctx)
	b.await(func(rows map[string]string) bool { return len(rows) == 3 })
	s.stop()
	b.awaitAge(func(age time.Duration, problem string) bool { return age > 3*time.Second && problem != "" })
	late := s.browse(ctx)
	late.await(func(rows map[string]string) bool { return len(rows) == 3 })
	late.awaitAge(func(age time.Duration, problem string) bool {
		return age > 3*time.Second && strings.Contains(problem, "Consul")
	})
	if answer := get(ctx, t, s.url+"shards/s001"); !strings.Contains(answer, `"unread":"`) || !strings.Contains(answer, "s001-db1") {
		t.Errorf("a shard: %.300s", answer)
	}
}

// peak is the most memory that a process has had, in bytes (VmHWM of proc(5)).
func peak(pid int) (int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		var kilobytes int
		if n, _ := fmt.Sscanf(line, "VmHWM: %d kB", &kilobytes); n == 1 {
			return kilobytes << 10, nil
		}
	}
	return 0, fmt.Errorf("/proc/%d/status has no VmHWM", pid)
}

func get(ctx context.Context, t testing.TB, url string) string {
	t.Helper()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	testkit.Must(t, err)
	answer, err := http.DefaultClient.Do(request)
	testkit.Must(t, err)
	defer answer.Body.Close()
	var value json.RawMessage
	testkit.Must(t, json.NewDecoder(answer.Body).Decode(&value))
	return string(value)
}

// browser is what a browser knows of the fleet by the page's stream.
type browser struct {
	t       testing.TB
	lines   *bufio.Scanner
	rows    map[string]string
	age     time.Duration
	problem string
}

func (s *site) browse(ctx context.Context) *browser {
	s.t.Helper()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+"live", nil)
	testkit.Must(s.t, err)
	answer, err := http.DefaultClient.Do(request)
	testkit.Must(s.t, err)
	s.t.Cleanup(func() { answer.Body.Close() })
	b := &browser{t: s.t, lines: bufio.NewScanner(answer.Body), rows: map[string]string{}}
	b.lines.Buffer(nil, 16<<20)
	return b
}

// hear takes in one message.
func (b *browser) hear() {
	b.t.Helper()
	kind := ""
	for b.lines.Scan() {
		line := b.lines.Text()
		name, isName := strings.CutPrefix(line, "event: ")
		data, isData := strings.CutPrefix(line, "data: ")
		switch {
		case isName:
			kind = name
		case isData && kind == "age":
			var m struct {
				AgeMS   int64 `json:"age_ms"`
				Problem string
			}
			testkit.Must(b.t, json.Unmarshal([]byte(data), &m))
			b.age, b.problem = time.Duration(m.AgeMS)*time.Millisecond, m.Problem
			return
		case isData:
			var m struct {
				Whole  bool
				Shards []json.RawMessage
				Gone   []string
			}
			testkit.Must(b.t, json.Unmarshal([]byte(data), &m))
			if m.Whole {
				clear(b.rows)
			}
			for _, row := range m.Shards {
				var named struct{ Name string }
				testkit.Must(b.t, json.Unmarshal(row, &named))
				b.rows[named.Name] = string(row)
			}
			for _, name := range m.Gone {
				delete(b.rows, name)
			}
			return
		}
	}
	b.t.Fatalf("the stream has ended: %v", b.lines.Err())
}

func (b *browser) await(is func(rows map[string]string) bool) {
	b.t.Helper()
	for !is(b.rows) {
		b.hear()
	}
}

func (b *browser) awaitAge(is func(age time.Duration, problem string) bool) {
	b.t.Helper()
	for !is(b.age, b.problem) {
		b.hear()
	}
}
