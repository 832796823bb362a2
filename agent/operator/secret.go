package operator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/proof"
)

// rotateLimit bounds how long the members may take to learn of another secret.
const rotateLimit = 30 * time.Second

// RotateSecret replaces the secret that a shard's members and operators prove themselves
// with: all members learn of the new one, then it is used, then the old one is taken no
// more. A member that does not answer keeps it from going on, unless it is forced: that
// one is not believed then until it has read the key.
func RotateSecret(ctx context.Context, c *Console, s *Shard, force bool) error {
	snapshot, err := s.Read(ctx)
	if err != nil {
		return err
	}
	secret, index, err := s.readSecret(ctx)
	if err != nil {
		return err
	}
	if !force {
		if err := c.Confirm(fmt.Sprintf("The members of %s will prove themselves with another secret. Go on?", s.Scope)); err != nil {
			return err
		}
	}
	return rotation{
		secret: secret, index: index, force: force, console: c,
		read: s.readSecret,
		write: func(ctx context.Context, index uint64, secret proof.Secret) error {
			if err := s.store.Write(ctx, s.Keys.Secret(), index, secret.Encode()); err != nil {
				return fmt.Errorf("writing the key %s: %w; do it once more", s.Keys.Secret(), err)
			}
			s.secret.Keep(secret)
			return nil
		},
		missing: func(ctx context.Context, known func(told []string) bool) []string {
			return s.awaitSecret(ctx, snapshot, known)
		},
	}.run(ctx)
}

// rotation is one run of RotateSecret.
type rotation struct {
	secret  proof.Secret
	index   uint64
	force   bool
	console *Console
	read    func(context.Context) (proof.Secret, uint64, error)
	write   func(ctx context.Context, index uint64, s proof.Secret) error
	// missing are the members that do not tell what they should.
	missing func(ctx context.Context, known func(told []string) bool) []string
}

func (r rotation) run(ctx context.Context) error {
	for _, step := range []struct {
		change func(proof.Secret) proof.Secret
		known  func(told []string, s proof.Secret) bool
		what   string
	}{
		{proof.Secret.Announce, func(told []string, s proof.Secret) bool { return slices.Contains(told, proof.Fingerprint(s.Next)) }, "know the new secret"},
		{proof.Secret.Rotate, func(told []string, s proof.Secret) bool {
			return len(told) > 0 && told[0] == proof.Fingerprint(s.Current)
		}, "use the new secret"},
		{proof.Secret.Forget, func(told []string, s proof.Secret) bool {
			return len(told) == 1 && told[0] == proof.Fingerprint(s.Current)
		}, "have forgotten the old secret"},
	} {
		secret := step.change(r.secret)
		if err := r.write(ctx, r.index, secret); err != nil {
			return err
		}
		missing := r.missing(ctx, func(told []string) bool { return step.known(told, secret) })
		switch {
		case len(missing) == 0:
			r.console.Say("All members %s", step.what)
		case r.force:
			r.console.Warn("warning: not known whether all members %s: %s", step.what, strings.Join(missing, "; "))
		default:
			return fmt.Errorf("not all members %s: %s. The secret of before is taken until this command has ended well: do it once more when they answer, or with --force", step.what, strings.Join(missing, "; "))
		}
		var err error
		if r.secret, r.index, err = r.read(ctx); err != nil {
			return err
		}
		if !r.secret.Equal(secret) {
			return refusedf("somebody else has changed the secret meanwhile; if that was no rotation that has ended well, do it once more")
		}
	}
	return nil
}

func (s *Shard) readSecret(ctx context.Context) (proof.Secret, uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, readLimit)
	defer cancel()
	value, index, err := s.store.Get(ctx, s.Keys.Secret())
	if err == nil && index == 0 {
		err = refusedf("there is no key %s: the agents make it when they start", s.Keys.Secret())
	}
	if err != nil {
		return proof.Secret{}, 0, err
	}
	secret, err := proof.Parse(value)
	return secret, index, err
}

// awaitSecret waits until all members of Lictor's tell fingerprints that satisfy known,
// and says which do not.
func (s *Shard) awaitSecret(ctx context.Context, snapshot cluster.Snapshot, known func(told []string) bool) (missing []string) {
	ctx, cancel := context.WithTimeout(ctx, rotateLimit)
	defer cancel()
	for _, m := range snapshot.Members {
		if !m.OK() || m.Value.Lictor == nil {
			continue
		}
		err := await(ctx, func(ctx context.Context) error {
			status, err := s.status(ctx, m.Value)
			switch {
			case err != nil:
				return err
			case status.Lictor == nil || !known(status.Lictor.Secrets):
				return errors.New("it has not read the key yet; its log says why, if it cannot")
			}
			return nil
		})
		if err != nil {
			missing = append(missing, m.Value.Name+": "+err.Error())
		}
	}
	return missing
}
