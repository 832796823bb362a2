// Package certfiles serves and checks TLS certificates that are kept in files, which
// may be replaced at any time. Agents and bouncers use it on both ends.
package certfiles

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/youmark/pkcs8"
)

// Paths names the files.
type Paths struct {
	// Cert may be empty for a client. Key is empty where Cert holds the key, too.
	Cert, Key string
	// CA is the file of the authorities to trust.
	CA string
	// Password is the pass phrase of the key, where it has one.
	Password string
}

// Files are a certificate with its key and the authorities to trust. Every handshake
// looks whether the files changed, so that rotated certificates need no restart. While
// the new files are incomplete or wrong the last good ones stay in use.
type Files struct {
	paths Paths

	// turn holds one for each signature that is being made.
	turn chan struct{}
	// problem is told once about every set of files that could not be used.
	problem func(error)

	mu     sync.Mutex
	stamps [3]fileStamp
	loaded *certSet
}

// certSet is what the files held at one moment.
type certSet struct {
	cert *tls.Certificate
	// pool is never nil, which to the library would mean all that the system trusts.
	pool *x509.CertPool
	// server is the configuration for a server's handshakes. It is kept with the
	// set because session tickets belong to it.
	server *tls.Config
}

type fileStamp struct {
	size    int64
	changed time.Time
}

// New reads the files for the first time.
func New(paths Paths, problem func(error)) (*Files, error) {
	if paths.Key == "" {
		paths.Key = paths.Cert
	}
	f := &Files{paths: paths, problem: problem, turn: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2))}
	_, err := f.current()
	return f, err
}

// current returns what the files hold now, or held when they were last good.
func (f *Files) current() (*certSet, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	stamps := [3]fileStamp{stampOf(f.paths.Cert), stampOf(f.paths.Key), stampOf(f.paths.CA)}
	if f.loaded != nil && stamps == f.stamps {
		return f.loaded, nil
	}
	set, err := f.load()
	if err != nil {
		if f.loaded == nil {
			return nil, err
		}
		f.stamps = stamps
		f.problem(fmt.Errorf("changed certificate files cannot be used, the former ones stay in use: %w", err))
		return f.loaded, nil
	}
	f.stamps, f.loaded = stamps, set
	return set, nil
}

func (f *Files) load() (*certSet, error) {
	set := &certSet{pool: x509.NewCertPool()}
	if f.paths.Cert != "" {
		pair, err := loadKeyPair(f.paths.Cert, f.paths.Key, f.paths.Password)
		if err != nil {
			return nil, err
		}
		if signer, ok := pair.PrivateKey.(crypto.Signer); ok {
			pair.PrivateKey = &turns{Signer: signer, turn: f.turn}
		}
		set.cert = &pair
	}
	if f.paths.CA != "" {
		text, err := os.ReadFile(f.paths.CA)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrAuthorities, err)
		}
		if !set.pool.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("%w: %s holds no certificate in PEM form", ErrAuthorities, f.paths.CA)
		}
	}
	return set, nil
}

func loadKeyPair(certFile, keyFile, password string) (tls.Certificate, error) {
	cert, err := os.ReadFile(certFile)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("read the certificate: %w", err)
	}
	key, err := os.ReadFile(keyFile)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("read the private key: %w", err)
	}
	if key, err = opened(key, password); err != nil {
		return tls.Certificate{}, fmt.Errorf("private key %s: %w", keyFile, err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("certificate %s with private key %s: %w", certFile, keyFile, err)
	}
	return pair, nil
}

// opened is PEM text with the private key in it as it is without its pass phrase, in whichever of the
// two forms in use it is protected: PKCS #8, or OpenSSL's own of old.
func opened(text []byte, password string) ([]byte, error) {
	var plain bytes.Buffer
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return plain.Bytes(), nil
		}
		pkcs8Form, oldForm := block.Type == "ENCRYPTED PRIVATE KEY", strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED")
		if (pkcs8Form || oldForm) && password == "" {
			return nil, errors.New("it is protected by a pass phrase: set keyfile_password, or store it unprotected, readable by its owner alone (openssl pkey -in OLD -out NEW)")
		}
		switch {
		case pkcs8Form:
			key, err := pkcs8.ParsePKCS8PrivateKey(block.Bytes, []byte(password))
			if err != nil {
				return nil, errors.New("keyfile_password does not open it, or it is protected in a way that is not known (openssl pkey -in OLD -aes256 -out NEW makes one that is)")
			}
			der, err := x509.MarshalPKCS8PrivateKey(key)
			if err != nil {
				return nil, fmt.Errorf("it is of a kind that is not known: %w", err)
			}
			block = &pem.Block{Type: "PRIVATE KEY", Bytes: der}
		case oldForm:
			//lint:ignore SA1019 keys of this form are in use, and theirs is a file that its owner alone reads
			der, err := x509.DecryptPEMBlock(block, []byte(password)) //nolint:staticcheck // as said for staticcheck itself
			if err != nil {
				return nil, errors.New("keyfile_password does not open it")
			}
			block = &pem.Block{Type: block.Type, Bytes: der}
		}
		if err := pem.Encode(&plain, block); err != nil {
			return nil, fmt.Errorf("it cannot be read: %w", err)
		}
	}
}

// turns makes signatures in turns: a handshake costs a server up to some milliseconds
// for the signature of its key, and however many clients ask for one at once, half of
// the processors stay for what must not wait.
type turns struct {
	crypto.Signer
	turn chan struct{}
}

// Sign waits for its turn.
func (t *turns) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	t.turn <- struct{}{}
	defer func() { <-t.turn }()
	return t.Signer.Sign(rand, digest, opts)
}

func stampOf(path string) fileStamp {
	if path == "" {
		return fileStamp{}
	}
	info, err := os.Stat(path)
	if err != nil {
		return fileStamp{size: -1}
	}
	return fileStamp{size: info.Size(), changed: info.ModTime()}
}

// ErrAuthorities says that the file of authorities cannot be used.
var ErrAuthorities = errors.New("the certificates to trust")

// ErrNoCA says that client certificates were to be verified by no authority.
var ErrNoCA = errors.New("client certificates can be verified only with a file of the authorities that issue them")

// ServerConfig makes the TLS configuration of a server that asks clients for
// certificates as auth says and offers these ciphers for TLS 1.2, nil for the
// library's choice.
func (f *Files) ServerConfig(auth tls.ClientAuthType, ciphers []uint16) (*tls.Config, error) {
	if auth >= tls.VerifyClientCertIfGiven && f.paths.CA == "" {
		return nil, ErrNoCA
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			set, err := f.current()
			if err != nil {
				return nil, err
			}
			f.mu.Lock()
			defer f.mu.Unlock()
			if set.server == nil {
				set.server = &tls.Config{
					MinVersion:   tls.VersionTLS12,
					CipherSuites: ciphers,
					Certificates: []tls.Certificate{*set.cert},
					ClientCAs:    set.pool,
					ClientAuth:   auth,
					NextProtos:   []string{"http/1.1"},
				}
			}
			return set.server, nil
		},
	}, nil
}

// Check says how far a client checks the certificate of a server.
type Check int

const (
	// Name: issued by an authority in the file (without one: by one that the system
	// trusts), for the host that is dialled.
	Name Check = iota
	// Chain: the same, whatever the host.
	Chain
	// Nothing is checked.
	Nothing
)

// handshakeLimit bounds a client's handshake.
const handshakeLimit = 5 * time.Second

// CheckName returns why others refuse the certificate in a file when they connect to
// HOST:PORT. A file that cannot be read is no matter of names.
func CheckName(certFile, address string) error {
	text, err := os.ReadFile(certFile)
	if err != nil {
		return nil //nolint:nilerr // told where the file is loaded
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil || host == "" {
		return nil //nolint:nilerr // told where the address is checked
	}
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			return nil
		}
		if block.Type == "CERTIFICATE" {
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil //nolint:nilerr // told where the file is loaded
			}
			return cert.VerifyHostname(host)
		}
		text = rest
	}
}

// DialTLS makes the function by which a client connects. It presents the certificate,
// if there is one. name is the host that the server's must be for; empty: the host that
// is dialled.
func (f *Files) DialTLS(check Check, dialer net.Dialer, name string) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return nil, fmt.Errorf("connect to %s: %w", address, err)
		}
		if name != "" {
			host = name
		}
		config, err := f.clientConfig(check, host)
		if err != nil {
			return nil, err
		}
		plain, err := dialer.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(ctx, handshakeLimit)
		defer cancel()
		conn := tls.Client(plain, config)
		if err := conn.HandshakeContext(ctx); err != nil {
			plain.Close()
			return nil, err
		}
		return conn, nil
	}
}

// clientConfig makes the TLS configuration for one connection to a host, by what the
// files hold now.
func (f *Files) clientConfig(check Check, host string) (*tls.Config, error) {
	set, err := f.current()
	if err != nil {
		return nil, err
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host, RootCAs: set.pool, NextProtos: []string{"http/1.1"}}
	if set.cert != nil {
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return set.cert, nil }
	}
	if f.paths.CA == "" && check != Nothing {
		if c.RootCAs, err = x509.SystemCertPool(); err != nil {
			return nil, fmt.Errorf("read the authorities that the system trusts: %w", err)
		}
	}
	if check == Name {
		return c, nil
	}
	// The library's own check cannot leave out the host's name alone: verifyChain takes
	// its place.
	c.InsecureSkipVerify = true
	if check == Chain {
		roots := c.RootCAs
		c.VerifyConnection = func(state tls.ConnectionState) error { return verifyChain(state, roots) }
	}
	return c, nil
}

// verifyChain checks that a server's certificate was issued by one of these
// authorities, for use by a server.
func verifyChain(state tls.ConnectionState, roots *x509.CertPool) error {
	if len(state.PeerCertificates) == 0 {
		return errors.New("the server showed no certificate")
	}
	options := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool()}
	for _, c := range state.PeerCertificates[1:] {
		options.Intermediates.AddCert(c)
	}
	_, err := state.PeerCertificates[0].Verify(options)
	return err
}
