// Package cluster is the contract between everything that takes part in a
// shard: the Consul key layout, the JSON values under those keys, and the
// dynamic configuration. Agents, bouncers and commands read it; it does no I/O, but that of the time
// zones of maintenance windows (Windows), which nobody asks for in the agent's loop or in agent/ha.
//
// Values that Patroni also reads or writes keep Patroni's format byte for byte
// (design 3, design 4), so that patronictl and Patroni members can
// share a shard with Lictor.
package cluster
