// Package bouncer keeps a PgBouncer pointed at the primaries of all shards.
//
// It learns of routes (cluster.Route) from a blocking query on Consul and
// from pokes over HTTP, holds the clients of a shard that has no primary
// (PAUSE), and applies what has changed: render, check, install, RELOAD, read
// back, RESUME. Its rooms, in the order in which a change passes them; none of them
// knows of this package, nor do routes, render, install and pooler of each other:
//
//	config  bouncer.yml
//	consul  the addresses of Consul
//	routes  what Consul says: routes, handovers, Patroni's keys
//	render  what is known -> text
//	install text -> file
//	pooler  PgBouncer: RELOAD, PAUSE, its connections, its primaries
//
// The files here:
//
//	bouncer.go   all parts of a bouncer; start and end
//	process.go   PgBouncers that share a port, as one
//	reconciler.go, reconciler_hold.go
//	             when to apply and close connections;
//	             when clients are held and released
//	config_syncer.go
//	             fsync, and what the next failure needs: after RELOAD
//	operator_pause.go
//	             what operators want held or released
//	status.go    how every shard stands
//	missing.go   shards whose route is not known keep what PgBouncer has
//	answer.go    what leaders of handovers are told
//	witness.go   what a candidate is told that misses a leader
//	presence.go  tells Consul what has been applied
//	state.go     what a restart must know
//	files.go     further files: users, HAProxy's
//	listener.go  the address of its HTTP API, kept from one configuration to the next
//	http.go, http_agent.go
//	             tells the load balancer, operators and agents; the fleet page, which others make
//	metrics.go, pooler_metrics.go
//	             the same as numbers; PgBouncer's own
//	manager.go   tells whoever runs the bouncer, systemd for instance
//	control.go, overview.go, dryrun.go
//	             what the commands ask
//	control_login.go
//	             whom they tell the password
//
// PgBouncer goes on with what it has when the bouncer ends, unless the bouncer was
// told to run it.
package bouncer
