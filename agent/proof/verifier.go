package proof

import (
	"crypto/hmac"
	"encoding/hex"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"sync"
)

// Why a request proves nothing.
var (
	// ErrNone: it carries no proof.
	ErrNone = errors.New("the request carries no proof that it comes from this shard")
	// ErrChallenge: it answers another challenge, or none yet. The answer's header
	// names the one in force (Verifier.Challenge).
	ErrChallenge = errors.New("the proof answers another challenge")
	// ErrWrong: it was made without the shard's secret, for another request or another
	// member, or was used before.
	ErrWrong = errors.New("the proof is wrong: another shard's secret, an old request, or one to another member")
	// ErrNoSecret: this member does not know the shard's secret yet.
	ErrNoSecret = errors.New("this member does not know the shard's secret yet")
)

// challengeSize is the length of a challenge, in bytes.
const challengeSize = 16

// mostNonces is how many requests one challenge is good for.
const mostNonces = 1 << 14

// Verifier judges requests. Its methods run on any goroutine.
type Verifier struct {
	keeper *Keeper
	name   func() string

	mu        sync.Mutex
	challenge string
	used      map[string]bool // nonces of this challenge
}

// NewVerifier makes one for the server of the member with this name.
func NewVerifier(k *Keeper, name func() string) *Verifier {
	v := &Verifier{keeper: k, name: name}
	v.renew()
	return v
}

func (v *Verifier) renew() {
	v.challenge, v.used = hex.EncodeToString(random(challengeSize)), map[string]bool{}
}

// Proven is a request that has proved itself.
type Proven struct {
	key             []byte
	nonce, bodyHash string
}

// Check judges a request by its header. Whoever reads its body has Proven.Covers
// judge that, too.
func (v *Verifier) Check(r *http.Request) (*Proven, error) {
	text := r.Header.Get(requestHeader)
	if text == "" {
		return nil, ErrNone
	}
	secret, held := v.keeper.Secret()
	if !held {
		return nil, ErrNoSecret
	}
	fields := strings.Fields(text)
	if len(fields) != 4 || len(text) > 512 {
		return nil, ErrWrong
	}
	challenge, nonce, bodyHash, sum := fields[0], fields[1], fields[2], fields[3]
	var key []byte
	to := v.name()
	for _, k := range secret.all() {
		if hmac.Equal([]byte(sum), []byte(requestMAC(k, to, r.Method, targetOf(r), challenge, nonce, bodyHash))) {
			key = k
		}
	}
	if key == nil {
		return nil, ErrWrong
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case challenge != v.challenge:
		return nil, ErrChallenge
	case v.used[nonce]:
		return nil, ErrWrong
	}
	if v.used[nonce] = true; len(v.used) >= mostNonces {
		v.renew()
	}
	return &Proven{key: key, nonce: nonce, bodyHash: bodyHash}, nil
}

// Challenge names the challenge in force in an answer.
func (v *Verifier) Challenge(h http.Header) {
	v.mu.Lock()
	defer v.mu.Unlock()
	h.Set(challengeHeader, v.challenge)
}

// Covers reports whether this is the body that the request was proved with.
func (p *Proven) Covers(body []byte) bool {
	return hmac.Equal([]byte(p.bodyHash), []byte(hashed(body)))
}

// Mark proves an answer of the member with this name. A nil Proven marks nothing.
func (p *Proven) Mark(h http.Header, name string, status int, body []byte) {
	if p != nil {
		h.Set(answerHeader, answerMAC(p.key, p.nonce, name, status, body)+" "+strconv.QuoteToASCII(name))
	}
}
