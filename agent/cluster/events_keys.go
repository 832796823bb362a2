package cluster

// Events is the key with the last events of the shard (package events). It lies
// outside the shard's prefix, so that writing it wakes nobody.
func (k Keys) Events() string { return k.lictor + "/events/" + k.namespace + "/" + k.scope }
