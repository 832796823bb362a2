// Package consul is the agent's side of Consul: sessions, the leader lock,
// beats, takeovers, watches. It is the only package of the agent that talks to
// Consul, and it decides nothing: every write carries the indexes that the
// decision was based on, so that a write based on a stale view fails.
//
// Outcomes are typed. A write that Consul refused because the shard has moved
// on gives ErrConflict. A write whose answer was lost gives ErrUncertain: it may
// still take effect at any later moment, so the caller must read again and must
// neither assume success nor failure.
package consul
