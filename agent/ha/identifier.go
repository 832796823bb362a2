package ha

import "fmt"

// This file is about data of another cluster than the shard's (design 5.31). Positions and timelines of
// two clusters cannot be compared, so nobody leads with such data, and nobody is judged by what they say.
//
//	key initialize   route                      data with identifier A
//	A, or none       of A, or none              may be the shard's
//	another one      any                        are another shard's, or from before a major upgrade
//	A, or none       another one, succeeding A  are from before a major upgrade: Consul, or a part of it,
//	                                            is from before it, too
//
// A leader is not asked: what it has is the shard's, whatever somebody wrote into the key.

// otherCluster says why data with a system identifier are not the shard's; empty: they are, or it is not
// known.
func (v Shard) otherCluster(id string) string {
	if id == "" {
		return ""
	}
	if shard := v.Cluster.Initialize.Value; shard != "" && shard != id {
		return fmt.Sprintf("has the data of another cluster (system identifier %s, that of the shard is %s)", id, shard)
	}
	if r := v.Cluster.Route; r.OK() && r.Value.Announces(id) {
		return fmt.Sprintf("has data from before a major upgrade (system identifier %s, by now it is %s)", id, r.Value.SystemIdentifier)
	}
	return ""
}
