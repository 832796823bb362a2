package cluster

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// The rules of names and hosts, as problems state them. Names become parts of Consul's
// keys, of files (pgbouncer.ini, haproxy.cfg), of command lines and of lines on a
// terminal; hosts become parts of connection strings and URLs. What keeps to its rule
// means nothing but itself in all of them.
const (
	NameRule      = "must consist of letters, digits and any of . _ - : +, and begin with a letter, a digit or _"
	NamespaceRule = "must be one name or several with / between them, and a name " + NameRule
	HostRule      = "must be a host name, or an IP address without a zone"
)

// maxPart is how many bytes a name may have: a key of Consul has several, and at most 512
// bytes.
const maxPart = 128

var (
	errName      = errors.New(NameRule)
	errNameLong  = fmt.Errorf("must not be longer than %d bytes", maxPart)
	errNamespace = errors.New(NamespaceRule)
	errHost      = errors.New(HostRule)
)

// CheckName returns an error that states the rule when name cannot be that of a shard or
// a member.
func CheckName(name string) error {
	if len(name) > maxPart {
		return errNameLong
	}
	first, _ := utf8.DecodeRuneInString(name)
	if !isNameStart(first) || !utf8.ValidString(name) || strings.ContainsFunc(name, func(r rune) bool {
		return !isNameStart(r) && !strings.ContainsRune(".-:+", r)
	}) {
		return errName
	}
	return nil
}

func isNameStart(r rune) bool {
	return r == '_' || r != utf8.RuneError && (unicode.IsLetter(r) || unicode.IsDigit(r))
}

// CheckCredentials returns an error that states the rule when a user name and a password cannot be those of Basic
// authentication (RFC 7617: the first colon ends the name).
func CheckCredentials(username, password string) error {
	switch {
	case (username == "") != (password == ""):
		return errHalfCredentials
	case strings.Contains(username, ":"):
		return errColon
	}
	return nil
}

var (
	errHalfCredentials = errors.New("username and password must be set together")
	errColon           = errors.New("username must not have a colon: Basic authentication ends it there, and nobody could log in")
)

// CheckNamespace returns an error that states the rule when namespace cannot be the first
// part of keys: names with slashes between them.
func CheckNamespace(namespace string) error {
	for part := range strings.SplitSeq(strings.Trim(namespace, "/"), "/") {
		switch err := CheckName(part); {
		case errors.Is(err, errNameLong):
			return err
		case err != nil:
			return errNamespace
		}
	}
	return nil
}

// CheckHost returns an error that states the rule when host is neither an IP address
// nor a host name. A zone (fe80::1%eth0) means something on one host alone.
func CheckHost(host string) error {
	if strings.Contains(host, ":") {
		address, err := netip.ParseAddr(host)
		if err != nil || address.Zone() != "" {
			return errHost
		}
		return nil
	}
	if host == "" || len(host) > 253 {
		return errHost
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(host, "."), ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || strings.ContainsFunc(label, func(r rune) bool { return !isHostRune(r) }) {
			return errHost
		}
	}
	return nil
}

// isHostRune accepts the underscore, too: hosts of container platforms have it.
func isHostRune(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_'
}

// CheckPort returns an error that states the rule when port is none that can be connected to.
func CheckPort(port int) error {
	if port < 1 || port > 65535 {
		return errors.New("must be a port, from 1 to 65535")
	}
	return nil
}

// CheckAPIURL returns an error that states the rule when text is not the URL of a REST
// API: scheme, host, port and a plain path, nothing else.
func CheckAPIURL(text string) error {
	_, _, err := splitURL(text, "http", "https")
	return err
}

// splitURL returns the host of a URL and its port, 0 when it has none.
func splitURL(text string, schemes ...string) (host string, port int, err error) {
	u, err := url.Parse(text)
	if err != nil {
		return "", 0, errors.New("is not a URL")
	}
	if !slices.Contains(schemes, u.Scheme) {
		return "", 0, fmt.Errorf("must begin with %s://", schemes[0])
	}
	if err := CheckHost(u.Hostname()); err != nil {
		return "", 0, fmt.Errorf("its host %w", err)
	}
	if u.Port() != "" || strings.HasSuffix(u.Host, ":") {
		port, err = strconv.Atoi(u.Port())
		if err == nil {
			err = CheckPort(port)
		}
		if err != nil {
			return "", 0, errors.New("its port must be from 1 to 65535")
		}
	}
	// The path of a conn_url is the name of a database, which nobody uses.
	plain := u.Path == "" || u.Path == "/" || schemes[0] != "http" || CheckNamespace(u.EscapedPath()) == nil
	if u.User != nil || u.Opaque != "" || strings.ContainsAny(text, `?#\`) || !plain {
		return "", 0, errors.New("must have a host, a port and a plain path, nothing else")
	}
	return u.Hostname(), port, nil
}
