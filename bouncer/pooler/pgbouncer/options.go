package pgbouncer

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/agnivade/levenshtein"
)

// An Option is one key=value of a line in [databases] or [users].
type Option struct {
	Name, Value string
}

// FormatOptions writes options as they follow the = of a line, each with a blank before it.
func FormatOptions(options []Option) string {
	var out strings.Builder
	for _, o := range options {
		out.WriteString(" " + o.Name + "=" + QuoteValue(o.Value))
	}
	return out.String()
}

// optionRule is what PgBouncer (loader.c) makes of an option; without a check it has none
// of that name.
type optionRule struct {
	// since is the first version that has it; zero: all from 1.18 on.
	since Version
	// earlier is its name before that, if it had one.
	earlier string
	check   func(value string) error
}

// OptionSection is a section of pgbouncer.ini whose lines are made of options.
type OptionSection string

const (
	DatabaseOptions OptionSection = "databases"
	UserOptions     OptionSection = "users"
)

// Names lists the options of a section in alphabetical order.
func (s OptionSection) Names() []string {
	if s == UserOptions {
		return strings.Fields(`client_idle_timeout idle_transaction_timeout max_user_client_connections max_user_connections pool_mode pool_size
query_timeout query_wait_timeout reserve_pool_size transaction_timeout`)
	}
	return strings.Fields(`application_name auth_dbname auth_query auth_user client_encoding connect_query datestyle dbname host load_balance_hosts
max_db_client_connections max_db_connections min_pool_size password pool_mode pool_size port query_wait_timeout reserve_pool_size
server_lifetime timezone user`)
}

// rule is that of one option; the versions are those of loader.c's history.
func (s OptionSection) rule(name string) optionRule {
	if s == UserOptions {
		switch name {
		case "pool_mode":
			return optionRule{check: oneOf("session", "transaction", "statement")}
		case "max_user_connections":
			return optionRule{check: wholeFrom(0)}
		case "pool_size":
			return optionRule{since: Version{1, 23}, check: wholeFrom(1)}
		case "transaction_timeout":
			return optionRule{since: Version{1, 25}, check: wholeFrom(0)}
		case "query_wait_timeout":
			return optionRule{since: Version{1, 26}, check: wholeFrom(0)}
		case "client_idle_timeout", "idle_transaction_timeout", "max_user_client_connections", "query_timeout", "reserve_pool_size":
			return optionRule{since: Version{1, 24}, check: wholeFrom(0)}
		}
		return optionRule{}
	}
	switch name {
	case "pool_size":
		return optionRule{check: wholeFrom(1)}
	case "min_pool_size", "max_db_connections":
		return optionRule{check: wholeFrom(0)}
	case "reserve_pool_size":
		return optionRule{since: Version{1, 24}, earlier: "reserve_pool", check: wholeFrom(0)}
	case "max_db_client_connections":
		return optionRule{since: Version{1, 24}, check: wholeFrom(0)}
	case "server_lifetime":
		return optionRule{since: Version{1, 23}, check: wholeFrom(0)}
	case "query_wait_timeout":
		return optionRule{since: Version{1, 26}, check: wholeFrom(0)}
	case "pool_mode":
		return optionRule{check: oneOf("session", "transaction", "statement")}
	case "load_balance_hosts":
		return optionRule{since: Version{1, 24}, check: oneOf("disable", "round-robin")}
	case "auth_query":
		return optionRule{since: Version{1, 22}, check: oneLine}
	case "auth_dbname":
		return optionRule{since: Version{1, 19}, check: databaseName}
	case "dbname":
		return optionRule{check: databaseName}
	case "user", "auth_user":
		return optionRule{check: userName}
	case "port":
		return optionRule{check: func(value string) error {
			if n, err := strconv.Atoi(value); err != nil || n < 1 || n > 65535 {
				return errors.New("must be a port, from 1 to 65535")
			}
			return nil
		}}
	case "host", "password", "application_name", "client_encoding", "connect_query", "datestyle", "timezone":
		return optionRule{check: oneLine}
	}
	return optionRule{}
}

// Check reports why an option cannot stand in this section, nothing of a password told.
// PgBouncer takes what is no number for 0, and does not read its file any further after
// other values that it does not understand.
func (s OptionSection) Check(name, value string) error {
	rule := s.rule(name)
	if rule.check == nil {
		return s.unknown(name)
	}
	err := rule.check(value)
	switch {
	case value == "":
		return errors.New("must not be empty: PgBouncer refuses that")
	case err == nil || name == "password":
		return err
	}
	return fmt.Errorf("%q %w", value, err)
}

// unknown says that the section has no such option, and what may be meant.
func (s OptionSection) unknown(name string) error {
	best, distance := "", 4
	for _, k := range append(s.Names(), "reserve_pool") {
		if d := levenshtein.ComputeDistance(name, k); d < distance {
			best, distance = k, d
		}
	}
	if best == "reserve_pool" {
		best = "reserve_pool_size" // which PgBouncer calls so before 1.24
	}
	if best == "" {
		return fmt.Errorf("PgBouncer's section [%s] has no such option", s)
	}
	return fmt.Errorf("PgBouncer's section [%s] has no such option, did you mean %s?", s, best)
}

// Written is the name by which PgBouncer of version v knows an option. It is false when
// it does not: one whose section has such a line does not read its file any further.
func (s OptionSection) Written(name string, v Version) (string, bool) {
	rule := s.rule(name)
	if rule.check != nil && v.AtLeast(rule.since[0], rule.since[1]) {
		return name, true
	}
	return rule.earlier, rule.earlier != ""
}

// Since is the first version that has an option; empty: all have it, or none.
func (s OptionSection) Since(name string) string {
	since := s.rule(name).since
	if since == (Version{}) {
		return ""
	}
	return fmt.Sprintf("%d.%d", since[0], since[1])
}

// wholeFrom is a number as C's atoi reads it, which also PgBouncer's times here are.
func wholeFrom(least int) func(string) error {
	return func(value string) error {
		if n, err := strconv.ParseInt(value, 10, 32); err != nil || n < int64(least) {
			return fmt.Errorf("must be a whole number from %d on", least)
		}
		return nil
	}
}

func oneOf(words ...string) func(string) error {
	return func(value string) error {
		if !slices.ContainsFunc(words, func(w string) bool { return strings.EqualFold(w, value) }) {
			return fmt.Errorf("must be one of %s", strings.Join(words, ", "))
		}
		return nil
	}
}

func oneLine(value string) error {
	if !utf8.ValidString(value) || strings.ContainsFunc(value, unicode.IsControl) {
		return errors.New("must be one line without control characters")
	}
	return nil
}

// maxDatabaseName is the longest name of a database in PostgreSQL.
const maxDatabaseName = 63

func databaseName(value string) error {
	switch {
	case len(value) > maxDatabaseName:
		return fmt.Errorf("must not be longer than %d bytes", maxDatabaseName)
	case value == "pgbouncer":
		return errors.New("is PgBouncer's own console")
	}
	return oneLine(value)
}

func userName(value string) error {
	if len(value) > maxUserName {
		return fmt.Errorf("must not be longer than %d bytes", maxUserName)
	}
	return oneLine(value)
}
