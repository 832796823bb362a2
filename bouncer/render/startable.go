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
	err := checkClientTLS(file.Settings)
	if err == nil && k.config.IsBeside() {
		err = checkTLSFiles(file.Settings)
	}
	errs = append(errs, err, checkTLSWords(file.Settings, "client"), checkTLSWords(file.Settings, "server"))
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

// checkTLSWords has the words of libtls, which PgBouncer reads when it encrypts connections of
// that side.
func checkTLSWords(settings map[string]string, side string) error {
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
	}
	return nil
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
