package cluster

import (
	"strings"
	"testing"
)

func TestCheckHBA(t *testing.T) {
	for line, rule := range map[string]string{
		"":                                    "",
		"# comment":                           "",
		"local all all peer":                  "",
		"local all all peer map=x # comment":  "",
		"host all all all scram-sha-256":      "",
		"host all all 10.0.0.0/8 md5":         "",
		"host all all 10.0.0.1 255.0.0.0 md5": "",
		"host all all 10.0.0.0 255.0.0 md5":   "", // PostgreSQL reads it as the C library does
		"host all all ::1/128 trust":          "",
		"host all all .example.org md5":       "",
		"host all all samenet md5":            "",
		`host "my db",other +group,"a b" 127.0.0.1/32 scram-sha-256`:  "",
		"host a, b all 127.0.0.1/32 md5":                              "",
		"hostssl all all 0.0.0.0/0 cert clientcert=verify-full":       "",
		`host all all all ldap ldapserver=x ldapprefix="cn=, dc=org"`: "",
		"include_if_exists more.conf":                                 "",

		"hostt all all all md5":     "must begin with",
		"host all all md5":          "must be: host",
		"local all peer":            "must be: local",
		"host all all 10.0.0.1 md5": "needs its mask",
		"host all all 10.0.0/8 md5": "is not a network",
		"host all all all scram":    `"scram" is no method`,
		"local all all # peer":      "must be: local",

		"host all all all peer":                               "for local connections only",
		"hostnossl all all all cert":                          "for hostssl connections only",
		"local all all gss":                                   "not for local",
		"host all all all md5 foo":                            "NAME=VALUE",
		"host all all all reject foo=bar":                     "no option that a method has",
		"host all all all md5 map=x":                          "not for the method md5",
		"host all all all scram-sha-256 clientcert=verify-ca": "clientcert is for hostssl",
		"host all all all ldap ldapserver=x":                  "ldap needs",
		"host all all all radius radiusservers=x":             "radius needs",
		"host all all 10.0.0.0 ffff:: md5":                    "no mask",
		"host all all a,b md5":                                "more than one address",

		"local all all peer\nhost all all all scram": `"scram" is no method`,
		"host all all 10.0.0.0/64 x":                 "is not a network",
	} {
		errs := CheckHBA("postgresql.pg_hba", []string{"local all all peer", line})
		switch {
		case rule == "" && len(errs) > 0:
			t.Errorf("%s: %v", line, errs)
		case rule != "" && (len(errs) != 1 || !strings.HasPrefix(errs[0].Error(), "postgresql.pg_hba[1]: ") || !strings.Contains(errs[0].Error(), rule)):
			t.Errorf("%s: %v, want %s", line, errs, rule)
		}
	}
	if errs := CheckHBA("x", []string{`host all all \`, "all md5"}); len(errs) > 0 {
		t.Errorf("a continued line: %v", errs)
	}
}
