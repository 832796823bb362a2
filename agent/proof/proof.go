// Package proof lets the members of a shard, and the commands of its operators, show
// each other that they know the shard's secret, without sending it.
//
//	secret.go    the secret, as it stands in Consul, and who holds it
//	request.go   what a client sends, and how it judges an answer
//	verifier.go  how a server judges a request, and marks its answer
//
// A request carries an HMAC-SHA-256 over the name of the member that is asked, its
// method, its target, the hash of its body, a nonce of the client's and a challenge of
// the server's; the answer one over that nonce, its status, its body and the name of the
// member that gives it. So nobody else can ask, answer, ask once more or of another
// member what was asked before, or answer in another member's place. The challenge is a random number that a server has made when it started, so
// no clock is compared; a client learns it from the first answer (401).
package proof

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"strconv"
	"strings"
)

// Headers of a request and of its answer.
const (
	// requestHeader is "CHALLENGE NONCE BODYHASH MAC", all but the challenge in hex.
	requestHeader = "Lictor-Proof"
	// answerHeader is "MAC NAME"; the name is quoted as in Go.
	answerHeader = "Lictor-Answer-Proof"
	// challengeHeader is the server's challenge.
	challengeHeader = "Lictor-Challenge"
)

// requestMAC is what a request proves itself with.
func requestMAC(secret []byte, to, method, target, challenge, nonce, bodyHash string) string {
	return mac(secret, "request", to, method, target, challenge, nonce, bodyHash)
}

// answerMAC is what an answer proves itself with.
func answerMAC(secret []byte, nonce, name string, status int, body []byte) string {
	return mac(secret, "answer", nonce, name, strconv.Itoa(status), hashed(body))
}

// mac joins its parts so that no two lists of parts give the same text.
func mac(secret []byte, parts ...string) string {
	m := hmac.New(sha256.New, secret)
	for _, p := range parts {
		m.Write([]byte(strconv.Itoa(len(p)) + ":" + p)) // a hash takes everything
	}
	return hex.EncodeToString(m.Sum(nil))
}

func hashed(body []byte) string {
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:])
}

// targetOf is a request's path with its query: proxies may change what stands before.
func targetOf(r *http.Request) string {
	target := r.URL.EscapedPath()
	if r.URL.RawQuery != "" {
		target += "?" + r.URL.RawQuery
	}
	return "/" + strings.TrimLeft(target, "/")
}
