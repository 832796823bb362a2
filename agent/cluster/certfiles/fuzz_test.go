package certfiles

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzCertificates: whatever stands in the files, reading them ends with a certificate or
// with an error that has nothing of the key in it.
func FuzzCertificates(f *testing.F) {
	for _, seed := range []string{
		"", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "-----BEGIN PRIVATE KEY-----\nSECRETSECRET\n-----END PRIVATE KEY-----\n",
		"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
		"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,0\n\nAAAA\n-----END RSA PRIVATE KEY-----\n", "-----BEGIN", "\x00\xff",
	} {
		f.Add(seed, seed, seed)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, cert, key, ca string) {
		p := Paths{Cert: filepath.Join(dir, "cert"), Key: filepath.Join(dir, "key"), CA: filepath.Join(dir, "ca")}
		for path, text := range map[string]string{p.Cert: cert, p.Key: key, p.CA: ca} {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		_, err := New(p, func(error) {})
		if err == nil {
			return
		}
		for line := range strings.SplitSeq(key, "\n") {
			if len(line) > 40 && !strings.HasPrefix(line, "-----") && !strings.Contains(cert, line) && !strings.Contains(ca, line) && strings.Contains(err.Error(), line) {
				t.Errorf("the error tells the key: %v", err)
			}
		}
	})
}
