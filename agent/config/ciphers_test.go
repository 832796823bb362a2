package config

import (
	"crypto/tls"
	"slices"
	"strings"
	"testing"
)

// What `openssl ciphers -v STRING` (3.0) lists of those that can be offered.
func TestParseCiphers(t *testing.T) {
	const gcm = "ECDHE-ECDSA-AES256-GCM-SHA384 ECDHE-ECDSA-AES128-GCM-SHA256 ECDHE-RSA-AES256-GCM-SHA384 ECDHE-RSA-AES128-GCM-SHA256"
	for _, test := range []struct {
		text, offered, note, problem string
	}{
		{text: ""},
		{text: " : ", offered: ""},
		{text: "ECDHE-RSA-AES128-GCM-SHA256", offered: "ECDHE-RSA-AES128-GCM-SHA256"},
		{text: "ECDHE+AESGCM", offered: gcm},
		{text: "ALL:!SHA:!CHACHA20", offered: gcm},
		{text: "HIGH,-AES,CHACHA20", offered: "ECDHE-ECDSA-CHACHA20-POLY1305 ECDHE-RSA-CHACHA20-POLY1305"},
		{text: "!CHACHA20:ECDHE+aRSA:!TLSv1 !SSLv3:!MD5", offered: "ECDHE-RSA-AES256-GCM-SHA384 ECDHE-RSA-AES128-GCM-SHA256"},
		{text: "!aRSA:ECDHE+TLSv1:@STRENGTH", offered: "ECDHE-ECDSA-AES256-SHA ECDHE-ECDSA-AES128-SHA"},
		{text: "-AES:AESGCM+aECDSA+AES256", offered: "ECDHE-ECDSA-AES256-GCM-SHA384"},
		{
			// The one of Patroni's documentation.
			text:    "ECDHE-RSA-AES256-GCM-SHA384:DHE-RSA-AES256-GCM-SHA384:ECDHE-RSA-AES128-GCM-SHA256:DHE-RSA-AES128-GCM-SHA256:!SSLv1:!SSLv2:!SSLv3:!TLSv1:!TLSv1.1",
			offered: "ECDHE-RSA-AES256-GCM-SHA384 ECDHE-RSA-AES128-GCM-SHA256",
			note:    "DHE-RSA-AES256-GCM-SHA384 is not offered",
		},
		{text: "AESGCM:@SECLEVEL=2", offered: gcm, note: "@SECLEVEL=2 has no effect"},
		{text: "AESGCM:TLS_AES_256_GCM_SHA384", offered: gcm, note: "TLS_AES_256_GCM_SHA384 has no effect"},
		{text: "AESGCM:!AESBCB", offered: gcm, note: "!AESBCB has no effect"},
		{text: "AESGCM:!RC4:!DHE-RSA-AES128-SHA:!kRSA", offered: gcm},
		{text: "AES256-SHA", problem: "leaves no cipher for TLS 1.2; there are ECDHE-ECDSA-AES256-GCM-SHA384, "},
		{text: "ALL:!ALL:AESGCM", problem: "leaves no cipher"},
		{text: "+AESGCM", problem: "leaves no cipher"},
		{text: "!AESGCM", problem: "leaves no cipher"},
		{text: "nonsense", problem: "leaves no cipher"},
		{text: "AESGCM:@SUITEB", problem: `"@SUITEB" is not understood`},
		{text: "AESGCM:!", problem: `"!" stands without a cipher`},
	} {
		ids, notes, err := ParseCiphers(test.text)
		if test.problem != "" {
			if err == nil || !strings.Contains(err.Error(), test.problem) {
				t.Errorf("%q: error %v, want %q", test.text, err, test.problem)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", test.text, err)
			continue
		}
		var offered []string
		for _, c := range ciphers() {
			if slices.Contains(ids, c.id) {
				offered = append(offered, c.name)
			}
		}
		if want := strings.Fields(test.offered); !slices.Equal(offered, want) {
			t.Errorf("%q: offered %q, want %q", test.text, offered, want)
		}
		if all := strings.Join(notes, "\n"); test.note == "" && all != "" || !strings.Contains(all, test.note) {
			t.Errorf("%q: notes %q, want %q", test.text, all, test.note)
		}
	}
}

// The table is complete, and no name stands for another cipher.
func TestCiphersAreThoseOfTheLibrary(t *testing.T) {
	for _, suite := range tls.CipherSuites() {
		if !slices.Contains(suite.SupportedVersions, tls.VersionTLS12) {
			continue
		}
		i := slices.IndexFunc(ciphers(), func(c cipher) bool { return c.id == suite.ID })
		if i < 0 {
			t.Errorf("%s is missing", suite.Name)
			continue
		}
		// TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 is ECDHE-RSA-AES128-GCM-SHA256 there.
		want := strings.NewReplacer("TLS_", "", "WITH_", "", "AES_", "AES", "_CBC", "", "POLY1305_SHA256", "POLY1305", "_", "-").Replace(suite.Name)
		if got := ciphers()[i].name; got != want {
			t.Errorf("%s is named %s, want %s", suite.Name, got, want)
		}
	}
}
