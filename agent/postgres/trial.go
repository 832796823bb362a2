package postgres

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/config"
)

// This file lets PostgreSQL itself judge its configuration before it has to start with
// it: what its own functions refuse (time zones, lists, locales), libraries that are not
// there, certificates that cannot be read, lines of pg_hba.

// trialLimit bounds one trial, which takes some 50 ms.
const trialLimit = 10 * time.Second

// errNoTrial says that PostgreSQL could not be asked, which says nothing of the values.
var errNoTrial = errors.New("PostgreSQL could not be asked what it takes")

// RefusedValues asks the postgres program which values of parameters it does not take,
// each with its reason. It needs no server and no data.
func (p *checker) RefusedValues(ctx context.Context, values map[string]string) (map[string]string, error) {
	ctx, cancel := context.WithTimeout(ctx, trialLimit)
	defer cancel()
	return p.refusedValues(ctx, values)
}

// refusedValues is RefusedValues for who has time: where many values are refused each of them is tried alone.
func (p *checker) refusedValues(ctx context.Context, values map[string]string) (map[string]string, error) {
	refused := map[string]string{}
	if len(values) == 0 {
		return refused, nil
	}
	dir, err := p.trialDir()
	if err != nil {
		return nil, err
	}
	defer p.disk.RemoveAll(dir)
	names := slices.Sorted(maps.Keys(values))
	try := func(some []string) (string, error) { return p.tryValues(ctx, dir, values, some) }
	why, err := try(names)
	if err != nil || why == "" {
		return refused, err
	}
	if err := refusedAlone(names, why, try, refused); err != nil {
		return nil, err
	}
	if len(refused) > 0 {
		return refused, nil
	}
	// Each alone is taken, and all of them are not: two targets of a recovery, for instance.
	var taken []string
	for _, name := range names {
		if why, err = try(append(taken, name)); err != nil {
			return nil, err
		}
		if why != "" {
			refused[name] = why
		} else {
			taken = append(taken, name)
		}
	}
	return refused, nil
}

// refusedAlone finds which of the names, that are refused together and why, are refused each alone. Whatever is refused alone
// is so among others, too: half of them are tried at a time, as each trial starts a process, and who asks has little time.
func refusedAlone(names []string, why string, try func([]string) (why string, err error), refused map[string]string) error {
	if len(names) == 1 {
		refused[names[0]] = why
		return nil
	}
	for _, half := range [][]string{names[:len(names)/2], names[len(names)/2:]} {
		why, err := try(half)
		if err == nil && why != "" {
			err = refusedAlone(half, why, try, refused)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// tryValues has postgres read a configuration file with some of the values. It says what
// it does not take.
func (p *checker) tryValues(ctx context.Context, dir string, values map[string]string, names []string) (why string, err error) {
	var conf strings.Builder
	for _, name := range names {
		fmt.Fprintf(&conf, "%s = %s\n", name, quote(values[name]))
	}
	file := filepath.Join(dir, "postgresql.conf")
	if err := p.writeFile(file, conf.String()); err != nil {
		return "", err
	}
	_, _, err = p.runIn(ctx, dir, nil, "postgres", append([]string{"-C", "port", "-D", dir, "--config_file=" + file}, trialLog()...)...)
	if err == nil {
		return "", nil
	}
	if why := trialProblem(err.Error()); why != "" && ctx.Err() == nil {
		return why, nil
	}
	return "", fmt.Errorf("%w: %w", errNoTrial, err)
}

// trialLog makes the messages such that trialProblem can read them.
func trialLog() []string {
	return []string{
		"--log_line_prefix=", "--lc_messages=C", "--logging_collector=off", "--log_destination=stderr", "--log_min_messages=log", "--log_error_verbosity=default",
	}
}

// trialProblem finds in what postgres has written why it has not started; empty: for no
// reason that the configuration gives.
func trialProblem(out string) string {
	var said []string
	for line := range strings.Lines(out) {
		level, message, found := strings.Cut(strings.TrimSpace(line), ":  ")
		if !found {
			continue
		}
		if i := strings.LastIndexByte(level, ' '); i >= 0 { // what run puts before it
			level = level[i+1:]
		}
		message = strings.TrimSpace(message)
		switch level {
		case "LOG":
			if strings.Contains(message, "invalid list syntax in parameter") { // and nothing of the list is used
				return message
			}
			said = append(said, message)
		case "DETAIL", "CONTEXT", "HINT":
			if n := len(said); n > 0 && level != "HINT" {
				said[n-1] += " (" + message + ")"
			}
		case "FATAL", "PANIC":
			switch {
			case strings.Contains(message, "contains errors"),
				// pg_hba.conf or pg_ident.conf; from PostgreSQL 16 on with its path.
				strings.HasPrefix(message, "could not load pg_"), strings.HasPrefix(message, "could not load /"):
				// What is wrong is said before.
				if said = slices.DeleteFunc(said, trialNoise); len(said) > 0 {
					return strings.Join(said, "; ")
				}
				return message
			case strings.HasPrefix(message, "could not open directory"), strings.HasPrefix(message, "required WAL directory"):
				return "" // it has come to the data, of which there are none
			}
			return trialFatal(out, message)
		}
	}
	return ""
}

// trialFatal adds to a message the detail that follows it.
func trialFatal(out, message string) string {
	_, after, _ := strings.Cut(out, message)
	_, after, _ = strings.Cut(after, "\n")
	if detail, found := strings.CutPrefix(strings.TrimSpace(after), "DETAIL:  "); found {
		detail, _, _ = strings.Cut(detail, "\n")
		return message + " (" + strings.TrimSpace(detail) + ")"
	}
	return message
}

// trialNoise reports whether a message comes from how a trial is run.
func trialNoise(message string) bool {
	for _, start := range []string{"too many background workers", "starting PostgreSQL", "listening on", "could not open directory", "skipping missing"} {
		if strings.HasPrefix(message, start) {
			return true
		}
	}
	return false
}

// trialDir makes an empty directory of PostgreSQL's user.
func (p *checker) trialDir() (string, error) {
	dir, err := p.temporaryDir("lictor-try-")
	if err != nil {
		return "", fmt.Errorf("%w: %w", errNoTrial, err)
	}
	return dir, nil
}

// Changed is what a trial has otherwise than the configuration files.
type Changed struct {
	Parameters map[string]string
	HBA        []string // nil: as it is
	// Shared is the dynamic configuration's parameters, as a primary gets them, of which those that all members have alike
	// count; nil: as they are.
	Shared map[string]any
}

// TryStart finds out whether PostgreSQL would start with its configuration files as they
// are now, but for what is changed: a postmaster is started on a directory that has no
// data, without addresses, workers and much memory. It reads the configuration, loads the
// libraries and certificates and pg_hba as any other, and ends when it looks for WAL. The
// reason why it would not start is returned; empty: none was found. What the data have is compared with the values (start_limits.go).
func (p *checker) TryStart(ctx context.Context, c Changed) (why string, err error) {
	ctx, cancel := context.WithTimeout(ctx, trialLimit)
	defer cancel()
	dir, err := p.trialDir()
	if err != nil {
		return "", err
	}
	defer p.disk.RemoveAll(dir)
	control, err := p.control(ctx)
	if err != nil {
		return "", fmt.Errorf("%w: %w", errNoTrial, err)
	}
	lines, err := p.linesWith(c)
	if err == nil {
		err = p.furnishTrial(dir, c, lines)
	}
	if err != nil {
		return "", fmt.Errorf("%w: %w", errNoTrial, err)
	}
	if why := p.placesRefused(lines); why != "" {
		return why, nil
	}
	p.settings.Lock()
	values := p.commandLineValues(p.runs.role, control)
	p.settings.Unlock()
	if c.Shared != nil {
		values = sharedValues(c.Shared, Primary, control)
	}
	args := argumentsOf(p.confFiles, values)
	for _, refused := range []string{p.refusedByData(ctx, values, lines), p.refusedByHost(ctx, dir, args, lines)} {
		if refused != "" {
			return refused, nil
		}
	}
	args = append(args[2:], "-D", dir, "--data_directory="+dir, "--config_file="+filepath.Join(dir, "postgresql.conf"),
		"--listen_addresses=", "--unix_socket_directories="+dir, "--external_pid_file="+filepath.Join(dir, "pid"),
		"--shared_buffers=1MB", "--huge_pages=off", "--max_worker_processes=0", "--max_locks_per_transaction=10", "--max_prepared_transactions=0")
	if c.HBA != nil {
		args = append(args, "--hba_file="+filepath.Join(dir, "pg_hba.conf"))
	}
	_, _, err = p.runIn(ctx, dir, nil, "postgres", append(args, trialLog()...)...)
	switch {
	case ctx.Err() != nil:
		return "", fmt.Errorf("%w: %w", errNoTrial, err)
	case err == nil:
		return "", nil
	}
	return trialProblem(err.Error()), nil
}

// linesWith are the lines of the configuration files with what is changed, the last of a
// parameter being in force.
func (p *checker) linesWith(c Changed) ([]confSetting, error) {
	var lines []confSetting
	for _, file := range p.ownConfs() {
		more, err := p.readConf(file)
		if err != nil {
			return nil, err
		}
		lines = append(lines, more...)
	}
	for name, value := range c.Parameters {
		lines = append(lines, confSetting{Name: name, Value: value})
	}
	return lines, nil
}

// placesRefused says for which directory PostgreSQL would end that a trial does not try, as
// it has others: that of its sockets, if it can make none, and that of its log.
func (p *checker) placesRefused(lines []confSetting) string {
	sockets, _ := lastOf(lines, "unix_socket_directories")
	dirs := config.SplitDirectories(sockets.Value)
	usable := func(dir string) bool { return strings.HasPrefix(dir, "@") || p.takesFiles(p.fromData(dir)) }
	if len(dirs) > 0 && !slices.ContainsFunc(dirs, usable) {
		return fmt.Sprintf("unix_socket_directories: PostgreSQL's user can make no socket in %s", strings.Join(dirs, ", "))
	}
	collector, _ := lastOf(lines, "logging_collector")
	dir, set := lastOf(lines, "log_directory")
	if collects, err := cluster.ParseBoolean(collector.Value); err != nil || !collects || !set {
		return ""
	}
	at := p.fromData(dir.Value)
	if _, err := p.disk.Stat(at); errors.Is(err, os.ErrNotExist) {
		at = filepath.Dir(at) // it makes the last one itself
	}
	if !p.takesFiles(at) {
		return fmt.Sprintf("log_directory: PostgreSQL's user can write no log in %s", dir.Value)
	}
	return ""
}

// takesFiles reports whether PostgreSQL's user can make files in a directory, by making one.
func (p *checker) takesFiles(dir string) bool {
	return p.disk.Do(func() error {
		f, err := os.CreateTemp(dir, ".lictor-try-")
		if err != nil {
			return err
		}
		return errors.Join(f.Close(), os.Remove(f.Name()))
	}) == nil
}

// fromData is a path of the configuration, which begins in the data directory.
func (p *installation) fromData(path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return p.inData(path)
}

// furnishTrial puts into a directory what a postmaster must find to come as far as to the
// WAL, which is not there.
func (p *checker) furnishTrial(dir string, c Changed, lines []confSetting) error {
	for _, name := range []string{"global", "pg_notify", "pg_stat", "pg_stat_tmp", "pg_dynshmem", "pg_replslot", "pg_logical", "pg_subtrans", "base", "pg_tblspc"} {
		path := filepath.Join(dir, name)
		if err := p.disk.Mkdir(path, 0o700); err != nil {
			return fmt.Errorf("trial: %w", err)
		}
		if err := p.own(path); err != nil {
			return err
		}
	}
	for _, name := range []string{"PG_VERSION", "global/pg_control"} {
		content, err := p.disk.ReadFile(p.inData(name))
		if err != nil {
			return fmt.Errorf("trial: %w", err)
		}
		if err := p.writeFile(filepath.Join(dir, name), string(content)); err != nil {
			return err
		}
	}
	conf := "include " + quote(p.inConf("postgresql.conf")) + "\n"
	if auto, err := p.exists("postgresql.auto.conf"); err != nil {
		return fmt.Errorf("trial: %w", err)
	} else if auto {
		conf += "include " + quote(p.inData("postgresql.auto.conf")) + "\n"
	}
	for _, name := range slices.Sorted(maps.Keys(c.Parameters)) {
		conf += name + " = " + quote(c.Parameters[name]) + "\n"
	}
	if err := p.linkForTrial(dir, lines); err != nil {
		return err
	}
	if c.HBA != nil {
		if err := p.writeFile(filepath.Join(dir, "pg_hba.conf"), strings.Join(c.HBA, "\n")+"\n"); err != nil {
			return err
		}
	}
	return p.writeFile(filepath.Join(dir, "postgresql.conf"), conf)
}

// linkForTrial links the files in the data directory that parameters name by a path that
// begins there.
func (p *checker) linkForTrial(dir string, lines []confSetting) error {
	files := []string{"server.crt", "server.key"}
	for _, line := range lines {
		if slices.Contains([]string{"ssl_cert_file", "ssl_key_file", "ssl_ca_file", "ssl_crl_file", "ssl_crl_dir", "ssl_dh_params_file"}, line.Name) &&
			filepath.IsLocal(line.Value) {
			files = append(files, filepath.Clean(line.Value))
		}
	}
	slices.Sort(files)
	for _, file := range slices.Compact(files) {
		switch found, err := p.exists(file); {
		case err != nil:
			return fmt.Errorf("trial: %w", err)
		case !found:
			continue
		}
		path := filepath.Join(dir, file)
		if err := p.disk.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // PostgreSQL's user goes through it; its parent is closed
			return fmt.Errorf("trial: %w", err)
		}
		if err := p.disk.Do(func() error { return os.Symlink(p.inData(file), path) }); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("trial: %w", err)
		}
	}
	return nil
}

// judged is which values of parameters PostgreSQL takes.
type judged struct {
	taken   map[string]string    // by name: the value that is used
	sure    map[string]string    // by name: the last value that it has said it takes
	refused map[[2]string]string // by name and value: why
	asked   map[string]string    // what PostgreSQL was asked of last
	unasked bool                 // it could not be asked of what is used
}

// judge has PostgreSQL look at the values of the configuration, when they have changed.
// What it refuses is told and not written: the value before it stays in force, as that
// of PostgreSQL would on a reload; but PostgreSQL would not start with the refused one.
func (p *checker) judge(ctx context.Context) {
	defer p.tellRefused()
	p.settings.Lock()
	values, last := p.wantedValues(), p.judged
	p.settings.Unlock()
	if last.taken != nil && !last.unasked && maps.Equal(values, last.asked) {
		return
	}
	// Also what was refused before: it may have been for a value that is another one now.
	refused, err := p.RefusedValues(ctx, values)
	if err != nil {
		p.log.Warn().Err(err).Msg("parameters are used without having been checked")
		refused = map[string]string{}
		for name, value := range values {
			if why, was := last.refused[[2]string{name, value}]; was {
				refused[name] = why
			}
		}
	}
	first := last.taken == nil
	before := map[string]string{}
	if first && len(refused) > 0 {
		before = p.writtenValues(ctx, refused)
	}
	p.settings.Lock()
	defer p.settings.Unlock()
	if p.judged.taken == nil {
		p.judged.taken, p.judged.sure = before, maps.Clone(before)
	}
	p.judged.asked, p.judged.unasked, p.judged.refused = values, err != nil, map[[2]string]string{}
	for name, value := range values {
		why, bad := refused[name]
		if !bad {
			p.judged.taken[name] = value
			if err == nil {
				p.judged.sure[name] = value
			}
			continue
		}
		p.judged.refused[[2]string{name, value}] = why
		// What was used unasked may be this value.
		instead := "it is left out"
		if sure, ok := p.judged.sure[name]; ok {
			p.judged.taken[name] = sure
			instead = sure + " stays in force"
		} else {
			delete(p.judged.taken, name)
		}
		if _, told := last.refused[[2]string{name, value}]; told {
			continue
		}
		p.log.Error().Str("parameter", name).Str("value", value).Str("reason", why).Str("instead", instead).
			Msg("PostgreSQL refuses the value of a parameter; it is not used")
	}
}

// tellRefused keeps for Refused which of the wanted values are refused.
func (p *checker) tellRefused() {
	p.settings.Lock()
	defer p.settings.Unlock()
	var all []string
	for name, value := range p.wantedValues() {
		if why, bad := p.judged.refused[[2]string{name, value}]; bad {
			all = append(all, cluster.Problem{Path: name, Value: value, Rule: why}.Error())
		}
	}
	slices.Sort(all)
	p.refused.Store(&all)
}

// Unasked reports whether values are used of which PostgreSQL could not be asked, for want of time or room:
// it is to be asked again, by writing the configuration anew.
func (p *checker) Unasked() bool {
	p.settings.Lock()
	defer p.settings.Unlock()
	return p.judged.unasked
}

// Refused are the values of the configuration that PostgreSQL refuses and that are not
// used, each with its reason. It does not wait.
func (p *Instance) Refused() []string {
	if p == nil {
		return nil
	}
	if all := p.refused.Load(); all != nil {
		return *all
	}
	return nil
}

// writtenValues are what an earlier run has written for parameters, where PostgreSQL
// takes that.
func (p *checker) writtenValues(ctx context.Context, names map[string]string) map[string]string {
	content, err := p.disk.ReadFile(p.inConf("postgresql.conf"))
	if err != nil || !strings.HasPrefix(string(content), confHead) {
		return map[string]string{}
	}
	written := map[string]string{}
	for line := range strings.Lines(string(content)) {
		if name, value, ok := confLine(line); ok {
			if _, asked := names[name]; asked {
				written[name] = value
			}
		}
	}
	refused, err := p.RefusedValues(ctx, written)
	if err != nil {
		return map[string]string{}
	}
	maps.DeleteFunc(written, func(name, _ string) bool { _, bad := refused[name]; return bad })
	return written
}

// usable takes out of the parameters what PostgreSQL refuses, or has not been asked of.
func (p *confFiles) usable(values map[string]string) map[string]string {
	if p.judged.taken == nil {
		return values
	}
	for name := range values {
		if taken, ok := p.judged.taken[name]; ok {
			values[name] = taken
		} else {
			delete(values, name)
		}
	}
	return values
}

// CheckFile has the postgres program judge the parameters of a file: its own, and those
// that it would begin a shard with. It needs no data directory and leaves nothing.
// unasked says why the program could not judge; warnings are of what is allowed with this
// version of PostgreSQL.
func CheckFile(ctx context.Context, local config.Postgres, dcs map[string]any) (warnings []cluster.Warning, problems, unasked error) {
	p := assemble(&installation{dataDir: filepath.Clean(local.DataDir), configDir: configDirOf(local)}, nil)
	p.local.Store(&local)
	out, err := p.run(ctx, "postgres", "--version")
	if err != nil {
		return nil, nil, err
	}
	if p.major, err = parseMajor(out); err != nil {
		return nil, nil, err
	}
	warnings = append(openToServers(local, p.major), unprovedServers(local)...)
	shared, _ := dcs["postgresql"].(map[string]any)
	dynamic, _ := shared["parameters"].(map[string]any)
	ofReplicas, _ := shared["recovery_conf"].(map[string]any)
	wanted := map[string]map[string]string{
		"postgresql.recovery_conf": recoveryOf(local.RecoveryConf), "bootstrap.dcs.postgresql.recovery_conf": recoveryOf(ofReplicas),
	}
	for path, parameters := range map[string]map[string]any{"postgresql.parameters": local.Parameters, "bootstrap.dcs.postgresql.parameters": dynamic} {
		wanted[path] = map[string]string{}
		for name, value := range parameters {
			if value != nil && checkOwn(name, value) == "" {
				wanted[path][name] = cluster.ParameterText(value)
			}
		}
	}
	var errs []error
	for _, path := range slices.Sorted(maps.Keys(wanted)) {
		values := wanted[path]
		maps.DeleteFunc(values, func(name, _ string) bool { return !supported(strings.ToLower(name), p.major) })
		for _, name := range slices.Sorted(maps.Keys(values)) {
			if isCutOff(strings.ToLower(name), values[name], p.major) {
				warnings = append(warnings, cluster.Warning{Path: path + "." + name, Text: cutOffText(p.major)})
			}
		}
		refused, err := p.RefusedValues(ctx, values)
		if err != nil {
			return warnings, nil, err
		}
		for _, name := range slices.Sorted(maps.Keys(refused)) {
			errs = append(errs, cluster.Problem{Path: path + "." + name, Value: values[name], Rule: "PostgreSQL says: " + refused[name]})
		}
	}
	return warnings, errors.Join(errs...), nil
}
