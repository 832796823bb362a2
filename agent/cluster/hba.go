package cluster

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// CheckHBA finds lines that PostgreSQL would not take in pg_hba.conf: with one of
// them it goes on with the old file, and does not start any more
// (PostgreSQL's documentation, section 21.1). What only some versions or builds
// know is let pass. path is the list's full name, for the problems.
func CheckHBA(path string, lines []string) []error {
	var errs []error
	continued := ""
	for i, entry := range lines {
		for line := range strings.SplitSeq(entry, "\n") { // an entry may hold several
			line = continued + strings.TrimSuffix(line, "\r")
			if rest, more := strings.CutSuffix(line, `\`); more {
				continued = rest
				continue
			}
			continued = ""
			if rule := hbaProblem(hbaFields(line)); rule != "" {
				errs = append(errs, Problem{Path: fmt.Sprintf("%s[%d]", path, i), Value: fmt.Sprintf("%.100q", line), Rule: rule})
			}
		}
	}
	return errs
}

func hbaProblem(fields []string) string {
	if len(fields) == 0 {
		return ""
	}
	switch kind := fields[0]; kind {
	case "include", "include_if_exists", "include_dir":
		return ""
	case "local":
		if len(fields) < 4 {
			return "must be: local DATABASE USER METHOD"
		}
		return hbaMethod(kind, fields[3], fields[4:])
	case "host", "hostssl", "hostnossl", "hostgssenc", "hostnogssenc":
		if len(fields) < 5 {
			return "must be: " + kind + " DATABASE USER ADDRESS METHOD"
		}
		address, rest := fields[3], fields[4:]
		if strings.Contains(address, ",") {
			return address + " is more than one address: each needs a line of its own"
		}
		if ip, err := netip.ParseAddr(address); err == nil {
			if len(rest) < 2 {
				return "an address needs its mask: " + address + "/32, or the mask as the next field"
			}
			if mask, err := netip.ParseAddr(rest[0]); err == nil && mask.Is4() != ip.Is4() {
				return rest[0] + " is no mask for " + address
			}
			rest = rest[1:]
		} else if _, err := netip.ParsePrefix(address); err != nil && strings.Contains(address, "/") {
			return address + " is not a network, which is an address and the length of its mask: 10.0.0.0/8"
		}
		return hbaMethod(kind, rest[0], rest[1:])
	}
	return "must begin with local, host, hostssl, hostnossl, hostgssenc or hostnogssenc"
}

// hbaOptions are those that any version's methods take (src/backend/libpq/hba.c,
// parse_hba_auth_opt).
func hbaOptions() []string {
	return []string{
		"map", "clientcert", "clientname", "pamservice", "pam_use_hostname", "ldapurl", "ldaptls", "ldapscheme", "ldapserver", "ldapport",
		"ldapbinddn", "ldapbindpasswd", "ldapsearchattribute", "ldapsearchfilter", "ldapbasedn", "ldapprefix", "ldapsuffix", "krb_realm",
		"include_realm", "compat_realm", "upn_username", "radiusservers", "radiusports", "radiussecrets", "radiusidentifiers",
		"issuer", "scope", "validator", "delegate_ident_mapping",
	}
}

// hbaMethod checks a method, which not every kind of connection can have, and its options.
func hbaMethod(kind, method string, options []string) string {
	known := []string{
		"trust", "reject", "scram-sha-256", "md5", "password", "gss", "sspi", "ident", "peer", "ldap", "radius", "cert", "pam", "bsd", "oauth",
	}
	switch {
	case !slices.Contains(known, method):
		return fmt.Sprintf("%q is no method, which is one of %s", method, strings.Join(known, ", "))
	case method == "peer" && kind != "local":
		return "peer is for local connections only"
	case method == "gss" && kind == "local":
		return "gss is not for local connections"
	case method == "cert" && kind != "hostssl":
		return "cert is for hostssl connections only"
	}
	set := map[string]bool{}
	for _, option := range options {
		name, _, named := strings.Cut(option, "=")
		switch {
		case !named:
			return fmt.Sprintf("%q is no option, which is NAME=VALUE", option)
		case !slices.Contains(hbaOptions(), name):
			return fmt.Sprintf("%q is no option that a method has", name)
		case name == "map" && !slices.Contains([]string{"ident", "peer", "gss", "sspi", "cert", "oauth"}, method):
			return "the option map is not for the method " + method
		case name == "clientcert" && kind != "hostssl":
			return "the option clientcert is for hostssl connections only"
		}
		set[name] = true
	}
	switch {
	case method == "ldap" && !set["ldapurl"] && !set["ldapbasedn"] && !set["ldapprefix"] && !set["ldapsuffix"]:
		return "ldap needs ldapbasedn, ldapprefix, ldapsuffix or ldapurl"
	case method == "radius" && (!set["radiusservers"] || !set["radiussecrets"]):
		return "radius needs radiusservers and radiussecrets"
	}
	return ""
}

// hbaFields takes a line apart as PostgreSQL does: at blanks, lists with commas
// being one field, with double quotes, up to a comment.
func hbaFields(line string) []string {
	var fields []string
	var field strings.Builder
	quoted, inField, list := false, false, false
	end := func() {
		if inField && !list {
			fields = append(fields, field.String())
			field.Reset()
			inField = false
		}
	}
	for _, c := range line {
		switch {
		case c == '"':
			quoted, inField, list = !quoted, true, false
		case quoted:
			field.WriteRune(c)
		case c == '#':
			list = false
			end()
			return fields
		case c == ' ' || c == '\t' || c == '\r' || c == '\n':
			end()
		case c == ',':
			field.WriteRune(c)
			inField, list = true, true
		default:
			field.WriteRune(c)
			inField, list = true, false
		}
	}
	list = false
	end()
	return fields
}
