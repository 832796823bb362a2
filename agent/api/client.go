package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/cluster/certfiles"
	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/printable"
	"github.com/lictor-ha/lictor/agent/proof"
)

// answerLimit bounds what a client reads of an answer.
const answerLimit = 4 << 20

// Client asks members over their REST API: peers before an election, and on
// behalf of commands. It keeps connections open for the next question. How long
// an answer may take is the context's to say.
type Client struct {
	http     *http.Client
	username string
	password string
	prover   proof.Prover
	// proofOnly: while the secret is held, nobody gets the credentials.
	proofOnly bool
	// encrypted: where TLS is configured, the credentials go over nothing else,
	// whatever a member's key says.
	encrypted bool
}

// NewClient makes a client that presents the certificate and the credentials of
// the section ctl or, where that has none, of restapi.
//
// A server's certificate must come from the authorities in ctl.cacert or
// restapi.cafile, without such a file from the system's, and be for the host that is
// asked, unless ctl.verify_names is false. With ctl.insecure the names do not count, and
// without a client certificate nothing does.
func NewClient(ctl config.Ctl, rest config.RestAPI) (*Client, error) {
	client, encrypted, err := newHTTPClient(ctl, rest)
	if err != nil {
		return nil, err
	}
	login := ctl.Authentication
	if login.Username == "" {
		login = rest.Authentication
	}
	return &Client{http: client, username: login.Username, password: login.Password, encrypted: encrypted}, nil
}

// newHTTPClient makes what asks members and bouncers, without credentials. encrypted
// reports whether these settings are for TLS.
func newHTTPClient(ctl config.Ctl, rest config.RestAPI) (client *http.Client, encrypted bool, err error) {
	cert, key, password := ctl.CertFile, ctl.KeyFile, ctl.KeyFilePassword
	if cert == "" {
		cert, key, password = rest.CertFile, rest.KeyFile, rest.KeyFilePassword
	}
	ca := ctl.CACert
	if ca == "" {
		ca = rest.CAFile
	}
	// A set that cannot be read later shows in the error of the next request
	// that needs it; the last good one serves until then.
	certs, err := certfiles.New(certfiles.Paths{Cert: cert, Key: key, CA: ca, Password: password}, func(error) {})
	if err != nil {
		return nil, false, fmt.Errorf("certificates for the members' REST API: %w", err)
	}
	check := certfiles.Name
	switch {
	case ctl.Insecure && cert == "":
		check = certfiles.Nothing
	case ctl.Insecure || ctl.VerifyNames != nil && !*ctl.VerifyNames:
		check = certfiles.Chain
	}
	dialer := net.Dialer{KeepAlive: 5 * time.Second}
	return &http.Client{
		Transport: &http.Transport{
			// Members are neighbours: no proxy of the environment.
			DialContext:         dialer.DialContext,
			DialTLSContext:      certs.DialTLS(check, dialer, ""),
			MaxIdleConnsPerHost: 2,
			IdleConnTimeout:     30 * time.Second,
		},
		// Requests go to who was asked and nowhere else.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, cert != "" || ca != "", nil
}

// ProveWith has every request to a member that is named prove itself with the secret that
// is held, once there is one. What answers it must prove that it is that member: another
// answer is an error (Unproved). Members of Patroni's, which prove nothing, get the
// credentials.
func (c *Client) ProveWith(k *proof.Keeper) { c.prover.Keeper = k }

// ProveOnly is ProveWith for a client that has the credentials for members when it cannot
// read the secret: while that is held they are sent to nobody. Whoever may write a member's
// key could say there that the member runs Patroni, and where.
func (c *Client) ProveOnly(k *proof.Keeper) {
	c.ProveWith(k)
	c.proofOnly = true
}

// For is this client for the members of another shard: over the same connections, and with
// the secret that is held there. It needs no end of its own. Its requests are ProveOnly's.
func (c *Client) For(k *proof.Keeper) *Client {
	other := &Client{http: c.http, username: c.username, password: c.password, encrypted: c.encrypted}
	other.ProveOnly(k)
	return other
}

// Close ends the connections that are kept open. The client may be used again.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Answer is what a member said to a request.
type Answer struct {
	Status int
	// Text is the body, without space around it.
	Text string
	// Reason says why something failed, when the member runs Lictor and knows.
	Reason string
	// Took is how long a switchover took, if the member said so.
	Took time.Duration
	// Proved says that the answer comes from a member that knows the shard's secret,
	// ProvedBy which one. It is false for what was asked without the secret.
	Proved   bool
	ProvedBy string

	signed bool // the request had proved itself
}

// OK reports whether the member did what was asked.
func (a Answer) OK() bool { return a.Status >= 200 && a.Status < 300 }

// Ask asks a member for a path ("/cluster"). It must prove who it is where the secret is
// held, if it is named.
func (c *Client) Ask(ctx context.Context, p Peer, path string) (Answer, error) {
	return c.do(ctx, http.MethodGet, p, path, nil)
}

// Post sends a request with a body that is written as JSON; nil sends none.
func (c *Client) Post(ctx context.Context, to Peer, path string, body any) (Answer, error) {
	return c.do(ctx, http.MethodPost, to, path, body)
}

// Patch is like Post.
func (c *Client) Patch(ctx context.Context, to Peer, path string, body any) (Answer, error) {
	return c.do(ctx, http.MethodPatch, to, path, body)
}

// Put is like Post.
func (c *Client) Put(ctx context.Context, to Peer, path string, body any) (Answer, error) {
	return c.do(ctx, http.MethodPut, to, path, body)
}

// Delete asks for the removal of what a path names.
func (c *Client) Delete(ctx context.Context, to Peer, path string) (Answer, error) {
	return c.do(ctx, http.MethodDelete, to, path, nil)
}

func (c *Client) do(ctx context.Context, method string, to Peer, path string, body any) (Answer, error) {
	target, err := memberURL(to.APIURL, path)
	if err != nil {
		return Answer{}, err
	}
	var content []byte
	if body != nil {
		if content, err = json.Marshal(body); err != nil {
			return Answer{}, fmt.Errorf("%s %s: write the request as JSON: %w", method, target, err)
		}
	}
	a, again, err := c.attempt(ctx, method, target, to, content)
	if again {
		a, _, err = c.attempt(ctx, method, target, to, content)
	}
	if err == nil && a.signed {
		err = to.gave(a)
	}
	return a, err
}

// attempt sends a request once. again says that the server did nothing, as it wants
// the request to be proved by another challenge.
func (c *Client) attempt(ctx context.Context, method, target string, to Peer, content []byte) (a Answer, again bool, err error) {
	req, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(content))
	if err != nil {
		return Answer{}, false, fmt.Errorf("%s %s: %w", method, target, err)
	}
	if content != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	var asked *proof.Asked
	if !to.Patroni && (method != http.MethodGet || to.Name != "") {
		asked = c.prover.Sign(req, to.Name, content)
	}
	// Reading needs no login, nor does a request that proves itself: what is not sent cannot
	// be overheard, nor had by whoever took the port of a member that is down.
	if method != http.MethodGet && asked == nil && c.username != "" && !c.keepsPassword() {
		if c.encrypted && req.URL.Scheme != "https" {
			return Answer{}, false, fmt.Errorf("%s %s: the password is not sent without TLS, which restapi.certfile, restapi.cafile or the section ctl asks for: see the member's api_url", method, target)
		}
		req.SetBasicAuth(c.username, c.password)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		// It names method and URL itself.
		return Answer{}, false, fmt.Errorf("ask a member: %w", err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, answerLimit+1))
	switch {
	case err != nil:
		return Answer{}, false, fmt.Errorf("%s %s: read the answer: %w", method, target, err)
	case len(raw) > answerLimit:
		return Answer{}, false, fmt.Errorf("%s %s: the answer is longer than %d bytes", method, target, answerLimit)
	}
	a = Answer{Status: resp.StatusCode, Text: strings.TrimSpace(string(raw)), Reason: resp.Header.Get(reasonHeader)}
	if ms, err := strconv.ParseInt(resp.Header.Get(tookHeader), 10, 64); err == nil {
		a.Took = time.Duration(ms) * time.Millisecond
	}
	a.signed = asked != nil
	a.ProvedBy, a.Proved = asked.ProvedBy(resp, raw)
	return a, c.prover.Again(asked, resp), nil
}

// keepsPassword reports whether the credentials are sent to nobody now.
func (c *Client) keepsPassword() bool {
	_, held := c.prover.Keeper.Secret()
	return c.proofOnly && held
}

// memberURL is the URL of a path at the member with that api_url.
func memberURL(apiURL, path string) (string, error) {
	u, err := url.Parse(apiURL)
	switch {
	case apiURL == "":
		return "", errors.New("the member publishes no api_url")
	case err != nil:
		return "", fmt.Errorf("api_url of the member cannot be understood: %w", err)
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil:
		return "", fmt.Errorf("api_url of the member: %q, must be http[s]://HOST:PORT/patroni", u.Redacted())
	}
	path, query, _ := strings.Cut(path, "?")
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: "/" + strings.TrimPrefix(path, "/"), RawQuery: query}).String(), nil
}

// PeerStatus is what a member, of Lictor or of Patroni, says about itself.
type PeerStatus struct {
	Name    string // empty: Patroni 3 does not say
	Scope   string
	Version string // the agent's
	State   string
	Role    string // in the member's own words
	// Accepting says that PostgreSQL answered the member; without it the
	// positions below are unknown.
	Accepting bool
	// Primary says that PostgreSQL is not in recovery.
	Primary  bool
	Timeline int
	// LSN is the write position of a primary, the received or replayed one of a
	// replica, whichever is further.
	LSN              int64
	ReceivedLSN      int64
	ReplayedLSN      int64
	ServerVersion    int
	SystemIdentifier string
	ReplicationState string
	SyncStandby      bool // or a quorum standby
	Tags             map[string]any
	Pause            bool
	PendingRestart   bool
	Unlocked         bool // the member sees no leader
	FailsafeActive   bool
	WatchdogFailed   bool
	ConsulSeen       time.Time // zero: never
	// Lictor is nil when the member runs Patroni.
	Lictor *PeerLictor
}

// PeerLictor is what only Lictor says about a member.
type PeerLictor struct {
	// Leads says that the member holds a lease, for LeaseLeft when it answered.
	Leads         bool
	LeaseLeft     time.Duration
	GuardRunning  bool
	GuardArmedFor time.Duration
	Reason        string
	// Beat is the last renewal that the member has seen; nil: none.
	Beat *cluster.Beat
	// LoopAge is how long ago its loop came round.
	LoopAge time.Duration
	// Replaying says that the positions may not be all that the member has; also said
	// of an older Lictor, which does not know.
	Replaying bool
	// Restoring says that its data were replaced, and may not have again all that they
	// had acknowledged before.
	Restoring bool
	// Detached is the status under which it had detached from the old leader before it
	// looked; zero: it had not.
	Detached uint64
	// Attempts are those at a takeover by quorum for which it had.
	Attempts []string
	// ObservedAge is how long ago it looked at PostgreSQL; negative: never.
	ObservedAge time.Duration
	// Archiver is how its WAL gets into the archive, nil where it archives none.
	Archiver *PeerArchiver
	// BackupTrouble says what is wrong with the shard's backups, as far as the leader was told.
	BackupTrouble string
	// Unverified says what is wrong with the time of the last verification of a backup.
	Unverified string
	// Backups are those of the shard, nil where the leader was told of none.
	Backups *PeerBackups
	// Verified is the backup that was restored and checked on that member's host last.
	Verified Verification
}

// Status asks a member how it is, which must prove who it is where the secret is held.
func (c *Client) Status(ctx context.Context, p Peer) (PeerStatus, error) {
	a, err := c.Ask(ctx, p, "/patroni")
	if err != nil {
		return PeerStatus{}, err
	}
	return statusOf(p.APIURL, a)
}

// Observe asks a member to look at its PostgreSQL and tell how it is now. Who decides
// by it must know who answers: see Peer.
func (c *Client) Observe(ctx context.Context, p Peer) (PeerStatus, error) {
	a, err := c.do(ctx, http.MethodGet, p, "/patroni?"+observeQuery, nil)
	if err == nil {
		err = p.gave(a)
	}
	if err != nil {
		return PeerStatus{}, err
	}
	return statusOf(p.APIURL, a)
}

func statusOf(apiURL string, a Answer) (PeerStatus, error) {
	if a.Status != http.StatusOK {
		return PeerStatus{}, fmt.Errorf("ask the member at %s how it is: it answered %d %s", apiURL, a.Status, http.StatusText(a.Status))
	}
	status, err := parseStatus([]byte(a.Text))
	if err != nil {
		return PeerStatus{}, fmt.Errorf("ask the member at %s how it is: %w", apiURL, err)
	}
	return status, nil
}

// peerXLog holds the positions of a primary or of a replica.
type peerXLog struct {
	Location int64 `json:"location"`
	Received int64 `json:"received_location"`
	Replayed int64 `json:"replayed_location"`
}

func parseStatus(raw []byte) (PeerStatus, error) {
	var in struct {
		State            string         `json:"state"`
		Role             string         `json:"role"`
		ServerVersion    int            `json:"server_version"`
		XLog             *peerXLog      `json:"xlog"`
		WAL              *peerXLog      `json:"wal"`
		Timeline         int            `json:"timeline"`
		SyncStandby      bool           `json:"sync_standby"`
		QuorumStandby    bool           `json:"quorum_standby"`
		ReplicationState string         `json:"replication_state"`
		Pause            bool           `json:"pause"`
		Unlocked         bool           `json:"cluster_unlocked"`
		FailsafeActive   bool           `json:"failsafe_mode_is_active"`
		DCSLastSeen      float64        `json:"dcs_last_seen"`
		Tags             map[string]any `json:"tags"`
		SystemIdentifier string         `json:"database_system_identifier"`
		PendingRestart   bool           `json:"pending_restart"`
		WatchdogFailed   bool           `json:"watchdog_failed"`
		Patroni          agentStatus    `json:"patroni"`
		Lictor           *lictorStatus  `json:"lictor"`
	}
	if err := json.Unmarshal(raw, &in); err != nil {
		return PeerStatus{}, fmt.Errorf("the status is not JSON of the expected shape: %w", printable.Error(err))
	}
	if in.State == "" && in.Role == "" {
		return PeerStatus{}, errors.New("the status has neither state nor role: this is not a member's REST API")
	}
	out := PeerStatus{
		Name: in.Patroni.Name, Scope: in.Patroni.Scope, Version: in.Patroni.Version,
		State: in.State, Role: in.Role, Timeline: in.Timeline,
		ServerVersion: in.ServerVersion, SystemIdentifier: in.SystemIdentifier,
		ReplicationState: in.ReplicationState, SyncStandby: in.SyncStandby || in.QuorumStandby,
		Tags: in.Tags, Pause: in.Pause, PendingRestart: in.PendingRestart, Unlocked: in.Unlocked,
		FailsafeActive: in.FailsafeActive, WatchdogFailed: in.WatchdogFailed,
	}
	if in.DCSLastSeen > 0 {
		out.ConsulSeen = time.Unix(int64(in.DCSLastSeen), 0)
	}
	xlog := in.XLog
	if xlog == nil {
		xlog = in.WAL
	}
	if xlog != nil {
		out.Accepting = true
		out.Primary = xlog.Location != 0
		out.ReceivedLSN, out.ReplayedLSN = xlog.Received, xlog.Replayed
		out.LSN = max(xlog.Location, xlog.Received, xlog.Replayed)
	}
	if l := in.Lictor; l != nil {
		p := PeerLictor{
			GuardRunning: l.Guard.Running, GuardArmedFor: milliseconds(l.Guard.ArmedForMS),
			Reason: l.Reason, Beat: l.Beat, ObservedAge: -1,
			Replaying: out.Accepting && !out.Primary && (l.Replaying == nil || *l.Replaying),
			Restoring: l.Restoring, Detached: l.Detached, Attempts: l.Attempts, Archiver: l.Archiver.peer(), BackupTrouble: l.Backups.problem(), Unverified: l.Backups.unverified(),
		}
		p.Backups = l.Backups.peer()
		if l.Verified != nil {
			p.Verified = *l.Verified
		}
		if l.ObservedAgeMS != nil {
			p.ObservedAge = milliseconds(*l.ObservedAgeMS)
		}
		if l.LeaseLeftMS != nil {
			p.Leads, p.LeaseLeft = true, milliseconds(*l.LeaseLeftMS)
		}
		if l.LoopAgeMS != nil {
			p.LoopAge = milliseconds(*l.LoopAgeMS)
		}
		out.Lictor = &p
	}
	return out, nil
}

func milliseconds(n int64) time.Duration { return time.Duration(n) * time.Millisecond }
