// Package bouncer keeps a PgBouncer pointed at the primaries of all shards.
//
// It learns of routes (cluster.Route) from one blocking query on Consul and
// from pokes over HTTP, holds the clients of a shard that has no primary
// (PAUSE), and applies what has changed: render, check, install, RELOAD, read
// back, RESUME. The parts, in the order in which a change passes them:
//
//	watch.go     Consul -> answers; decides nothing
//	book.go      answers -> what is known of each shard; refuses what is wrong,
//	             forgets nothing by accident (pure)
//	render.go    what is known -> text, through a consul-template template
//	check.go     is the text complete and does it say what is known? (pure); could
//	             PgBouncer start with it (startable.go, setting_values.go)?
//	install.go   text -> file, atomically; the last good file
//	conductor.go when to hold, apply, close connections and resume
//	apply.go     RELOAD, read back
//	fallback.go  the last good settings and template with the newest routes
//	missing.go   what PgBouncer has of shards whose route is not known
//	hold.go      PAUSE; conductor_hold.go: when, RESUME and the dead man's timer
//	deadman.go   the same timer for a conductor that hangs
//	sentinel.go  finds a Consul address that is silent
//	suspect.go   finds a primary that does not answer before Consul can tell,
//	             from PgBouncer's pools and, by ended.go, the kernel; probe.go asks it
//	sockets.go   connections to a deposed primary are closed
//	presence.go  tells Consul what has been applied
//	http.go      tells the load balancer and operators; front.go knocks as clients do
//	manager.go   tells whoever runs the bouncer, systemd for instance
//
// PgBouncer goes on with what it has when the bouncer ends, unless the bouncer was
// told to run it (supervise.go).
package bouncer
