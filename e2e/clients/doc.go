// Package clients drives a shard with the clients that people have: Debian's
// patronictl, HAProxy with Patroni's health checks, psql with several hosts. What
// they print is looked at, and whether it has really happened.
package clients
