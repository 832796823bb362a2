package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/printable"
)

// FailsafeRequest is what a leader that cannot reach Consul asks of every member
// in the failsafe list (POST /failsafe): Patroni's fields, and Lictor's lease.
type FailsafeRequest struct {
	Name    string           `json:"name"`
	ConnURL string           `json:"conn_url"`
	APIURL  string           `json:"api_url"`
	Slots   map[string]int64 `json:"slots,omitempty"`
	Lictor  *FailsafeLease   `json:"lictor,omitempty"`
}

// FailsafeLease is how long the member is asked not to take the lock, and the
// ModifyIndex of the leader's own status that it knows of.
type FailsafeLease struct {
	LeaseMS int64  `json:"lease_ms"`
	Index   uint64 `json:"index"`
	// Round names the round of questions, and Agreed the last one in which all have promised; with
	// takeover by quorum alone.
	Round  string `json:"round,omitempty"`
	Agreed string `json:"agreed,omitempty"`
}

// Deposition is what a new leader tells the one whose lease has run out (POST
// /deposed): who leads, and the ModifyIndex of the status it has written. With Forced
// it is an operator who is about to give the lease to that member.
type Deposition struct {
	Leader string `json:"leader"`
	Index  uint64 `json:"index"`
	Forced bool   `json:"forced,omitempty"`
}

// DetachRequest is what a candidate asks of a synchronous standby before it takes the lock
// of a leader whose lease has run out (POST /part): to receive nothing more from it,
// until Consul shows a newer status than the one with this ModifyIndex.
//
// With Attempt it is asked for a takeover by quorum, while the lease may run (design 5.30). With Ask nothing
// is to be done but to say something.
type DetachRequest struct {
	Candidate string `json:"candidate"`
	Index     uint64 `json:"index"`
	Attempt   string `json:"attempt,omitempty"`
	Ask       string `json:"ask,omitempty"`
}

// What a candidate for a takeover by quorum asks, or says.
const (
	// AskMisses: whether the member misses the leader, too.
	AskMisses = "misses"
	// AskSucceed: the member is ahead, and is to begin at once.
	AskSucceed = "succeed"
)

// accepted is Patroni's word for a promise given.
const accepted = "Accepted"

func (s *Server) failsafe(ctx context.Context, body map[string]any) answer {
	var r FailsafeRequest
	if err := remarshal(body, &r); err != nil || r.Name == "" {
		return failed(http.StatusBadRequest)
	}
	if r.Lictor != nil && provenIn(ctx) == nil {
		return text(http.StatusForbidden, "only a member that knows the shard's secret is promised anything")
	}
	if state := s.node.State(); r.Lictor == nil && state.Leader {
		return text(http.StatusInternalServerError, "Running as a leader")
	} else if r.Lictor == nil && !state.Dynamic.FailsafeMode {
		return failed(http.StatusBadGateway)
	}
	if err := s.node.Failsafe(ctx, r); err != nil {
		return text(http.StatusInternalServerError, err.Error())
	}
	return text(http.StatusOK, accepted)
}

func (s *Server) deposed(ctx context.Context, body map[string]any) answer {
	var d Deposition
	if err := remarshal(body, &d); err != nil || d.Leader == "" || d.Index == 0 {
		return failed(http.StatusBadRequest)
	}
	if err := s.node.Deposed(ctx, d); err != nil {
		return text(http.StatusConflict, err.Error())
	}
	return text(http.StatusOK, "Heard")
}

func (s *Server) detach(ctx context.Context, body map[string]any) answer {
	var p DetachRequest
	if err := remarshal(body, &p); err != nil || p.Candidate == "" || p.Index == 0 {
		return failed(http.StatusBadRequest)
	}
	ctx, cancel := context.WithTimeout(ctx, observeLimit)
	defer cancel()
	if err := s.node.Detach(ctx, p); err != nil {
		return text(http.StatusConflict, err.Error())
	}
	return text(http.StatusOK, "Parted")
}

// remarshal gives an object its type.
func remarshal(body map[string]any, into any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, into)
}

// Peer is a member that another one asks for something on which its decisions rest.
type Peer struct {
	Name   string
	APIURL string
	// Patroni says that the member runs Patroni, which proves nothing: it is believed
	// by its address in Consul.
	Patroni bool
}

// PeerOf is the member of this value in Consul.
func PeerOf(m cluster.Member) Peer {
	return Peer{Name: m.Name, APIURL: m.APIURL, Patroni: m.Lictor == nil}
}

// Unproved is the error of an answer that is not shown to be the asked member's.
type Unproved struct {
	Peer   Peer
	Answer Answer
}

func (e *Unproved) Error() string {
	return fmt.Sprintf("%s (status %d: %s)", e.Who(), e.Answer.Status, printable.Short(e.Answer.Text, 160))
}

// Who says the same without the answer, which nobody need believe.
func (e *Unproved) Who() string {
	who := "who answers"
	if e.Answer.Proved {
		who = printable.Quote(e.Answer.ProvedBy) + ", who answers"
	}
	return fmt.Sprintf("%s at %s does not prove to be %s, by the shard's secret", who, e.Peer.APIURL, e.Peer.Name)
}

// gave returns nil if this member has given the answer.
func (p Peer) gave(a Answer) error {
	if p.Patroni || a.Proved && a.ProvedBy == p.Name {
		return nil
	}
	return &Unproved{Peer: p, Answer: a}
}

// Failsafe asks a member to promise not to take the lock. The error says why it
// does not, or why it cannot be asked.
func (c *Client) Failsafe(ctx context.Context, p Peer, r FailsafeRequest) error {
	return c.tell(ctx, p, "/failsafe", r)
}

// Depose tells a member that it does not lead any more.
func (c *Client) Depose(ctx context.Context, p Peer, d Deposition) error {
	return c.tell(ctx, p, "/deposed", d)
}

// Detach asks a member to receive nothing more from the old leader; it returns when it
// does not. The error says why it does not, or why it cannot be asked. known is
// false when the member cannot detach, because it runs Patroni.
func (c *Client) Detach(ctx context.Context, p Peer, detaching DetachRequest) (known bool, err error) {
	a, err := c.Post(ctx, p, "/part", detaching)
	if err == nil {
		err = p.gave(a)
	}
	switch {
	case err != nil:
		return true, err
	case a.Status == http.StatusNotImplemented && p.Patroni:
		return false, nil
	case a.Status != http.StatusOK:
		return true, notDone(p.APIURL, "/part", a)
	}
	return true, nil
}

// AskOfSilence asks a member for its part in a takeover by quorum. The error says why it does not do it.
func (c *Client) AskOfSilence(ctx context.Context, p Peer, r DetachRequest) error {
	return c.tell(ctx, p, "/part", r)
}

// Knock finds out whether a member's agent answers at all, whoever it proves to be: an error that is
// ECONNREFUSED says that its host does.
func (c *Client) Knock(ctx context.Context, p Peer) error {
	_, err := c.Ask(ctx, p, "/liveness")
	return err
}

func (c *Client) tell(ctx context.Context, p Peer, path string, body any) error {
	a, err := c.Post(ctx, p, path, body)
	switch {
	case err != nil:
		return err
	case a.Status != http.StatusOK:
		return notDone(p.APIURL, path, a)
	}
	return p.gave(a)
}

func notDone(apiURL, path string, a Answer) error {
	return fmt.Errorf("%s%s answers %d: %s", strings.TrimSuffix(apiURL, "/patroni"), path, a.Status, printable.Short(a.Text, 300))
}
