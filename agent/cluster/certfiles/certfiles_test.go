package certfiles

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// busy is a key whose signatures take a while.
type busy struct {
	crypto.Signer
	now, most atomic.Int64
}

func (b *busy) Sign(r io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	n := b.now.Add(1)
	defer b.now.Add(-1)
	for most := b.most.Load(); n > most && !b.most.CompareAndSwap(most, n); most = b.most.Load() {
	}
	time.Sleep(time.Millisecond)
	return b.Signer.Sign(r, digest, opts)
}

// Handshakes of however many clients leave half of the processors to the program.
func TestHandshakesTakeTurns(t *testing.T) {
	path := write(t)
	f, err := New(Paths{Cert: path}, func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	key := f.loaded.cert.PrivateKey.(*turns)
	slow := &busy{Signer: key.Signer}
	key.Signer = slow
	config, err := f.ServerConfig(tls.NoClientCert, nil)
	if err != nil {
		t.Fatal(err)
	}
	var clients sync.WaitGroup
	for range 40 {
		near, far := net.Pipe()
		clients.Go(func() {
			defer near.Close()
			if err := tls.Server(near, config).HandshakeContext(t.Context()); err != nil {
				t.Errorf("server: %v", err)
			}
		})
		clients.Go(func() {
			defer far.Close()
			if err := tls.Client(far, &tls.Config{InsecureSkipVerify: true, SessionTicketsDisabled: true}).HandshakeContext(t.Context()); err != nil {
				t.Errorf("client: %v", err)
			}
		})
	}
	clients.Wait()
	if most, want := slow.most.Load(), int64(max(1, runtime.GOMAXPROCS(0)/2)); most > want || most == 0 {
		t.Errorf("%d signatures at once, want at most %d", most, want)
	}
}

// A server that is to verify clients by no authority is none; a client's pool is never
// nil, which would be the system's.
func TestPoolsAreNeverNil(t *testing.T) {
	path := write(t)
	f, err := New(Paths{Cert: path}, func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	for _, auth := range []tls.ClientAuthType{tls.VerifyClientCertIfGiven, tls.RequireAndVerifyClientCert} {
		if _, err := f.ServerConfig(auth, nil); !errors.Is(err, ErrNoCA) {
			t.Errorf("%v: %v", auth, err)
		}
	}
	config, err := f.ServerConfig(tls.NoClientCert, nil)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := config.GetConfigForClient(nil); err != nil || c.ClientCAs == nil {
		t.Errorf("server: %v", err)
	}
	for _, check := range []Check{Name, Chain, Nothing} {
		c, err := f.clientConfig(check, "db1")
		if err != nil || c.RootCAs == nil || c.InsecureSkipVerify != (check != Name) || (c.VerifyConnection != nil) != (check == Chain) {
			t.Errorf("client, %d: %+v, %v", check, c, err)
		}
	}
}

func TestCheckName(t *testing.T) {
	path := write(t)
	for address, ok := range map[string]bool{"127.0.0.1:8008": true, "db1:8008": true, "db2:8008": false, "10.0.0.1:8008": false, "": true} {
		if err := CheckName(path, address); (err == nil) != ok {
			t.Errorf("%q: %v", address, err)
		}
	}
	if err := CheckName(filepath.Join(t.TempDir(), "none"), "db1:8008"); err != nil {
		t.Error(err)
	}
}

// write writes a certificate for db1 and 127.0.0.1, with its key.
func write(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"db1"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "cert.pem")
	text := append(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Keys under a pass phrase, as OpenSSL writes them.
func TestPassPhrase(t *testing.T) {
	dir := t.TempDir()
	openssl := func(args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), "openssl", args...).CombinedOutput(); err != nil {
			t.Fatalf("openssl %v: %v\n%s", args, err, out)
		}
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	for kind, generate := range map[string][]string{
		"rsa": {"genrsa", "-out", at("rsa"), "2048"}, "ec": {"ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", at("ec")}, "ed25519": {"genpkey", "-algorithm", "ed25519", "-out", at("ed25519")},
	} {
		openssl(generate...)
		cert := at(kind + ".crt")
		openssl("req", "-x509", "-key", at(kind), "-subj", "/CN=localhost", "-days", "2", "-out", cert)
		protected := map[string][]string{
			"pkcs8, aes": {"pkey", "-in", at(kind), "-aes256", "-passout", "pass:hush"}, "pkcs8, scrypt": {"pkcs8", "-topk8", "-in", at(kind), "-scrypt", "-passout", "pass:hush"},
		}
		if kind != "ed25519" {
			protected["traditional"] = []string{kind, "-in", at(kind), "-aes256", "-passout", "pass:hush"}
		}
		if kind == "rsa" {
			protected["traditional"] = append(protected["traditional"], "-traditional")
		}
		for form, command := range protected {
			key := at(kind + form)
			openssl(append(command, "-out", key)...)
			if _, err := New(Paths{Cert: cert, Key: key, Password: "hush"}, nil); err != nil {
				t.Errorf("%s, %s: %v", kind, form, err)
			}
			for password, says := range map[string]string{"": "set keyfile_password", "hush!": "does not open it"} {
				if _, err := New(Paths{Cert: cert, Key: key, Password: password}, nil); err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "hush") {
					t.Errorf("%s, %s, with %q: %v", kind, form, password, err)
				}
			}
		}
		both := at(kind + " both")
		var text []byte
		for _, path := range []string{cert, at(kind + "pkcs8, aes")} {
			part, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			text = append(text, part...)
		}
		if err := os.WriteFile(both, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := New(Paths{Cert: both, Password: "hush"}, nil); err != nil {
			t.Errorf("%s, certificate and key in one file: %v", kind, err)
		}
	}
}
