package postgres

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
)

// authority issues certificates for a test.
type authority struct {
	dir, file string
	cert      *x509.Certificate
	key       crypto.Signer
}

func newAuthority(t *testing.T, dir string) *authority {
	t.Helper()
	must(t, os.MkdirAll(dir, 0o755))
	a := &authority{dir: dir, file: filepath.Join(dir, "ca.crt")}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA " + dir}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(t, err)
	a.cert, err = x509.ParseCertificate(der)
	must(t, err)
	a.key = key
	a.write(t, a.file, &pem.Block{Type: "CERTIFICATE", Bytes: der}, 0o644)
	return a
}

// write writes a file that PostgreSQL's user owns.
func (a *authority) write(t *testing.T, path string, block *pem.Block, mode os.FileMode) {
	t.Helper()
	must(t, os.WriteFile(path, pem.EncodeToMemory(block), mode))
	if os.Geteuid() == 0 {
		c, err := Credential("postgres", "/")
		must(t, err)
		must(t, os.Chown(path, int(c.Uid), int(c.Gid)))
	}
}

// issue makes a certificate; with a password its key is encrypted.
func (a *authority) issue(t *testing.T, name string, serial int64, password string) (cert, key string) {
	t.Helper()
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, private.Public(), a.key)
	must(t, err)
	cert, key = filepath.Join(a.dir, name+".crt"), filepath.Join(a.dir, name+".key")
	a.write(t, cert, &pem.Block{Type: "CERTIFICATE", Bytes: der}, 0o644)
	block := &pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(private)}
	if password != "" {
		//lint:ignore SA1019 the form that sslpassword is for
		block, err = x509.EncryptPEMBlock(rand.Reader, block.Type, block.Bytes, []byte(password), x509.PEMCipherAES256) //nolint:staticcheck // see above
		must(t, err)
	}
	a.write(t, key, block, 0o600)
	return cert, key
}

// revoke makes a list of revoked certificates.
func (a *authority) revoke(t *testing.T, name string, serials ...int64) string {
	t.Helper()
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(time.Hour)}
	for _, n := range serials {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: big.NewInt(n), RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, a.cert, a.key)
	must(t, err)
	path := filepath.Join(a.dir, name)
	a.write(t, path, &pem.Block{Type: "X509 CRL", Bytes: der}, 0o644)
	return path
}

// Lists of revoked certificates are found where libpq finds them, which the driver does not.
func TestDefaultListsOfRevoked(t *testing.T) {
	home := t.TempDir()
	ca := newAuthority(t, filepath.Join(home, ".postgresql"))
	role := config.PgUser{Username: "a", SSLMode: "verify-full", SSLRootCert: ca.file}
	t.Setenv("PGSSLCRL", "")
	t.Setenv("PGSSLCRLDIR", "")
	if got := withDefaultLists(role, home); got.SSLCRL != "" || got.SSLCRLDir != "" {
		t.Errorf("there is no list: %+v", got)
	}
	list := ca.revoke(t, "root.crl", 2)
	if got := withDefaultLists(role, home); got.SSLCRL != list {
		t.Errorf("the user's file: %+v", got)
	}
	role.SSLCRLDir = "/own"
	if got := withDefaultLists(role, home); got.SSLCRL != "" {
		t.Errorf("the role names its own: %+v", got)
	}
	role.SSLCRLDir = ""
	t.Setenv("PGSSLCRL", list)
	c, err := LoginConfig("127.0.0.1", 5432, role, "postgres")
	must(t, err)
	if c.TLSConfig.VerifyConnection == nil {
		t.Error("PGSSLCRL is not heeded")
	}
}

// What a version of PostgreSQL does not know of TLS is told; direct TLS, which a server
// before 17 does not answer, is not tried.
func TestTLSOfLaterVersions(t *testing.T) {
	var log strings.Builder
	p := unwired(13, config.Postgres{}, cluster.DynamicPostgres{})
	p.log = zerolog.New(&log)
	var local config.Postgres
	local.Authentication.Superuser = config.PgUser{SSLNegotiation: "direct", SSLMode: "require"}
	local.Authentication.Replication = config.PgUser{SSLNegotiation: "direct", SSLCRLDir: "/crl", SSLPassword: "x", ChannelBinding: "require"}
	got := p.fit(local).Authentication
	if got.Superuser.SSLNegotiation != "" || got.Superuser.SSLMode != "require" || got.Replication.SSLNegotiation != "" || got.Replication.SSLCRLDir != "/crl" {
		t.Errorf("%+v", got)
	}
	for _, want := range []string{"superuser.sslnegotiation", "replication.sslnegotiation", "replication.sslcrldir", "which is of version 17"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("%s is not told: %s", want, log.String())
		}
	}
	if n := strings.Count(log.String(), "\n"); n != 3 {
		t.Errorf("%d lines: %s", n, log.String())
	}
	p.major = 17
	if got := p.fit(local).Authentication; got.Superuser.SSLNegotiation != "direct" {
		t.Error("version 17 knows it")
	}
}

// A PostgreSQL that lets roles in by certificate over TLS and in no other way is
// cloned, followed and asked; nothing goes in plain text, and a server that cannot be
// verified is not talked to.
func TestCertificatesOnly(t *testing.T) {
	ctx, dir := within(t), newDir(t)
	ca := newAuthority(t, filepath.Join(dir, "ca"))
	cert, key := ca.issue(t, "server", 2, "")
	role := func(name string, serial int64, password string) config.PgUser {
		u := config.PgUser{Username: name, SSLMode: "verify-full", SSLRootCert: ca.file, SSLPassword: password, ChannelBinding: "prefer", GSSEncMode: "disable"}
		u.SSLCert, u.SSLKey = ca.issue(t, name, serial, password)
		return u
	}
	auth := config.Authentication{Superuser: role("postgres", 3, ""), Replication: role("replicator", 4, secret+" key"), Rewind: role("Rewinder", 5, secret)}
	auth.Replication.SSLCRL = ca.revoke(t, "good.crl", 99)
	member := func(name string) *Instance {
		s := settings(t, dir, name)
		s.Postgres.Authentication = auth
		s.Postgres.Parameters["ssl"], s.Postgres.Parameters["ssl_ca_file"] = true, ca.file
		s.Postgres.Parameters["ssl_cert_file"], s.Postgres.Parameters["ssl_key_file"] = cert, key
		s.Postgres.PgHBA = []string{"hostssl all all 127.0.0.1/32 cert", "hostssl replication replicator 127.0.0.1/32 cert"}
		return newInstance(t, s)
	}
	a, b := member("a"), member("b")
	bootstrapped(ctx, t, a)
	must(t, a.Start(ctx, StartAs{Role: Primary}))
	keepSlots(ctx, t, a, "b")
	must(t, b.BaseBackup(ctx, upstream(a), nil))
	follow(ctx, t, b, a)
	observe(ctx, t, b, "replica streams", func(s State) bool { return s.ReplicationState == Streaming })
	if err := b.Answers(ctx, upstream(a), true, ""); err != nil {
		t.Error("the primary is not reachable", err)
	}
	must(t, b.Stop(ctx, Fast))
	if _, err := b.Rewind(ctx, upstream(a), true); err != nil {
		t.Error(err)
	}
	noSecrets(t, dir, a)

	var err error
	elsewhere := newAuthority(t, filepath.Join(dir, "other"))
	for name, change := range map[string]struct {
		change func(*config.PgUser)
		want   string
	}{
		"another authority":   {func(u *config.PgUser) { u.SSLRootCert = elsewhere.file }, "unknown authority"},
		"revoked":             {func(u *config.PgUser) { u.SSLCRL = ca.revoke(t, "bad.crl", 2) }, "was revoked"},
		"revoked, verify-ca":  {func(u *config.PgUser) { u.SSLMode, u.SSLCRL = "verify-ca", ca.revoke(t, "bad.crl", 2) }, "was revoked"},
		"another's list":      {func(u *config.PgUser) { u.SSLCRL = elsewhere.revoke(t, "other.crl") }, "no list of certificates"},
		"a directory of them": {func(u *config.PgUser) { u.SSLCRL, u.SSLCRLDir = "", filepath.Dir(elsewhere.revoke(t, "other.crl")) }, "no list of certificates"},
		"plain text":          {func(u *config.PgUser) { u.SSLMode = "disable" }, "no encryption"},
		// One wrong password in 256 leaves a padding that looks right (RFC 1423 has no checksum).
		"wrong key password": {func(u *config.PgUser) { u.SSLPassword = "wrong" }, "decrypt|failed to parse private key"},
	} {
		local := *b.local.Load()
		local.Authentication = auth
		change.change(&local.Authentication.Replication)
		b.Reconfigure(local)
		says := func(want string) bool { return strings.Contains(err.Error(), want) }
		if _, err = b.identify(ctx, upstream(a)); err == nil || !slices.ContainsFunc(strings.Split(change.want, "|"), says) || says(secret) {
			t.Errorf("%s: %v, want %s", name, err, change.want)
		}
	}
	local := *b.local.Load()
	local.Authentication = auth
	b.Reconfigure(local)
	_, err = b.identify(context.WithoutCancel(ctx), upstream(a))
	must(t, err)
}
