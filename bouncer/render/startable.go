package render

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/lictor-ha/lictor/bouncer/config"
	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

// checkStart tells why PgBouncer could not start with the settings of a file. RELOAD does
// not: what it cannot use it leaves as it was, and much of it is read at the start only.
func (k *Checker) checkStart(file pgbouncer.File) error {
	errs := k.checkValues(file.Settings)
	errs = append(errs, checkListens(file.Settings), checkAuthType(file.Settings, k.version))
	err := checkClientTLS(file.Settings)
	if err == nil && k.config.IsBeside() {
		err = checkTLSFiles(file.Settings)
	}
	errs = append(errs, err, checkTLSWords(file.Settings, "client", k.version), checkTLSWords(file.Settings, "server", k.version))
	return errors.Join(errs...)
}

// checkValues tells which values PgBouncer does not read. They are the same from file to file.
func (k *Checker) checkValues(settings map[string]string) (errs []error) {
	if k.values != nil && maps.Equal(settings, k.values) {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		if err := config.CheckSettingValue(name, settings[name]); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	if len(errs) == 0 {
		k.values = settings
	}
	return errs
}

// checkListens has PgBouncer listen somewhere. Not set, unix_socket_dir is /tmp.
func checkListens(settings map[string]string) error {
	address, set := settings["listen_addr"]
	socket, inDirectory := settings["unix_socket_dir"]
	if set && strings.Trim(address, ", ") == "" && inDirectory && socket == "" {
		return errors.New("listen_addr and unix_socket_dir are empty: there is nowhere to listen on")
	}
	return nil
}

// checkAuthType has the values that PgBouncer of version lacks.
func checkAuthType(settings map[string]string, version pgbouncer.Version) error {
	if strings.EqualFold(settings["auth_type"], "ldap") && version != (pgbouncer.Version{}) && !version.AtLeast(1, 25) {
		return fmt.Errorf("auth_type: PgBouncer has ldap from 1.25 on, here it is %s", version)
	}
	return nil
}

// checkTLSWords has the words of libtls and OpenSSL, which PgBouncer reads when it encrypts
// connections of that side.
func checkTLSWords(settings map[string]string, side string, version pgbouncer.Version) error {
	if mode := strings.ToLower(settings[side+"_tls_sslmode"]); mode == "" || mode == "disable" {
		return nil
	}
	name := side + "_tls_protocols"
	for word := range strings.FieldsFuncSeq(settings[name], func(r rune) bool { return r == ',' || r == ':' }) {
		word = strings.ToLower(strings.TrimPrefix(strings.TrimSpace(word), "!"))
		if !slices.Contains([]string{"tlsv1", "tlsv1.0", "tlsv1.1", "tlsv1.2", "tlsv1.3", "all", "legacy", "default", "secure"}, word) {
			return fmt.Errorf("%s: %q is none of tlsv1.0, tlsv1.1, tlsv1.2, tlsv1.3, all, secure, legacy", name, word)
		}
	}
	name = side + "_tls_dheparams"
	if word := settings[name]; word != "" && !slices.Contains([]string{"none", "auto", "legacy"}, strings.ToLower(word)) {
		return fmt.Errorf("%s: %q must be one of none, auto, legacy", name, word)
	} else if strings.EqualFold(word, "legacy") && version.AtLeast(1, 19) {
		return fmt.Errorf("%s: legacy is gone from newer versions of PgBouncer, here it is %s; auto is a better one", name, version)
	}
	name = side + "_tls_ecdhcurve"
	if word := settings[name]; word != "" && !strings.EqualFold(word, "none") && !strings.EqualFold(word, "auto") && !isCurve(word) {
		return fmt.Errorf("%s: %q must be none, auto or the name of a curve such as prime256v1", name, word)
	}
	name = side + "_tls_ciphers"
	if err := checkCiphers(settings[name], version); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// isCurve reports whether OpenSSL may have a curve of that name for ECDH. X25519 is none of these.
func isCurve(name string) bool {
	common := strings.Fields("prime192v1 prime192v2 prime192v3 prime239v1 prime239v2 prime239v3 prime256v1 secp160k1 secp160r1 secp160r2 secp192k1 secp224k1 secp224r1 secp256k1 secp384r1 secp521r1")
	return slices.Contains(common, name) || slices.ContainsFunc([]string{"secp1", "sect", "brainpoolP", "c2", "wap-"}, func(family string) bool { return strings.HasPrefix(name, family) })
}

// checkCiphers refuses what can name no cipher at all. OpenSSL skips the words of a list that it
// does not know, and fails when nothing is left.
func checkCiphers(list string, version pgbouncer.Version) error {
	whole := []string{"", "default", "secure", "normal", "fast"}
	if !version.AtLeast(1, 19) {
		whole = append(whole, "all", "compat", "legacy", "insecure")
	}
	if slices.Contains(whole, strings.ToLower(list)) {
		return nil
	}
	known := strings.Fields("AES CHACHA CAMELLIA ARIA DES RC4 IDEA SEED NULL HIGH MEDIUM LOW ALL DEFAULT SUITEB RSA DH PSK SRP ECDSA GOST SHA MD5 CBC GCM CCM SSLv TLSv")
	for word := range strings.FieldsFuncSeq(list, func(r rune) bool { return strings.ContainsRune(":, ;", r) }) {
		if strings.HasPrefix(word, "!") || strings.HasPrefix(word, "-") || strings.HasPrefix(word, "TLS_") {
			continue
		}
		if slices.ContainsFunc(known, func(part string) bool { return strings.Contains(word, part) }) {
			return nil
		}
	}
	return fmt.Errorf("%q names no cipher: it is fast, normal or secure, or a list such as HIGH:!aNULL; those of TLS 1.3 have a setting of their own", list)
}

// checkClientTLS has the rules of PgBouncer's sbuf_tls_setup.
func checkClientTLS(settings map[string]string) error {
	mode := strings.ToLower(settings["client_tls_sslmode"])
	certificate, key, authorities := settings["client_tls_cert_file"], settings["client_tls_key_file"], settings["client_tls_ca_file"]
	switch {
	case strings.EqualFold(settings["auth_type"], "cert") && (mode != "verify-full" || authorities == ""):
		return errors.New("auth_type cert needs client_tls_sslmode verify-full and client_tls_ca_file")
	case mode == "" || mode == "disable":
		return nil
	case certificate == "" || key == "":
		return fmt.Errorf("client_tls_sslmode %s needs client_tls_key_file and client_tls_cert_file", mode)
	case mode == "verify-full" && authorities == "":
		return fmt.Errorf("client_tls_sslmode %s needs client_tls_ca_file", mode)
	}
	return nil
}

// checkTLSFiles looks at the files that TLS to clients needs, as far as this process may
// read them.
func checkTLSFiles(settings map[string]string) error {
	if mode := strings.ToLower(settings["client_tls_sslmode"]); mode == "" || mode == "disable" {
		return nil // they are not read
	}
	for _, name := range []string{"client_tls_ca_file", "client_tls_cert_file", "client_tls_key_file"} {
		if path := settings[name]; path != "" {
			if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	_, err := tls.LoadX509KeyPair(settings["client_tls_cert_file"], settings["client_tls_key_file"])
	if err != nil && !errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("client_tls_cert_file with client_tls_key_file: %w", err)
	}
	return nil
}
