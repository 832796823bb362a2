// Package placement plans which members lead: all leaders away from one host, or
// the leaders of all shards spread evenly over hosts and zones.
//
//	placement.go  what is known of shards, hosts and zones, and the two plans
//	spread.go     the assignment: even over hosts, then over zones, by fewest moves
//
// It is pure: shards go in, a plan comes out. Who may lead, and why a shard stays as it
// is, says whoever has read the shards; the commands carry plans out.
package placement
