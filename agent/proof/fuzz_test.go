package proof

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"testing"
)

// FuzzHeaders: without the secret no header proves a request, nor an answer.
func FuzzHeaders(f *testing.F) {
	secret := Secret{Current: bytes.Repeat([]byte{7}, secretSize)}
	var keeper Keeper
	keeper.Keep(secret)
	v := NewVerifier(&keeper, func() string { return "db1" })
	challenge := http.Header{}
	v.Challenge(challenge)
	other := Prover{Keeper: new(Keeper)}
	other.Keeper.Keep(Secret{Current: bytes.Repeat([]byte{8}, secretSize)})
	r := httptest.NewRequest(http.MethodPost, "/restart", nil)
	other.Sign(r, "db1", nil)
	f.Add(r.Header.Get(requestHeader), "00 \"db1\"")
	f.Add(challenge.Get(challengeHeader)+" a b "+requestMAC(nil, "db1", http.MethodPost, "/restart", challenge.Get(challengeHeader), "a", "b"), `x "\u001b\xff"`)
	f.Add("a b c d e", "")
	f.Add("\x00 \x00 \x00 \x00", " ")
	f.Fuzz(func(t *testing.T, request, answer string) {
		r := httptest.NewRequest(http.MethodPost, "/restart", nil)
		r.Header = http.Header{requestHeader: {request}}
		if p, err := v.Check(r); err == nil {
			t.Errorf("%q proves a request: %+v", request, p)
		}
		asked := Asked{key: secret.Current, nonce: "n"}
		if name, proved := asked.ProvedBy(&http.Response{StatusCode: http.StatusOK, Header: http.Header{answerHeader: {answer}}}, nil); proved {
			t.Errorf("%q proves the answer of %q", answer, name)
		}
	})
}

// FuzzParse: a secret that is read is one that can be used, and is written as it was read.
func FuzzParse(f *testing.F) {
	f.Add(NewSecret().Announce().Encode())
	f.Add([]byte(`{"current":"AAAA"}`))
	f.Add([]byte(`{"current":null,"next":[1]}`))
	f.Fuzz(func(t *testing.T, value []byte) {
		s, err := Parse(value)
		if err != nil {
			return
		}
		if len(s.Current) < secretSize {
			t.Fatalf("a secret of %d bytes", len(s.Current))
		}
		again, err := Parse(s.Encode())
		if err != nil || !again.Equal(s) {
			t.Errorf("%v, %v", again.Fingerprints(), err)
		}
	})
}
