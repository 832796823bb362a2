package config

import (
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// This file reads restapi.ciphers, a cipher string of OpenSSL (openssl-ciphers(1)),
// which Patroni hands to SSLContext.set_ciphers. As there, it is about TLS 1.2; TLS
// 1.3 has ciphers of its own. Older versions are not spoken, and only ciphers with
// forward secrecy are offered, so a string can narrow the choice and never weaken it.

// cipher is one that can be offered, with the words of OpenSSL that select it.
type cipher struct {
	name  string // OpenSSL's
	id    uint16
	words []string
}

// ciphers are all of crypto/tls for TLS 1.2 that it counts as secure.
func ciphers() []cipher {
	var all []cipher
	for _, auth := range []string{"ECDSA", "RSA"} {
		common := []string{"ALL", "DEFAULT", "HIGH", "ECDHE", "EECDH", "kECDHE", "kEECDH", "ECDH", "a" + auth}
		if auth == "ECDSA" {
			common = append(common, "ECDSA")
		}
		for _, c := range []struct {
			name    string
			ecdsa   uint16
			rsa     uint16
			aliases []string
		}{
			{
				"AES256-GCM-SHA384", tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
				[]string{"AES", "AES256", "AESGCM", "TLSv1.2", "FIPS"},
			},
			{
				"AES128-GCM-SHA256", tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
				[]string{"AES", "AES128", "AESGCM", "TLSv1.2", "FIPS"},
			},
			{
				"CHACHA20-POLY1305", tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
				[]string{"CHACHA20", "TLSv1.2"},
			},
			{
				"AES256-SHA", tls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA, tls.TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA,
				[]string{"AES", "AES256", "SHA", "SHA1", "TLSv1", "TLSv1.0", "FIPS"},
			},
			{
				"AES128-SHA", tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA, tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA,
				[]string{"AES", "AES128", "SHA", "SHA1", "TLSv1", "TLSv1.0", "FIPS"},
			},
		} {
			one := cipher{name: "ECDHE-" + auth + "-" + c.name, id: c.rsa, words: slices.Concat(common, c.aliases)}
			if auth == "ECDSA" {
				one.id = c.ecdsa
			}
			all = append(all, one)
		}
	}
	return all
}

// foreign are words of OpenSSL for what is never offered: without encryption or
// authentication, without forward secrecy, or simply not in crypto/tls.
const foreign = " COMPLEMENTOFDEFAULT COMPLEMENTOFALL MEDIUM LOW EXP EXPORT EXPORT40 EXPORT56 eNULL NULL aNULL ADH AECDH kRSA RSA kDHE kEDH DH DHE EDH kDH kDHr kDHd kECDHr kECDHe " +
	"aDH aECDH aDSS DSS DES 3DES RC4 RC2 IDEA SEED MD5 CAMELLIA CAMELLIA128 CAMELLIA256 ARIA ARIA128 ARIA256 ARIAGCM AESCCM AESCCM8 SHA256 SHA384 " +
	"SSLv1 SSLv2 SSLv3 TLSv1.1 TLSv1.3 PSK kPSK kECDHEPSK kDHEPSK kRSAPSK aPSK SRP kSRP aSRP GOST aGOST aGOST01 kGOST GOST94 GOST89MAC CBC "

// has reports whether all words of a term select the cipher.
func (c cipher) has(term string) bool {
	for word := range strings.SplitSeq(term, "+") {
		if word != c.name && !slices.Contains(c.words, word) {
			return false
		}
	}
	return true
}

// ParseCiphers reads a cipher string: which of crypto/tls's ciphers for TLS 1.2 to
// offer, nil for an empty string (the library's own choice). The notes say what in
// it has no effect. It is an error if nothing is left to offer, or if the string
// is not understood. Order means nothing: the library prefers the faster one of
// those that both sides know.
func ParseCiphers(text string) (ids []uint16, notes []string, err error) {
	terms := strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(":,; ", r) })
	if len(terms) == 0 {
		return nil, nil, nil
	}
	all := ciphers()
	chosen, banned := map[uint16]bool{}, map[uint16]bool{}
	note := func(format string, args ...any) { notes = append(notes, fmt.Sprintf(format, args...)) }
	for _, term := range terms {
		sign := ""
		if strings.ContainsRune("!-+", rune(term[0])) {
			sign, term = term[:1], term[1:]
		}
		switch {
		case term == "":
			return nil, nil, errors.New(`"` + sign + `" stands without a cipher`)
		case sign == "" && term == "@STRENGTH":
			continue // order means nothing
		case sign == "" && strings.HasPrefix(term, "@SECLEVEL="):
			note("%s has no effect: only ciphers of 128 bits and more with forward secrecy are offered", term)
			continue
		case strings.HasPrefix(term, "@"):
			return nil, nil, fmt.Errorf("%q is not understood: of OpenSSL's commands only @STRENGTH and @SECLEVEL=N are", term)
		}
		matched := false
		for _, c := range all {
			if !c.has(term) {
				continue
			}
			matched = true
			switch sign {
			case "":
				chosen[c.id] = true
			case "!":
				banned[c.id] = true
				delete(chosen, c.id)
			case "-":
				delete(chosen, c.id)
			}
		}
		switch {
		case matched:
		case sign == "" && strings.HasPrefix(term, "TLS_"):
			note("%s has no effect: a cipher string is about TLS 1.2; the ciphers of TLS 1.3 are always offered", term)
		case sign == "":
			note("%s is not offered: there is no such cipher with forward secrecy in Go's TLS", term)
		case !known(term):
			note("%s%s has no effect: it selects nothing that is offered; see openssl-ciphers(1) for how it is spelled", sign, term)
		}
	}
	for _, c := range all {
		if chosen[c.id] && !banned[c.id] {
			ids = append(ids, c.id)
		}
	}
	if len(ids) == 0 {
		return nil, notes, errors.New("leaves no cipher for TLS 1.2; there are " + strings.Join(names(all), ", "))
	}
	return ids, notes, nil
}

// known reports whether OpenSSL has all words of a term, as far as that can be told.
func known(term string) bool {
	for word := range strings.SplitSeq(term, "+") {
		own := slices.ContainsFunc(ciphers(), func(c cipher) bool { return c.has(word) })
		// With hyphens it is the name of one cipher.
		if !own && !strings.Contains(word, "-") && !strings.Contains(foreign, " "+word+" ") {
			return false
		}
	}
	return true
}

func names(all []cipher) []string {
	out := make([]string, len(all))
	for i, c := range all {
		out[i] = c.name
	}
	return out
}
