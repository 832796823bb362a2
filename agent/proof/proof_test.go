package proof

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	s := NewSecret().Announce()
	got, err := Parse(s.Encode())
	if err != nil || !got.Equal(s) {
		t.Errorf("%v", err)
	}
	for name, value := range map[string]string{
		"empty": "", "null": "null", "an object": "{}", "another shape": `["x"]`, "no base64": `{"current":"!"}`,
		"too short": `{"current":"c2hvcnQ="}`, "a short one beside": strings.Replace(string(s.Encode()), `"next":"`, `"next":"c2hvcnQ=","x":"`, 1),
	} {
		if _, err := Parse([]byte(value)); err == nil || strings.Contains(err.Error(), "c2hvcnQ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A used nonce is never taken again, though the nonces of earlier challenges are forgotten.
func TestManyRequests(t *testing.T) {
	var k Keeper
	k.Keep(NewSecret())
	v, p := NewVerifier(&k, func() string { return "m1" }), Prover{Keeper: &k}
	sent := func() (*http.Request, *Asked) {
		r := httptest.NewRequest(http.MethodPost, "http://member/part", nil)
		return r, p.Sign(r, "m1", nil)
	}
	challenged := func(a *Asked) {
		w := httptest.NewRecorder()
		v.Challenge(w.Header())
		w.WriteHeader(http.StatusUnauthorized)
		p.Again(a, w.Result()) //nolint:bodyclose // a recorder's
	}
	r, a := sent()
	if _, err := v.Check(r); err != ErrChallenge { //nolint:errorlint // it is returned as it is
		t.Fatal(err)
	}
	challenged(a)
	first, a := sent()
	for i := range 3 * mostNonces {
		r, now := first, a
		if i > 0 {
			r, now = sent()
		}
		proven, err := v.Check(r)
		if err != nil {
			challenged(now)
			continue
		}
		if !proven.Covers(nil) || proven.Covers([]byte("x")) {
			t.Fatal("covers another body")
		}
		if _, err := v.Check(r); err == nil {
			t.Fatal("taken twice")
		}
		if _, err := v.Check(first); err == nil {
			t.Fatalf("the first one is taken again after %d", i)
		}
	}
	if len(v.used) > mostNonces {
		t.Errorf("%d nonces are kept", len(v.used))
	}
}

func TestWrongProofs(t *testing.T) {
	var k Keeper
	v := NewVerifier(&k, func() string { return "m1" })
	r := httptest.NewRequest(http.MethodPost, "/part", nil)
	if _, err := v.Check(r); err != ErrNone { //nolint:errorlint // it is returned as it is
		t.Errorf("no header: %v", err)
	}
	r.Header.Set(requestHeader, "a b c d")
	if _, err := v.Check(r); err != ErrNoSecret { //nolint:errorlint // it is returned as it is
		t.Errorf("no secret: %v", err)
	}
	k.Keep(NewSecret())
	for _, header := range []string{"a", "a b c d", "a b c d e", strings.Repeat("a", 1<<16), "a b c " + mac(nil), string(bytes.Repeat([]byte{0xff}, 40))} {
		r.Header.Set(requestHeader, header)
		if _, err := v.Check(r); err != ErrWrong { //nolint:errorlint // it is returned as it is
			t.Errorf("%.20q: %v", header, err)
		}
	}
}

// Two requests that differ anywhere have different proofs.
func TestNothingCanBeMoved(t *testing.T) {
	key := NewSecret().Current
	seen := map[string]string{}
	for name, sum := range map[string]string{
		"plain":          requestMAC(key, "m", "POST", "/part", "c", "n", "h"),
		"another method": requestMAC(key, "m", "GET", "/part", "c", "n", "h"),
		"moved bytes":    requestMAC(key, "m", "POST", "/par", "tc", "n", "h"),
		"another member": requestMAC(key, "n", "POST", "/part", "c", "n", "h"),
		"an answer":      mac(key, "answer", "m", "POST", "/part", "c", "n", "h"),
	} {
		if other, twice := seen[sum]; twice {
			t.Errorf("%s and %s", name, other)
		}
		seen[sum] = name
	}
}

// Secrets that follow each other in a rotation are taken by those who have either; one
// that was made anew is not.
func TestFollows(t *testing.T) {
	first := NewSecret()
	announced := first.Announce()
	used := announced.Rotate()
	for _, c := range []struct {
		name          string
		after, before Secret
		want          bool
	}{
		{"the same", first, first, true},
		{"announced", announced, first, true},
		{"used", used, announced, true},
		{"forgotten", used.Forget(), used, true},
		{"two steps", used.Forget(), first, false},
		{"another", NewSecret(), first, false},
	} {
		if got := c.after.Follows(c.before); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}
