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
		return hbaMethod(fields[3])
	case "host", "hostssl", "hostnossl", "hostgssenc", "hostnogssenc":
		if len(fields) < 5 {
			return "must be: " + kind + " DATABASE USER ADDRESS METHOD"
		}
		address, method := fields[3], fields[4]
		if _, err := netip.ParseAddr(address); err == nil {
			if len(fields) < 6 {
				return "an address needs its mask: " + address + "/32, or the mask as the next field"
			}
			method = fields[5]
		} else if _, err := netip.ParsePrefix(address); err != nil && strings.Contains(address, "/") {
			return address + " is not a network, which is an address and the length of its mask: 10.0.0.0/8"
		}
		return hbaMethod(method)
	}
	return "must begin with local, host, hostssl, hostnossl, hostgssenc or hostnogssenc"
}

func hbaMethod(method string) string {
	known := []string{
		"trust", "reject", "scram-sha-256", "md5", "password", "gss", "sspi", "ident", "peer", "ldap", "radius", "cert", "pam", "bsd", "oauth",
	}
	if slices.Contains(known, method) {
		return ""
	}
	return fmt.Sprintf("%q is no method, which is one of %s", method, strings.Join(known, ", "))
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
