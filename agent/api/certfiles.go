package api

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
)

// certFiles are a certificate with its key and the authorities to trust, kept
// in files that may be replaced at any time. Every handshake looks whether they
// changed, so that rotated certificates need no restart. While the new files
// are incomplete or wrong the last good ones stay in use.
type certFiles struct {
	cert, key, ca string
	password      bool // a pass phrase was configured for the key

	// problem is told once about every set of files that could not be used.
	problem func(error)

	mu     sync.Mutex
	stamps [3]fileStamp
	loaded *certSet
}

// certSet is what the files held at one moment.
type certSet struct {
	cert *tls.Certificate
	pool *x509.CertPool // nil: the system's
	// server is the configuration for a server's handshakes. It is kept with the
	// set because session tickets belong to it.
	server *tls.Config
}

type fileStamp struct {
	size    int64
	changed time.Time
}

func newCertFiles(cert, key, ca, password string, problem func(error)) (*certFiles, error) {
	if key == "" {
		key = cert
	}
	f := &certFiles{cert: cert, key: key, ca: ca, password: password != "", problem: problem}
	_, err := f.current()
	return f, err
}

// current returns what the files hold now, or held when they were last good.
func (f *certFiles) current() (*certSet, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	stamps := [3]fileStamp{stampOf(f.cert), stampOf(f.key), stampOf(f.ca)}
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

func (f *certFiles) load() (*certSet, error) {
	set := &certSet{}
	if f.cert != "" {
		pair, err := loadKeyPair(f.cert, f.key, f.password)
		if err != nil {
			return nil, err
		}
		set.cert = &pair
	}
	if f.ca != "" {
		text, err := os.ReadFile(f.ca)
		if err != nil {
			return nil, fmt.Errorf("read the certificates to trust: %w", err)
		}
		set.pool = x509.NewCertPool()
		if !set.pool.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("%s holds no certificate in PEM form", f.ca)
		}
	}
	return set, nil
}

func loadKeyPair(certFile, keyFile string, password bool) (tls.Certificate, error) {
	cert, err := os.ReadFile(certFile)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("read the certificate: %w", err)
	}
	key, err := os.ReadFile(keyFile)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("read the private key: %w", err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		if encrypted(key) {
			hint := "is protected by a pass phrase"
			if password {
				hint = "is protected by a pass phrase, and keyfile_password is not supported"
			}
			return tls.Certificate{}, fmt.Errorf("private key %s %s: store it unprotected, readable by its owner alone (openssl pkey -in OLD -out NEW)", keyFile, hint)
		}
		return tls.Certificate{}, fmt.Errorf("certificate %s with private key %s: %w", certFile, keyFile, err)
	}
	return pair, nil
}

// encrypted tells whether PEM text holds a private key under a pass phrase, in
// either of the two forms in use.
func encrypted(text []byte) bool {
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			return false
		}
		if block.Type == "ENCRYPTED PRIVATE KEY" || strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED") {
			return true
		}
		text = rest
	}
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

// serverConfig makes the TLS configuration of a server that asks clients for
// certificates as auth says and offers these ciphers for TLS 1.2, nil for the
// library's choice.
func (f *certFiles) serverConfig(auth tls.ClientAuthType, ciphers []uint16) *tls.Config {
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
	}
}

// trust says how far a client checks the certificate of a server.
type trust int

const (
	trustFull  trust = iota // issued by somebody the system trusts, for this host name
	trustChain              // issued by an authority in the file, whatever the name
	trustAll                // not checked
)

// clientConfig makes the TLS configuration of a client that presents the
// certificate, if there is one.
func (f *certFiles) clientConfig(t trust) *tls.Config {
	c := &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			set, err := f.current()
			if err != nil {
				return nil, err
			}
			if set.cert == nil {
				return &tls.Certificate{}, nil
			}
			return set.cert, nil
		},
	}
	if t == trustFull {
		return c
	}
	// The library's own check cannot leave out the host name alone, nor follow
	// a file of authorities that changes: verifyChain takes its place.
	c.InsecureSkipVerify = true
	if t == trustChain {
		c.VerifyConnection = f.verifyChain
	}
	return c
}

// verifyChain checks that a server's certificate was issued by an authority in
// the file, for use by a server.
func (f *certFiles) verifyChain(state tls.ConnectionState) error {
	if len(state.PeerCertificates) == 0 {
		return errors.New("the server showed no certificate")
	}
	set, err := f.current()
	if err != nil {
		return err
	}
	options := x509.VerifyOptions{Roots: set.pool, Intermediates: x509.NewCertPool()}
	for _, c := range state.PeerCertificates[1:] {
		options.Intermediates.AddCert(c)
	}
	_, err = state.PeerCertificates[0].Verify(options)
	return err
}
