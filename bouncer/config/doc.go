// Package config is a bouncer's own configuration (bouncer.yml), and what comes of it for
// PgBouncer. It asks nobody but the host's files and names.
//
//	config.go         the settings, their defaults, how the console is reached
//	shard.go          a shard and its databases
//	process.go        several processes of PgBouncer on one port
//	validate.go       what must hold
//	refused.go        shards with which something is wrong, beside the others
//	last_good.go      what is followed while the file cannot be
//	listen.go         how the listener is protected
//	defaults.go       PgBouncer's settings: the bouncer's own and the operator's
//	setting_values.go what PgBouncer takes as their values
//	options.go        options of its databases and users
package config
