package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/e2e/lab"
	"github.com/lictor-ha/lictor/e2e/lab/labtest"
)

// A bouncer that hears nobody without a client certificate holds its clients for a
// switchover: agents show it theirs, and check its own.
func TestBouncerWithTLS(t *testing.T) {
	dir, err := os.MkdirTemp("", "lictor-tls") // which PostgreSQL's user can reach
	must(t, err)
	defer os.RemoveAll(dir)
	must(t, os.Chmod(dir, 0o755))
	path := filepath.Join(dir, "tls.pem")
	must(t, os.WriteFile(path, certificate(t), 0o644))
	l := labtest.New(t, lab.Options{
		Members: 2, Bouncers: 1, ConsulServers: 1,
		Database: lab.Lictor{Edit: func(_ *lab.Member, config map[string]any) {
			config["ctl"] = map[string]any{"certfile": path, "cacert": path}
		}},
		Pooler: lab.LictorBouncer{Edit: func(_ *lab.Bouncer, config map[string]any) {
			config["certfile"], config["cafile"], config["verify_client"] = path, path, "required"
		}},
	})
	ctx := within(t)
	must(t, l.Start(ctx))
	s := l.Shard(0)
	leader := got(s.AwaitHealthy(ctx))(t)
	must(t, s.AwaitSync(ctx))
	await(ctx, t, "the bouncer has not registered", func() error {
		return l.Consul(ctx, func(ctx context.Context, c *api.Client) error {
			keys, _, err := c.KV().Keys(cluster.NewKeys("", "x", "").Bouncers(), "", (&api.QueryOptions{}).WithContext(ctx))
			if err == nil && len(keys) == 0 {
				err = errors.New("there is no key")
			}
			return err
		})
	})
	must(t, s.Switchover(ctx, leader, nil))
	log, err := os.ReadFile(leader.Process("agent").LogPath())
	must(t, err)
	if held := regexp.MustCompile(`"bouncers":1,"holding":1,.*clients are held for the handover`); !held.Match(log) {
		t.Error("the bouncer did not hold its clients")
	}
}

// certificate makes a self-signed one for 127.0.0.1, with its key: server, client and
// authority at once.
func certificate(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	must(t, err)
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	return append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})...)
}
