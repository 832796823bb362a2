package postgres

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
)

// This file checks settings of PostgreSQL before they are written anywhere: one
// that it does not take would keep it from starting the next time, on every
// member.

// checker finds out what PostgreSQL takes.
type checker struct {
	*installation
	*confFiles
	*session
	refused atomic.Pointer[[]string] // for Refused
}

// CheckChange checks what differs between two dynamic configurations: the
// parameters by name, type and limits of the PostgreSQL that runs here, and the
// lines of pg_hba. What stays as it was is not looked at. Each problem names the
// setting and the rule. While PostgreSQL does not answer, the rules that need it
// are left out.
func (p *checker) CheckChange(ctx context.Context, before, after cluster.Dynamic) error {
	var errs []error
	if !slices.Equal(before.Postgres.PgHBA, after.Postgres.PgHBA) {
		errs = append(errs, cluster.CheckHBA("postgresql.pg_hba", after.Postgres.PgHBA)...)
	}
	changed := map[string]string{}
	for name, value := range after.Postgres.Parameters {
		old, was := before.Postgres.Parameters[name]
		if value == nil || was && old != nil && cluster.ParameterText(old) == cluster.ParameterText(value) {
			continue
		}
		if problem := checkOwn(name, value); problem != "" {
			errs = append(errs, cluster.Problem{Path: parameterPath(name), Value: cluster.ParameterText(value), Rule: problem})
			continue
		}
		changed[strings.ToLower(name)] = inForce(name, cluster.ParameterText(value))
	}
	recovery := recoveryOf(after.Postgres.RecoveryConf)
	was := recoveryOf(before.Postgres.RecoveryConf)
	maps.DeleteFunc(recovery, func(name, value string) bool { old, set := was[name]; return set && old == value })
	names := append(slices.Collect(maps.Keys(changed)), slices.Collect(maps.Keys(recovery))...)
	if known, err := p.knownParameters(ctx, names); err == nil {
		errs = append(errs, p.checkAll(parametersSection, changed, known)...)
		errs = append(errs, p.checkAll(recoverySection, recovery, known)...)
	}
	errs = append(errs, p.checkLibraries(ctx, changed)...)
	if len(errs) == 0 {
		errs = p.tryChange(ctx, before, after, changed, recovery)
	}
	return errors.Join(errs...)
}

// The sections of the configuration that have parameters.
const (
	parametersSection = "postgresql.parameters."
	recoverySection   = "postgresql.recovery_conf."
)

func (p *checker) checkAll(section string, values map[string]string, known map[string]knownParameter) (errs []error) {
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if problem := p.checkParameter(name, values[name], known); problem != "" {
			errs = append(errs, cluster.Problem{Path: section + name, Value: values[name], Rule: problem})
		}
	}
	return errs
}

// checkLibraries has PostgreSQL load the libraries that every session is to load from now
// on: with one that it cannot load nobody could log in any more, nor a replica stream.
func (p *checker) checkLibraries(ctx context.Context, changed map[string]string) (errs []error) {
	for parameter, folder := range map[string]string{"session_preload_libraries": "", "local_preload_libraries": "$libdir/plugins/"} {
		for _, library := range config.SplitDirectories(changed[parameter]) {
			file := library
			if !strings.Contains(library, "/") {
				file = folder + library
			}
			if why := p.loads(ctx, file); why != "" {
				errs = append(errs, cluster.Problem{Path: parameterPath(parameter), Value: library, Rule: "nobody could log in any more: PostgreSQL says: " + why})
			}
		}
	}
	return errs
}

// loads says why a session of PostgreSQL's cannot load a library; empty: it can, or it
// cannot be asked.
func (p *checker) loads(ctx context.Context, file string) string {
	conn, err := p.dedicated(ctx)
	if err != nil {
		return ""
	}
	defer hangUpOn(conn)
	var refused *pgconn.PgError
	if _, err := conn.Exec(ctx, "LOAD "+literal(file)); errors.As(err, &refused) {
		return refused.Message
	}
	return ""
}

// inForce is the value that PostgreSQL gets of a parameter that all members have alike:
// of some there are older words.
func inForce(name, value string) string {
	for _, c := range cluster.SharedParameters() {
		if c.Name == strings.ToLower(name) {
			if accepted, ok := c.Accept(value); ok {
				return accepted
			}
		}
	}
	return value
}

// tryChange lets PostgreSQL judge a change of which nothing else is known to be wrong.
func (p *checker) tryChange(ctx context.Context, before, after cluster.Dynamic, changed, recovery map[string]string) (errs []error) {
	var c Changed
	if !slices.Equal(before.Postgres.PgHBA, after.Postgres.PgHBA) && len(after.Postgres.PgHBA) > 0 {
		c.HBA = after.Postgres.PgHBA
	}
	for _, values := range []map[string]string{changed, recovery} {
		maps.DeleteFunc(values, func(name, _ string) bool { return !supported(name, p.major) })
	}
	for section, values := range map[string]map[string]string{parametersSection: changed, recoverySection: recovery} {
		refused, err := p.RefusedValues(ctx, values)
		if err != nil {
			p.log.Warn().Err(err).Msg("a change of parameters is taken without having been checked")
			return nil
		}
		for _, name := range slices.Sorted(maps.Keys(refused)) {
			errs = append(errs, cluster.Problem{Path: section + name, Value: values[name], Rule: "PostgreSQL says: " + refused[name]})
		}
	}
	was, becomes := sharedValues(before.Postgres.Parameters, Primary, Control{}), sharedValues(after.Postgres.Parameters, Primary, Control{})
	removed := p.removed(before.Postgres.Parameters, after.Postgres.Parameters)
	if len(errs) > 0 || len(changed) == 0 && len(removed) == 0 && c.HBA == nil && maps.Equal(was, becomes) {
		return errs
	}
	c.Parameters = maps.Clone(removed)
	maps.Copy(c.Parameters, changed)
	c.Shared = orNone(after.Postgres.Parameters)
	maps.DeleteFunc(c.Parameters, func(name, _ string) bool { return isRecovery(name) })
	why, err := p.TryStart(ctx, c)
	if err != nil || why == "" {
		return nil // where there are no data it cannot be tried
	}
	if was, err := p.TryStart(ctx, Changed{Shared: orNone(before.Postgres.Parameters)}); err != nil || was == why {
		return nil // the change is not the reason, and may be one of several that mend it
	}
	path := "postgresql.parameters"
	if len(c.Parameters) == 0 {
		path = "postgresql.pg_hba"
	}
	return []error{cluster.Problem{Path: path, Rule: "PostgreSQL would not start with this: " + why}}
}

// removed are the parameters that a change takes out of the dynamic configuration, with the values of the agent's own file, which are in force then.
// Others get PostgreSQL's defaults, or what base.conf says.
func (p *checker) removed(before, after map[string]any) map[string]string {
	set := func(all map[string]any, name string) any {
		for given, value := range all {
			if strings.EqualFold(given, name) {
				return value
			}
		}
		return nil
	}
	left := map[string]string{}
	for name, value := range before {
		if value == nil || set(after, name) != nil {
			continue
		}
		if own := set(p.local.Load().Parameters, name); own != nil {
			left[strings.ToLower(name)] = cluster.ParameterText(own)
		}
	}
	return left
}

// orNone makes an empty map of none, which would say that nothing is changed.
func orNone(parameters map[string]any) map[string]any {
	if parameters == nil {
		return map[string]any{}
	}
	return parameters
}

// BindsStandbys tells whether a standby must not have less of a parameter than its
// primary (PostgreSQL's documentation, section 27.4.4).
func BindsStandbys(parameter string) bool {
	return slices.Contains([]string{
		"max_connections", "max_prepared_transactions", "max_locks_per_transaction", "max_worker_processes", "max_wal_senders",
	}, parameter)
}

func parameterPath(name string) string { return parametersSection + name }

// checkOwn applies the rules for names, and for the parameters that the members of
// a shard must have alike.
func checkOwn(name string, value any) string {
	if rule := cluster.CheckParameter(name, value); rule != "" {
		return rule
	}
	if slices.Contains(cluster.AddressParameters(), strings.ToLower(name)) {
		return "is each member's own: it follows from postgresql.listen and scope of the agent's file"
	}
	for _, c := range cluster.SharedParameters() {
		if c.Name != strings.ToLower(name) {
			continue
		}
		if _, ok := c.Accept(cluster.ParameterText(value)); !ok {
			return c.Rule
		}
	}
	return ""
}

// knownParameter is a line of pg_settings.
type knownParameter struct {
	Type        string
	Unit        string
	Least, Most string
	Choices     []string
	Context     string
}

// knownParameters asks the server.
func (p *checker) knownParameters(ctx context.Context, names []string) (map[string]knownParameter, error) {
	conn, err := p.dedicated(ctx)
	if err != nil {
		return nil, err
	}
	defer hangUpOn(conn)
	rows, err := conn.Query(ctx, `SELECT lower(name), vartype, COALESCE(unit, ''), COALESCE(min_val, ''), COALESCE(max_val, ''),
		COALESCE(enumvals, '{}'), context FROM pg_settings WHERE lower(name) = ANY($1)`, names)
	if err != nil {
		return nil, fmt.Errorf("pg_settings: %w", err)
	}
	known := map[string]knownParameter{}
	var name string
	var k knownParameter
	if _, err := pgx.ForEachRow(rows, []any{&name, &k.Type, &k.Unit, &k.Least, &k.Most, &k.Choices, &k.Context}, func() error {
		k.Choices = slices.Clone(k.Choices)
		known[name] = k
		return nil
	}); err != nil {
		return nil, fmt.Errorf("pg_settings: %w", err)
	}
	return known, nil
}

func (p *checker) checkParameter(name, value string, all map[string]knownParameter) string {
	k, found := all[name]
	switch {
	case !found && strings.Contains(name, "."):
		return "" // an extension's
	case !found && !supported(name, p.major):
		return "" // another version's: members may run several, and it is left out here
	case !found && isRecovery(name):
		return ""
	case !found:
		return fmt.Sprintf("PostgreSQL %d has no such parameter", p.major)
	case k.Context == "internal":
		return "cannot be changed"
	case isCutOff(name, value, p.major):
		return cutOffText(p.major)
	}
	switch k.Type {
	case "bool":
		if !isBool(value) {
			return "must be on or off"
		}
	case "enum":
		if !slices.ContainsFunc(k.Choices, func(c string) bool { return strings.EqualFold(c, value) }) && !isHiddenChoice(value, k.Choices) {
			return "must be one of " + strings.Join(k.Choices, ", ")
		}
	case "integer", "real":
		return checkNumber(value, k)
	}
	return ""
}

// isHiddenChoice reports whether an enumeration that has on or off takes another whole
// word for these. pg_settings does not list them (src/backend/utils/misc/guc_tables.c).
func isHiddenChoice(value string, choices []string) bool {
	return (slices.Contains(choices, "on") || slices.Contains(choices, "off")) &&
		slices.Contains([]string{"true", "false", "yes", "no", "1", "0"}, strings.ToLower(value))
}

// isBool takes the words for a truth value, also shortened, as PostgreSQL does.
func isBool(value string) bool {
	value = strings.ToLower(value)
	if value == "1" || value == "0" || value == "on" || value == "of" || value == "off" {
		return true
	}
	for _, word := range []string{"true", "false", "yes", "no"} {
		if value != "" && strings.HasPrefix(word, value) {
			return true
		}
	}
	return false
}

var number = regexp.MustCompile(`^([+-]?(?:0[xX][0-9a-fA-F]+|[0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?|[0-9]+\.))\s*([A-Za-z]*)$`)

// checkNumber reads a number with one of PostgreSQL's units and compares it with
// the limits (PostgreSQL's documentation, section 20.1.1).
func checkNumber(value string, k knownParameter) string {
	m := number.FindStringSubmatch(strings.TrimSpace(value))
	if m == nil {
		return "must be a number"
	}
	n, err := strconv.ParseFloat(m[1], 64)
	if whole, errInt := strconv.ParseInt(m[1], 0, 64); errInt == nil && k.Type == "integer" {
		n = float64(whole) // also octal, as the mode of a file
	} else if err != nil {
		return "must be a number"
	}
	if unit := m[2]; unit != "" {
		base, sizes := baseUnit(k.Unit)
		if base == 0 {
			return "must be a number without a unit"
		}
		factor, ok := sizes[unit]
		if !ok {
			return "its unit must be one of " + strings.Join(slices.SortedFunc(maps.Keys(sizes), func(a, b string) int {
				return int(math.Copysign(1, sizes[a]-sizes[b]))
			}), ", ")
		}
		n = n * factor / base
	}
	if k.Type == "integer" {
		n = math.RoundToEven(n)
	}
	least, errLeast := strconv.ParseFloat(k.Least, 64)
	most, errMost := strconv.ParseFloat(k.Most, 64)
	if errLeast == nil && n < least || errMost == nil && n > most {
		unit := ""
		if k.Unit != "" {
			unit = " (in units of " + k.Unit + ")"
		}
		return fmt.Sprintf("must be from %s to %s%s", k.Least, k.Most, unit)
	}
	return ""
}

// baseUnit is how much one unit of pg_settings is, and what others are, in bytes
// or microseconds; 0: the parameter has no unit.
func baseUnit(unit string) (float64, map[string]float64) {
	memory := map[string]float64{"B": 1, "kB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}
	duration := map[string]float64{"us": 1, "ms": 1e3, "s": 1e6, "min": 60e6, "h": 3600e6, "d": 86400e6}
	count := strings.TrimRight(unit, "kMGTBusminhd")
	factor := 1.0
	if n, err := strconv.ParseFloat(count, 64); err == nil {
		factor = n
	}
	suffix := strings.TrimPrefix(unit, count)
	if size, ok := memory[suffix]; ok {
		return factor * size, memory
	}
	if size, ok := duration[suffix]; ok {
		return factor * size, duration
	}
	return 0, nil
}

// ConfigProblems are what the running PostgreSQL does not take of its
// configuration files, as it says: with these it would not start again.
func (p *checker) ConfigProblems(ctx context.Context) ([]string, error) {
	conn, err := p.dedicated(ctx)
	if err != nil {
		return nil, err
	}
	defer hangUpOn(conn)
	query := `SELECT format('%s line %s: %s%s', sourcefile, sourceline, COALESCE(name || ' = ' || quote_literal(setting) || ': ', ''), error)
		FROM pg_file_settings f WHERE error IS NOT NULL
		AND NOT EXISTS (SELECT FROM pg_settings s WHERE lower(s.name) = lower(f.name) AND s.pending_restart) -- it is good, for the next start
		UNION ALL SELECT format('%s line %s: %s', current_setting('hba_file'), line_number, error) FROM pg_hba_file_rules WHERE error IS NOT NULL`
	if p.major >= 15 {
		query += ` UNION ALL SELECT format('%s line %s: %s', current_setting('ident_file'), line_number, error) FROM pg_ident_file_mappings WHERE error IS NOT NULL`
	}
	rows, err := conn.Query(ctx, query)
	if err != nil {
		return nil, fmt.Errorf("checking the configuration files: %w", err)
	}
	problems, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("checking the configuration files: %w", err)
	}
	return problems, nil
}
