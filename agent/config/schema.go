package config

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/lictor-ha/lictor/agent/cluster"
	"github.com/lictor-ha/lictor/agent/cluster/settings"
)

// schema says what the agent takes besides the fields of Config: Patroni's old
// names, keys that Patroni knows and Lictor does not use, and the environment
// variables that do not follow from the fields.
func schema() settings.Schema {
	const (
		onlyConsul  = "Lictor keeps the state of a shard in Consul alone: remove this section and configure consul"
		onlyDynamic = "it is a setting of the whole shard: put it under bootstrap.dcs, or change the key config with patronictl edit-config"
		onlyStderr  = "the log goes to stderr, for systemd's journal or the container's log"
		noKerberos  = "Lictor logs in with passwords and certificates"
	)
	s := settings.Schema{
		Patroni:       patroniVariables(),
		Variables:     map[string]string{},
		UserVariables: "bootstrap.users",
		Renamed: map[string]string{
			"bootstrap.post_init":              "bootstrap.post_bootstrap",
			"postgresql.create_replica_method": "postgresql.create_replica_methods",
		},
		Refused: map[string]string{
			"citus": "Citus clusters have other Consul keys and are not supported: remove this section",
		},
		RefusedVariables: map[string]string{"CITUS_": "Citus clusters are not supported: remove this variable"},
		Unused: map[string]string{
			"thread_pool_size":               "Lictor has no pool of threads",
			"thread_stack_size":              "Lictor has no pool of threads",
			"restapi.thread_pool_size":       "Lictor has no pool of threads",
			"log.traceback_level":            "errors are logged in words",
			"log.max_queue_size":             "a megabyte of lines may wait to be written",
			"log.static_fields":              "lines have the fields of what they tell",
			"log.deduplicate_heartbeat_logs": "what is not new is not logged again",
			"postgresql.krbsrvname":          noKerberos,
			"postgresql.config_base_name":    "the configuration file is postgresql.conf",
			"postgresql.rewind":              "pg_rewind gets its options from Lictor",
		},
		Adjust: map[string]settings.Adjuster{
			"postgresql.pg_ctl_timeout":      settings.WholeSeconds,
			"watchdog.safety_margin":         settings.WholeSeconds,
			"log.mode":                       fileMode,
			"log.file_size":                  atLeast(1<<20, "bytes"),
			"log.file_num":                   atLeast(1, "file"),
			"lictor.script_timeout":          someSeconds,
			"lictor.backup.every":            someSeconds,
			"lictor.backup.max_age":          someHours,
			"lictor.backup.max_verified_age": someHours,
			"lictor.backup.max_restore":      someHours,
			"lictor.fence.demote_before":     settings.Seconds,
			"lictor.fence.kill_before":       settings.Seconds,
			"postgresql.pg_hba":              settings.Lines,
			"postgresql.pg_ident":            settings.Lines,
			"bootstrap.pg_hba":               settings.Lines,
			"log.format":                     logFormat,
		},
	}
	for _, store := range []string{"etcd", "etcd3", "zookeeper", "exhibitor", "kubernetes", "raft"} {
		s.Refused[store] = onlyConsul
		s.RefusedVariables[strings.ToUpper(store)+"_"] = "Lictor keeps the state of a shard in Consul alone: remove this variable"
	}
	for _, key := range []string{
		"ttl", "loop_wait", "retry_timeout", "maximum_lag_on_failover", "maximum_lag_on_syncnode",
		"max_timelines_history", "check_timeline", "primary_start_timeout", "master_start_timeout",
		"primary_stop_timeout", "master_stop_timeout", "synchronous_mode", "synchronous_mode_strict",
		"synchronous_node_count", "failsafe_mode", "rebuild", "maintenance_windows", "standby_cluster", "other_site", "slots", "ignore_slots",
	} {
		s.Unused[key] = onlyDynamic
	}
	for _, key := range cluster.RoleKeys() {
		s.Unused["postgresql."+key] = strings.TrimPrefix(cluster.RoleKeysText, "has no effect so far: ")
	}
	// Lictor's own section needs no second LICTOR_.
	for _, key := range []string{"routes_prefix", "state_dir", "os_user", "compat", "fence.demote_before", "fence.kill_before", "script_timeout", "pass_environment", "backup.stanza", "backup.command", "backup.every", "backup.max_age", "backup.max_verified_age", "backup.max_restore"} {
		s.Variables[variable(key)] = "lictor." + key
	}
	return s
}

func variable(path string) string { return strings.ToUpper(strings.ReplaceAll(path, ".", "_")) }

// patroniVariables are the environment variables that Patroni reads, without
// PATRONI_, with the settings that they set.
func patroniVariables() map[string]string {
	names := map[string]string{
		"NAME": "name", "SCOPE": "scope", "NAMESPACE": "namespace",
		"RESTAPI_USERNAME": "restapi.authentication.username", "RESTAPI_PASSWORD": "restapi.authentication.password",
		"RESTAPI_PASSWORD_FILE": "restapi.authentication.password_file", "CTL_PASSWORD_FILE": "ctl.authentication.password_file",
		"CTL_USERNAME": "ctl.authentication.username", "CTL_PASSWORD": "ctl.authentication.password",
		// Names of Patroni 1.
		"LOGLEVEL": "log.level", "LOGFORMAT": "log.format", "LOG_DATEFMT": "log.dateformat",
	}
	for section, keys := range map[string]string{
		"restapi": "listen connect_address certfile keyfile keyfile_password cafile ciphers verify_client " +
			"http_extra_headers https_extra_headers allowlist allowlist_include_members request_queue_size server_tokens",
		"ctl":        "insecure cacert certfile keyfile keyfile_password",
		"postgresql": "listen connect_address proxy_address config_dir data_dir pgpass bin_dir",
		"log":        "level format dateformat dir type loggers",
		"consul": "host hosts port scheme url token cacert cert key verify dc consistency checks register_service " +
			"service_tags service_check_interval service_check_tls_server_name",
	} {
		for key := range strings.FieldsSeq(keys) {
			names[variable(section+"."+key)] = section + "." + key
		}
	}
	for _, role := range []string{"superuser", "replication", "rewind"} {
		for key := range strings.FieldsSeq("username password password_file sslmode sslcert sslkey sslpassword sslrootcert sslcrl sslcrldir sslnegotiation gssencmode channel_binding require_auth") {
			names[variable(role+"."+key)] = "postgresql.authentication." + role + "." + key
		}
	}
	for _, program := range programs() {
		names["POSTGRESQL_BIN_"+strings.ToUpper(program)] = "postgresql.bin_name." + program
	}
	return names
}

// programs are PostgreSQL's, whose names postgresql.bin_name may change.
func programs() []string {
	return []string{"postgres", "pg_ctl", "initdb", "pg_controldata", "pg_basebackup", "pg_isready", "pg_rewind"}
}

// atLeast refuses less, and so what would mean the default without saying so.
func atLeast(least int, of string) settings.Adjuster {
	return func(value any) (any, string, error) {
		n, err := strconv.Atoi(fmt.Sprint(value))
		if err != nil || n < least {
			return nil, "", fmt.Errorf("must be at least %d %s", least, of)
		}
		return n, "", nil
	}
}

// fileMode reads permissions in octal, which YAML has read already where they begin with 0.
func fileMode(value any) (any, string, error) {
	mode, isNumber := value.(int)
	if text, ok := value.(string); ok {
		n, err := strconv.ParseUint(text, 8, 32)
		mode, isNumber = int(n), err == nil
	}
	if !isNumber || mode&^0o777 != 0 || mode&0o600 != 0o600 {
		return nil, "", errors.New("must be permissions in octal by which their owner reads and writes, like 0640")
	}
	return mode, "", nil
}

// someSeconds refuses what would mean the default without saying so.
func someSeconds(value any) (any, string, error) {
	n, note, err := settings.WholeSeconds(value)
	if err == nil && n == 0 {
		err = errors.New("must be at least 1 s")
	}
	return n, note, err
}

// mostHours are ten years: what is more is a mistake, and would not fit into a time.Duration.
const mostHours = 10 * 365 * 24

// someHours is someSeconds for hours.
func someHours(value any) (any, string, error) {
	n, err := strconv.Atoi(fmt.Sprint(value))
	if err != nil || n < 1 || n > mostHours {
		return nil, "", fmt.Errorf("must be a number of hours, at least 1 and at most %d", mostHours)
	}
	return n, "", nil
}

// logFormat takes the list of fields that Patroni 4 has for JSON.
func logFormat(value any) (any, string, error) {
	if _, list := value.([]any); list {
		return "json", "Lictor's JSON lines have fields of their own; the list is not followed", nil
	}
	return value, "", nil
}
