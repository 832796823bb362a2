package proof

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"sync/atomic"
)

// secretSize is the length of a secret, in bytes.
const secretSize = 32

// Secret is the value of the key lictor/secrets/NAMESPACE/SCOPE. Requests are proved
// with Current; all three are taken, so that it can be changed while the members
// learn of the change one after another.
type Secret struct {
	Current  []byte `json:"current"`
	Next     []byte `json:"next,omitempty"`
	Previous []byte `json:"previous,omitempty"`
}

// NewSecret makes a random one.
func NewSecret() Secret { return Secret{Current: random(secretSize)} }

// Announce begins a rotation: the next secret is taken, but not used yet. A rotation
// that has begun goes on with its own.
func (s Secret) Announce() Secret {
	if s.Next == nil {
		s.Next = random(secretSize)
	}
	return s
}

// Rotate uses the announced secret from now on, and takes the old one still. Where none
// is announced nothing changes.
func (s Secret) Rotate() Secret {
	if s.Next == nil {
		return s
	}
	return Secret{Current: s.Next, Previous: s.Current}
}

// Forget takes the old one no more.
func (s Secret) Forget() Secret { return Secret{Current: s.Current, Next: s.Next} }

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) //nolint:errcheck // it never fails (crypto/rand)
	return b
}

// Parse reads a secret. The error never tells it.
func Parse(value []byte) (Secret, error) {
	var s Secret
	if err := json.Unmarshal(value, &s); err != nil {
		return Secret{}, errors.New("the shard's secret is not JSON of the expected shape; delete the key, and the agents write back the one that they know")
	}
	for _, k := range s.all() {
		if len(k) < secretSize {
			return Secret{}, fmt.Errorf("the shard's secret has %d bytes, must have %d or more; delete the key, and the agents write back the one that they know", len(k), secretSize)
		}
	}
	if s.Current == nil {
		return Secret{}, errors.New("the shard's secret is empty; delete the key, and the agents write back the one that they know")
	}
	return s, nil
}

// Encode writes a secret as Parse reads it.
func (s Secret) Encode() []byte {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // three lists of bytes
	}
	return b
}

// all are the keys that are taken.
func (s Secret) all() [][]byte {
	var keys [][]byte
	for _, k := range [][]byte{s.Current, s.Next, s.Previous} {
		if k != nil {
			keys = append(keys, k)
		}
	}
	return keys
}

// Fingerprints names the secrets that are taken, the one in use first; nobody can
// tell a secret from its fingerprint.
func (s Secret) Fingerprints() []string {
	var prints []string
	for _, k := range s.all() {
		prints = append(prints, Fingerprint(k))
	}
	return prints
}

// Fingerprint names a secret.
func Fingerprint(key []byte) string {
	sum := sha256.Sum256(append([]byte("fingerprint:"), key...))
	return hex.EncodeToString(sum[:8])
}

// Equal reports whether both take and use the same.
func (s Secret) Equal(other Secret) bool {
	return bytes.Equal(s.Current, other.Current) && bytes.Equal(s.Next, other.Next) && bytes.Equal(s.Previous, other.Previous)
}

// Follows reports whether s takes a key that before takes, too: both believe each other's
// requests while they differ.
func (s Secret) Follows(before Secret) bool {
	for _, k := range s.all() {
		for _, b := range before.all() {
			if bytes.Equal(k, b) {
				return true
			}
		}
	}
	return false
}

// Keeper holds the newest secret for those that prove and verify. The zero value has
// none. Its methods run on any goroutine.
type Keeper struct{ secret atomic.Pointer[Secret] }

// Keep replaces it.
func (k *Keeper) Keep(s Secret) { k.secret.Store(&s) }

// Secret is the one that is held.
func (k *Keeper) Secret() (s Secret, held bool) {
	if k == nil {
		return Secret{}, false
	}
	if p := k.secret.Load(); p != nil {
		return *p, true
	}
	return Secret{}, false
}
