package agent

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lictor-ha/lictor/agent/api"
	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
)

// Whoever registers bouncers without number, each of which takes a connection and says
// nothing, uses up neither the agent's file descriptors nor the time of a handover.
func TestACrowdOfBouncers(t *testing.T) {
	var open, most atomic.Int64
	tarpit := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		now := open.Add(1)
		for old := most.Load(); now > old && !most.CompareAndSwap(old, now); old = most.Load() {
		}
		_, _ = io.Copy(io.Discard, r.Body) // only then is the end of the connection seen
		<-r.Context().Done()
		open.Add(-1)
	}))
	defer tarpit.Close()
	poolers, err := api.NewBouncerClient(config.Ctl{}, config.RestAPI{})
	if err != nil {
		t.Fatal(err)
	}
	defer poolers.Close()
	crowd := make([]cluster.Bouncer, 1000)
	for i := range crowd {
		crowd[i] = cluster.Bouncer{Name: "b", URL: tarpit.URL}
	}
	a := &bouncers{scope: "orders", client: poolers}
	began := time.Now()
	answers := a.tell(t.Context(), crowd, cluster.Handover{ID: "x"}, 500*time.Millisecond)
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("it took %v", took)
	}
	if most.Load() > mostAsked {
		t.Errorf("%d bouncers were asked at the same time", most.Load())
	}
	for _, told := range answers {
		if told.err == nil {
			t.Fatal("somebody who said nothing holds clients")
		}
	}
}

// A bouncer that waits for as long as bouncers do at the least is heard, however little the
// leader wants to wait: what it says may be that transactions run.
func TestAnAnswerIsAwaited(t *testing.T) {
	waits := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		time.Sleep(cluster.HandoverWaitLeast) // it is slow by itself
		_ = json.NewEncoder(w).Encode(cluster.HandoverAnswer{ID: "x", Paused: true, Busy: 1})
	}))
	defer waits.Close()
	poolers, err := api.NewBouncerClient(config.Ctl{}, config.RestAPI{})
	if err != nil {
		t.Fatal(err)
	}
	defer poolers.Close()
	a := &bouncers{scope: "orders", client: poolers}
	answers := a.tell(t.Context(), []cluster.Bouncer{{Name: "b", URL: waits.URL}}, cluster.Handover{ID: "x"}, shortPatience)
	if answers[0].err != nil || answers[0].Busy != 1 {
		t.Errorf("the answer is %+v", answers[0])
	}
}

// What a bouncer says is shown as one short line.
func TestABouncersAnswerInALine(t *testing.T) {
	talker := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusTeapot)
		_, _ = w.Write([]byte("\x1b[2J" + strings.Repeat("x", 60_000)))
	}))
	defer talker.Close()
	poolers, err := api.NewBouncerClient(config.Ctl{}, config.RestAPI{})
	if err != nil {
		t.Fatal(err)
	}
	defer poolers.Close()
	if err := poolers.PostJSON(t.Context(), talker.URL, "/poke", nil, nil); err == nil || len(err.Error()) > 8192 || strings.Contains(err.Error(), "\x1b") {
		t.Errorf("%d bytes", len(err.Error()))
	}
}

// What bouncers say runs calls a handover off as far as PostgreSQL has clients, and the
// message names who has said so.
func TestABouncersVeto(t *testing.T) {
	busy := func(name string, n int) bouncerAnswer {
		return bouncerAnswer{bouncer: name, HandoverAnswer: cluster.HandoverAnswer{Busy: n}}
	}
	crowd := make([]bouncerAnswer, 1000)
	for i := range crowd {
		crowd[i] = busy(strings.Repeat("x", 500)+"\x1b", 1)
	}
	for _, c := range []struct {
		name    string
		busy    []bouncerAnswer
		clients int
		unasked error
		want    string // empty: it goes on
	}{
		{"none", nil, 3, nil, ""},
		{"one, and clients", []bouncerAnswer{busy("pooler1", 2), busy("pooler2", 1)}, 1, nil, "bouncer pooler1: 2, bouncer pooler2: 1"},
		{"one, and no client", []bouncerAnswer{busy("evil", 1)}, 0, nil, ""},
		{"PostgreSQL cannot be asked", []bouncerAnswer{busy("pooler1", 2)}, 0, errors.New("no slot"), "pooler1"},
		{"a crowd", crowd, 1, nil, "992 others"},
	} {
		err := veto(c.busy, c.clients, c.unasked)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
		if err != nil && (len(err.Error()) > 4096 || strings.Contains(err.Error(), "\x1b")) {
			t.Errorf("%s: %d bytes", c.name, len(err.Error()))
		}
	}
}
