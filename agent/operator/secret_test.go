package operator

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/lictor-ha/lictor/agent/proof"
)

// However the rotations of two operators meet, and wherever one breaks off, the key holds
// a secret that members can read, and the one that is used stays known to those who use it.
func TestRotationsMeet(t *testing.T) {
	for at := range 4 { // when the second one comes
		for length := range 4 { // how many steps it does
			key, index := proof.NewSecret().Encode(), uint64(1)
			held := proof.NewSecret()
			begin := func(missing func(ctx context.Context, known func([]string) bool) []string) error {
				secret, err := proof.Parse(key)
				if err != nil {
					return err
				}
				r := rotation{
					secret: secret, index: index, console: &Console{Out: &bytes.Buffer{}, Err: &bytes.Buffer{}}, missing: missing,
					read: func(context.Context) (proof.Secret, uint64, error) {
						s, err := proof.Parse(key)
						return s, index, err
					},
					write: func(_ context.Context, at uint64, s proof.Secret) error {
						if at != index {
							return errors.New("changed meanwhile")
						}
						key, index = s.Encode(), index+1
						return nil
					},
				}
				return r.run(t.Context())
			}
			// The members read the key at once.
			told := func(known func([]string) bool) []string {
				s, err := proof.Parse(key)
				if err != nil {
					t.Errorf("the second comes at step %d and does %d: %v", at, length, err)
					return []string{err.Error()}
				}
				if held = s; !known(s.Fingerprints()) {
					return []string{"m1"}
				}
				return nil
			}
			steps := 0
			first := begin(func(_ context.Context, known func([]string) bool) []string {
				if steps++; steps-1 == at {
					n := 0
					_ = begin(func(_ context.Context, known func([]string) bool) []string {
						if n++; n > length {
							return []string{"it broke off"}
						}
						return told(known)
					})
				}
				return told(known)
			})
			if s, err := proof.Parse(key); err != nil || !s.Equal(held) {
				t.Errorf("the second comes at step %d and does %d: %v, %v, the first says %v", at, length, s.Fingerprints(), err, first)
			}
		}
	}
}
