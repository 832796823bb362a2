// Package bouncer tests the bouncer end to end: real agents, PostgreSQL, Consul,
// PgBouncer and a load balancer on hosts of their own.
package bouncer
