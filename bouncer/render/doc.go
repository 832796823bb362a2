// Package render makes PgBouncer's file of what is known of the shards. It knows what PgBouncer can read and start with; whether it does is not asked here.
//
//	view.go      what is known -> shards, and what templates see of them
//	template.go  -> text, through a consul-template template
//	body.go      the text of each shard, kept until it changes
//	template_data.go, consul_data.go, template_clients.go
//	             what templates ask Consul and Vault for
//	member_ports.go the ports of members, for HAProxy
//	check.go     is the text complete and does it say what is known? (pure)
//	startable.go could PgBouncer start with it?
//	missing.go   what PgBouncer has of shards whose route is not known (pure)
//	unconfirmed.go which is newer, the state file or what is installed (pure)
//	fallback.go  the last good settings and template with the newest routes (pure)
package render
