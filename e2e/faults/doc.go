// Package faults is the failure lab: it breaks a whole Lictor installation in
// every way that has a name (All), under clients, and judges what they saw.
//
// A Site is the installation: three database hosts, each with a Consul server,
// the agent and PostgreSQL on a volume of its own, two PgBouncer hosts, a load
// balancer, and the clients; hosts are network namespaces, so a lost host is
// silent. A Runner plays rounds on it: wait until the shard is whole, let the
// clients work undisturbed for a while, inject a fault, hold it, take it back,
// wait until the shard is whole again, judge.
//
// What is judged, in each round (Round):
//   - two members accepted commits at once: a Witness inside every database host
//     writes straight to its own PostgreSQL (overlap.go says what proves it);
//   - acknowledged rows are gone;
//   - the histories of a register and of append-only lists, written and read
//     through the load balancer, are not linearizable (synchronous mode);
//   - the leader changed, writes stopped for longer, or the shard took longer to
//     become whole, than the fault may cost (Expect).
//
// `make lab` runs it from the command line, the package's test a fixed short
// selection.
package faults
