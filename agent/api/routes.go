package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/cluster/httpserver"
	"github.com/lictor-ha/lictor/agent/printable"
	"github.com/lictor-ha/lictor/agent/proof"
)

// answer is what a handler gives back; it is written in one place.
type answer struct {
	status int
	// text or value is the body; both empty means none.
	text    string
	value   any
	headers map[string]string
}

// text is an answer of some words, which may quote what was asked: they are cut, and have
// nothing that a terminal acts on.
func text(status int, s string) answer {
	return answer{status: status, text: printable.Block(s)}
}

func jsonAnswer(status int, v any) answer { return answer{status: status, value: v} }

// failed is an answer with no other text than the status itself.
func failed(status int) answer { return text(status, http.StatusText(status)) }

// ServeHTTP routes a request as Patroni does: by its method and the first
// segment of its path. Every GET that has no route of its own is a health
// check. HEAD and OPTIONS are GET without a body.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	segment := segmentOf(r)
	if segment == "metrics" && r.Method == http.MethodGet {
		s.figures.ServeHTTP(w, r)
		return
	}
	switch r.Method {
	case http.MethodGet:
		r, err := s.prove(w, r)
		if errors.Is(err, proof.ErrChallenge) {
			s.write(w, r, text(http.StatusUnauthorized, err.Error()))
			return
		}
		s.write(w, r, s.read(r, segment))
	case http.MethodHead, http.MethodOptions:
		s.write(w, r, answer{status: s.read(r, segment).status})
	default:
		s.change(w, r, segment)
	}
}

type provenKey struct{}

// provenIn is the proof of the request whose context this is; nil: it has none.
func provenIn(ctx context.Context) *proof.Proven {
	p, _ := ctx.Value(provenKey{}).(*proof.Proven)
	return p
}

// prove looks whether a request comes from somebody who knows the shard's secret. If
// the proof has to be made by another challenge, the answer's header names it.
func (s *Server) prove(w http.ResponseWriter, r *http.Request) (*http.Request, error) {
	p, err := s.verifier.Check(r)
	if err != nil {
		if errors.Is(err, proof.ErrChallenge) {
			s.verifier.Challenge(w.Header())
			w.Header().Set("WWW-Authenticate", "Lictor-Proof")
		}
		return r, err
	}
	return r.WithContext(context.WithValue(r.Context(), provenKey{}, p)), nil
}

// denies says why a request may not change anything; nil: it may.
func (s *Server) denies(r *http.Request, segment string, unproved error) *httpserver.Denial {
	switch {
	case errors.Is(unproved, proof.ErrChallenge):
		return &httpserver.Denial{Status: http.StatusUnauthorized, Text: unproved.Error()}
	case errors.Is(unproved, proof.ErrWrong):
		// It was meant for somebody else: its sender's other rights here count for nothing.
		return &httpserver.Denial{Status: http.StatusForbidden, Text: unproved.Error()}
	case unproved == nil:
	case segment != "deposed" && segment != "part":
	case errors.Is(unproved, proof.ErrNoSecret):
		return &httpserver.Denial{Status: http.StatusServiceUnavailable, Text: unproved.Error()}
	default:
		return &httpserver.Denial{Status: http.StatusForbidden, Text: unproved.Error()}
	}
	return s.access.check(r, s.node.State(), unproved == nil)
}

// segmentOf is the first segment of a request's path.
func segmentOf(r *http.Request) string {
	segment, _, _ := strings.Cut(strings.TrimLeft(r.URL.Path, "/"), "/")
	return segment
}

// read answers a question. It looks at the last state, and does not wait unless it
// is asked to.
func (s *Server) read(r *http.Request, segment string) answer {
	state := s.node.State()
	switch segment {
	case "patroni":
		if r.URL.Query().Has(observeQuery) {
			ctx, cancel := context.WithTimeout(r.Context(), observeLimit)
			defer cancel()
			s.node.Observe(ctx)
			state = s.node.State()
		}
		return jsonAnswer(http.StatusOK, s.status(state))
	case "cluster":
		return jsonAnswer(http.StatusOK, NewClusterView(state.Scope, state.Cluster))
	case "history":
		if state.Cluster.History.Value == nil {
			return jsonAnswer(http.StatusOK, []any{})
		}
		return jsonAnswer(http.StatusOK, state.Cluster.History.Value)
	case "config":
		if value := state.Cluster.Config.Value; state.Cluster.Config.Exists() && json.Valid(value) {
			return jsonAnswer(http.StatusOK, json.RawMessage(value))
		}
		return failed(http.StatusBadGateway)
	case "failsafe":
		if state.Cluster.Failsafe.OK() && state.Cluster.Failsafe.Value != nil {
			return jsonAnswer(http.StatusOK, state.Cluster.Failsafe.Value)
		}
		return failed(http.StatusBadGateway)
	case "liveness":
		return answer{status: s.liveness(state)}
	case "readiness":
		return answer{status: s.readiness(state, r.URL.Query())}
	}
	return jsonAnswer(s.health(state, r.URL), s.status(state))
}

// A question with this query wants to know how far PostgreSQL is now: members ask
// so before an election. All other answers tell what was seen last.
const (
	observeQuery = "observe"
	observeLimit = 500 * time.Millisecond
)

// change runs a request that wants something done, once its sender has shown
// that it may.
func (s *Server) change(w http.ResponseWriter, r *http.Request, segment string) {
	handler, bodyNeeded := s.handler(r.Method, segment)
	if handler == nil {
		s.write(w, r, failed(http.StatusNotImplemented))
		return
	}
	r, unproved := s.prove(w, r)
	if denied := s.denies(r, segment, unproved); denied != nil {
		a := text(denied.Status, denied.Text)
		if denied.Status == http.StatusUnauthorized && w.Header().Get("WWW-Authenticate") == "" {
			a.headers = map[string]string{"WWW-Authenticate": `Basic realm="Patroni"`}
		}
		s.write(w, r, a)
		return
	}
	body, problem, why := s.body(w, r, bodyNeeded)
	if problem == http.StatusForbidden {
		r = r.WithContext(context.WithValue(r.Context(), provenKey{}, (*proof.Proven)(nil)))
	}
	if problem != 0 {
		a := failed(problem)
		if why != "" {
			a = text(problem, why)
		}
		s.write(w, r, a)
		return
	}
	a := s.operate(r, handler, body)
	// An operation may have taken longer than a client has for its answer, so
	// that time begins now. If it cannot be set, writing fails and says so.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(s.http.Limits.Answer))
	s.write(w, r, a)
}

// operate runs a handler until it is done or the server ends, whether its client
// stays or not: nothing is broken off half way because a terminal was closed.
func (s *Server) operate(r *http.Request, handler changeHandler, body map[string]any) answer {
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.Context()))
	defer cancel()
	defer s.whenEnding(cancel)()
	defer httpserver.Hold(r.Context())()
	return handler(ctx, body)
}

type changeHandler func(ctx context.Context, body map[string]any) answer

// handler finds what a request that changes something asks for, and whether it
// must have a body.
func (s *Server) handler(method, segment string) (h changeHandler, bodyNeeded bool) {
	switch method + " " + segment {
	case "PATCH config":
		return s.patchConfig, true
	case "PUT config":
		return s.putConfig, true
	case "POST reload":
		return s.reload, false
	case "POST restart":
		return s.restart, false
	case "DELETE restart":
		return s.deleteRestart, false
	case "POST reinitialize":
		return s.reinitialize, false
	case "POST restore":
		return s.restore, true
	case "DELETE restore":
		return s.cancelRestore, false
	case "POST upgrade":
		return s.upgrade, true
	case "POST analyze":
		return s.analyze, false
	case "POST upgrade_check":
		return s.checkUpgrade, true
	case "POST switchover":
		return s.switchover, true
	case "POST failover":
		return s.failover, true
	case "POST failsafe":
		return s.failsafe, true
	case "POST deposed":
		return s.deposed, true
	case "POST part":
		return s.detach, true
	case "DELETE switchover":
		return s.cancelSwitchover, false
	}
	return nil, false
}

// body reads a JSON object. The status is 0 when that worked: an object that
// has to be there must not be empty.
func (s *Server) body(w http.ResponseWriter, r *http.Request, needed bool) (object map[string]any, status int, why string) {
	if needed && r.Header.Get("Content-Length") == "" {
		return nil, http.StatusLengthRequired, ""
	}
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyLimit))
	if err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return nil, http.StatusRequestEntityTooLarge, ""
		}
		return nil, http.StatusBadRequest, ""
	}
	if p := provenIn(r.Context()); p != nil && !p.Covers(raw) {
		return nil, http.StatusForbidden, "the proof is for another body"
	}
	if len(raw) == 0 && !needed {
		return map[string]any{}, 0, ""
	}
	object, err = decodeObject(raw)
	if err != nil || (needed && len(object) == 0) {
		return nil, http.StatusBadRequest, ""
	}
	if path := cluster.RepeatedKey(raw); path != "" {
		return nil, http.StatusBadRequest, path + ": is there twice"
	}
	return object, 0, ""
}

// decodeObject reads a JSON object. Whole numbers become int: as floats large
// ones would change their value on the way to Consul.
func decodeObject(raw []byte) (map[string]any, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var object map[string]any
	if err := d.Decode(&object); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is more than one JSON value")
	}
	if object == nil {
		return nil, errors.New("null is not an object")
	}
	return plainNumbers(object).(map[string]any), nil
}

func plainNumbers(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k := range v {
			v[k] = plainNumbers(v[k])
		}
	case []any:
		for i := range v {
			v[i] = plainNumbers(v[i])
		}
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return int(n)
		}
		if f, err := v.Float64(); err == nil && strconv.FormatFloat(f, 'g', -1, 64) == v.String() {
			return f
		}
		return v // as it was written
	}
	return v
}

// write sends an answer. The client may be gone; that is no concern of anybody.
func (s *Server) write(w http.ResponseWriter, r *http.Request, a answer) {
	var body []byte
	h := w.Header()
	switch {
	case a.value != nil:
		var err error
		if body, err = json.Marshal(a.value); err != nil {
			s.log.Error().Err(err).Str("path", r.URL.Path).Msg("REST API: answer cannot be written as JSON")
			a.status, body = http.StatusInternalServerError, nil
		}
		body = printable.JSON(body)
		h.Set("Content-Type", "application/json")
	case a.text != "":
		body = []byte(a.text)
		h.Set("Content-Type", "text/html")
	}
	for name, value := range a.headers {
		h.Set(name, value)
	}
	for name, value := range s.headers {
		h.Set(name, value)
	}
	if p := provenIn(r.Context()); p != nil {
		p.Mark(h, s.node.State().Name, a.status, body)
	}
	w.WriteHeader(a.status)
	if _, err := w.Write(body); err != nil && len(body) > 0 && r.Method != http.MethodHead {
		s.log.Debug().Err(err).Str("client", r.RemoteAddr).Msg("REST API: answer was not taken")
	}
}
