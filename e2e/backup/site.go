package backup

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/e2e/lab"
)

// pgBackRest's names of things on every host, below the host's own directory.
const (
	configFile = "pgbackrest.conf"
	serverPort = 8432
	caFile     = "ca.crt"
	certFile   = "tls.crt"
	keyFile    = "tls.key"
)

// site is a lab with a host that holds the repository of backups. Its shards are its
// stanzas.
type site struct {
	*lab.Lab
	program string // pgbackrest
	ca      *authority
	repo    *lab.Host
}

// newSite adds the repository's host to a lab that is not started yet, and configures
// pgBackRest on all hosts.
func newSite(ctx context.Context, l *lab.Lab, program string) (*site, error) {
	s := &site{Lab: l, program: program}
	var err error
	if s.ca, err = newAuthority(); err != nil {
		return nil, err
	}
	s.repo, err = l.AddHost(ctx, "repository", func(h *lab.Host) ([]lab.Spec, error) {
		if err := s.prepare(h, time.Now().Add(24*time.Hour)); err != nil {
			return nil, err
		}
		if err := l.MakeDir(filepath.Join(h.Dir, "repo")); err != nil {
			return nil, err
		}
		return []lab.Spec{serverSpec(l, h, program)}, l.WriteFile(filepath.Join(h.Dir, configFile), []byte(s.repoConfig(h)), 0o600)
	})
	if err != nil {
		return nil, err
	}
	for _, m := range l.Members() {
		if err := s.prepare(m.Host, time.Now().Add(24*time.Hour)); err != nil {
			return nil, err
		}
		if err := s.configure(m, m.Shard.Name); err != nil {
			return nil, err
		}
		// By this the server's libpq logs in. (A host's directory is its processes' home.)
		login := fmt.Sprintf("*:*:*:%s:%s\n", lab.SuperuserRole, l.Secrets.Superuser)
		if err := l.WriteFile(filepath.Join(m.Dir, ".pgpass"), []byte(login), 0o600); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// prepare gives a host its certificate and the directories that pgBackRest wants.
func (s *site) prepare(h *lab.Host, until time.Time) error {
	for _, dir := range []string{"log", "lock", "spool"} {
		if err := s.MakeDir(filepath.Join(h.Dir, dir)); err != nil {
			return err
		}
	}
	return s.certify(h, until)
}

// certify gives a host a certificate that ends at a time.
func (s *site) certify(h *lab.Host, until time.Time) error {
	cert, key, err := s.ca.issue(h.Name, h.Address, until)
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{caFile: s.ca.certificate, certFile: cert, keyFile: key} {
		if err := s.WriteFile(filepath.Join(h.Dir, name), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// common is what all configurations of pgBackRest have.
func common(h *lab.Host) string {
	return fmt.Sprintf(`[global]
log-path=%[1]s/log
lock-path=%[1]s/lock
spool-path=%[1]s/spool
log-level-console=warn
log-level-file=detail
log-timestamp=y
start-fast=y
# A host that is lost in the middle of a backup is noticed, and not after half an hour.
tcp-keep-alive-idle=5
tcp-keep-alive-interval=3
tcp-keep-alive-count=3
compress-type=none
tls-server-address=%[2]s
tls-server-port=%[3]d
tls-server-ca-file=%[1]s/ca.crt
tls-server-cert-file=%[1]s/tls.crt
tls-server-key-file=%[1]s/tls.key
`, h.Dir, h.Address, serverPort)
}

// repoConfig is the repository host's: each shard's members are the hosts of its stanza.
func (s *site) repoConfig(h *lab.Host) string {
	var b strings.Builder
	b.WriteString(common(h))
	fmt.Fprintf(&b, "repo1-path=%s/repo\nrepo1-retention-full=5\nio-timeout=10\n", h.Dir)
	for _, m := range s.Members() {
		fmt.Fprintf(&b, "tls-server-auth=%s=*\n", m.Name)
	}
	for _, shard := range s.Shards() {
		fmt.Fprintf(&b, "\n[%s]\n", shard.Name)
		for i, m := range shard.Members() {
			tls := func(option, value string) { fmt.Fprintf(&b, "pg%d-%s=%s\n", i+1, option, value) }
			tls("host", m.Address)
			tls("host-type", "tls")
			tls("host-port", strconv.Itoa(serverPort))
			tls("host-config", filepath.Join(m.Dir, configFile))
			for option, file := range map[string]string{"ca": caFile, "cert": certFile, "key": keyFile} {
				tls("host-"+option+"-file", filepath.Join(h.Dir, file))
			}
			tls("path", m.DataDir)
			tls("socket-path", m.SocketDir)
			tls("user", lab.SuperuserRole)
		}
	}
	return b.String()
}

// configure writes a database host's: the repository is the other host's.
func (s *site) configure(m *lab.Member, stanza string) error {
	var b strings.Builder
	b.WriteString(common(m.Host))
	fmt.Fprintf(&b, `repo1-host=%[1]s
repo1-host-type=tls
repo1-host-port=%[2]d
repo1-host-config=%[3]s
repo1-host-ca-file=%[4]s/ca.crt
repo1-host-cert-file=%[4]s/tls.crt
repo1-host-key-file=%[4]s/tls.key
tls-server-auth=%[5]s=*

# A repository that is silent is to be noticed soon where PostgreSQL waits for it (docs/backups.md).
[global:archive-get]
io-timeout=1

[global:archive-push]
io-timeout=10

[global:restore]
io-timeout=10

[%[6]s]
pg1-path=%[7]s
pg1-socket-path=%[8]s
pg1-user=%[9]s
`, s.repo.Address, serverPort, filepath.Join(s.repo.Dir, configFile), m.Dir, s.repo.Name, stanza, m.DataDir, m.SocketDir, lab.SuperuserRole)
	return s.WriteFile(filepath.Join(m.Dir, configFile), []byte(b.String()), 0o600)
}

// pgbackrest runs one of its commands on the repository's host, for a shard.
func (s *site) pgbackrest(ctx context.Context, shard *lab.Shard, command ...string) error {
	args := append([]string{"--config=" + filepath.Join(s.repo.Dir, configFile), "--stanza=" + shard.Name}, command...)
	cmd := s.repo.CommandAsPostgres(ctx, s.program, args...)
	cmd.Dir = s.repo.Dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("pgbackrest %s: %w: %s", strings.Join(command, " "), err, out)
	}
	return nil
}

// backup makes a full backup of a shard.
func (s *site) backup(ctx context.Context, shard *lab.Shard) error {
	return s.pgbackrest(ctx, shard, "--type=full", "backup")
}

// member makes a member's configuration that of a shard whose backups are the repository's.
// edit, if set, changes it further.
func member(program string, edit func(m *lab.Member, config map[string]any)) lab.DatabaseSoftware {
	return software{program: program, Lictor: lab.Lictor{Edit: func(m *lab.Member, config map[string]any) {
		pgbackrest := command(program, m)
		postgres := config["postgresql"].(map[string]any)
		postgres["parameters"].(map[string]any)["archive_mode"] = "on"
		postgres["parameters"].(map[string]any)["archive_command"] = pgbackrest + " archive-push %p"
		postgres["recovery_conf"] = map[string]any{"restore_command": pgbackrest + ` archive-get %f "%p"`}
		postgres["create_replica_methods"] = []any{"pgbackrest", "basebackup"}
		postgres["pgbackrest"] = map[string]any{
			"command":   pgbackrest + " --log-level-console=detail --delta --type=standby restore",
			"keep_data": true, "no_leader": true, "no_params": true,
		}
		if edit != nil {
			edit(m, config)
		}
	}}}
}

// command is pgBackRest as a member runs it.
func command(program string, m *lab.Member) string {
	return program + " --config=" + filepath.Join(m.Dir, configFile) + " --stanza=" + m.Shard.Name
}

// software is Lictor's agent with pgBackRest's server beside it, by which the repository's
// host comes for the backup.
type software struct {
	lab.Lictor
	program string
}

// Install implements lab.DatabaseSoftware.
func (s software) Install(l *lab.Lab, m *lab.Member) ([]lab.Spec, error) {
	specs, err := s.Lictor.Install(l, m)
	return append([]lab.Spec{serverSpec(l, m.Host, s.program)}, specs...), err
}

// serverName is the process that is pgBackRest's server.
const serverName = "pgbackrest"

func serverSpec(l *lab.Lab, h *lab.Host, program string) lab.Spec {
	return lab.Spec{
		Name: serverName, Path: program, Args: []string{"server", "--config=" + filepath.Join(h.Dir, configFile)}, Unprivileged: true,
		Ready: func(ctx context.Context) error {
			conn, err := l.Dial(ctx, "tcp", fmt.Sprintf("%s:%d", h.Address, serverPort))
			if err != nil {
				return err
			}
			return conn.Close()
		},
	}
}

// findPgBackRest is where pgBackRest is.
func findPgBackRest() (string, error) {
	path, err := exec.LookPath("pgbackrest")
	if err != nil {
		return "", fmt.Errorf("pgbackrest: %w; install the Debian package pgbackrest", err)
	}
	return filepath.Abs(path)
}

// authority signs the hosts' certificates.
type authority struct {
	key         *ecdsa.PrivateKey
	parsed      *x509.Certificate
	certificate []byte // PEM
	serial      int64
}

func newAuthority() (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("key of the authority: %w", err)
	}
	a := &authority{key: key, serial: 1, parsed: &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "backups"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(48 * time.Hour), KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}}
	der, err := x509.CreateCertificate(rand.Reader, a.parsed, a.parsed, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("certificate of the authority: %w", err)
	}
	a.certificate = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return a, nil
}

// issue makes a certificate of a host's, and its key. pgBackRest compares the address that
// it has connected to with the names alone, so it stands there as one.
func (a *authority) issue(name, address string, until time.Time) (cert, key []byte, err error) {
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("key of %s: %w", name, err)
	}
	a.serial++
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(a.serial), Subject: pkix.Name{CommonName: name}, DNSNames: []string{address},
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: until, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.parsed, &own.PublicKey, a.key)
	if err != nil {
		return nil, nil, fmt.Errorf("certificate of %s: %w", name, err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(own)
	if err != nil {
		return nil, nil, fmt.Errorf("key of %s: %w", name, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), nil
}
