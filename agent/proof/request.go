package proof

import (
	"crypto/hmac"
	"encoding/hex"
	"net/http"
	"strconv"
	"strings"
	"sync"
)

// Prover signs requests. The zero value signs none. Its methods run on any goroutine.
type Prover struct {
	Keeper *Keeper

	mu         sync.Mutex
	challenges map[string]string // by host
}

// mostHosts bounds how many servers' challenges are remembered.
const mostHosts = 10_000

// Asked is a request that was signed; nil when no secret is held.
type Asked struct {
	key              []byte
	host             string
	challenge, nonce string
}

// Sign adds the proof to a request with this body to the member of this name. It returns
// nil, and leaves the request as it is, where no secret is held.
func (p *Prover) Sign(r *http.Request, to string, body []byte) *Asked {
	secret, held := p.Keeper.Secret()
	if !held {
		return nil
	}
	p.mu.Lock()
	challenge := p.challenges[r.URL.Host]
	p.mu.Unlock()
	if challenge == "" {
		challenge = "none"
	}
	a := &Asked{key: secret.Current, host: r.URL.Host, challenge: challenge, nonce: hex.EncodeToString(random(16))}
	sum := hashed(body)
	r.Header.Set(requestHeader, strings.Join([]string{
		a.challenge, a.nonce, sum, requestMAC(a.key, to, r.Method, targetOf(r), a.challenge, a.nonce, sum),
	}, " "))
	return a
}

// Again reports whether a request is to be signed and sent once more, because the
// server has named another challenge.
func (p *Prover) Again(a *Asked, resp *http.Response) bool {
	if a == nil {
		return false
	}
	challenge := resp.Header.Get(challengeHeader)
	if raw, err := hex.DecodeString(challenge); err != nil || len(raw) != challengeSize || challenge == a.challenge {
		return false // no server of a member has made it
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.challenges == nil || len(p.challenges) >= mostHosts {
		p.challenges = map[string]string{}
	}
	p.challenges[a.host] = challenge
	return resp.StatusCode == http.StatusUnauthorized
}

// ProvedBy is the name of the member that gave this answer to the request; false when
// the answer does not prove that it comes from a member of the shard.
func (a *Asked) ProvedBy(resp *http.Response, body []byte) (name string, proved bool) {
	if a == nil {
		return "", false
	}
	sum, quoted, _ := strings.Cut(resp.Header.Get(answerHeader), " ")
	name, err := strconv.Unquote(quoted)
	if err != nil || !hmac.Equal([]byte(sum), []byte(answerMAC(a.key, a.nonce, name, resp.StatusCode, body))) {
		return "", false
	}
	return name, true
}
