package cluster

import "fmt"

// CheckTakeover returns an error if a change of the configuration lets standbys stand in for the lease while a member is
// registered that does not know of that: it would take no part, and nobody would be told.
func (s Snapshot) CheckTakeover(old, next Dynamic) error {
	if next.Takeover != TakeoverQuorum || old.Takeover == TakeoverQuorum {
		return nil
	}
	for _, m := range s.Members {
		switch {
		case !m.OK():
			return fmt.Errorf("takeover: quorum needs agents that know it, and the key of a member is not understood: %w", m.Err)
		case m.Value.Lictor == nil:
			return fmt.Errorf("takeover: quorum needs agents that know it, and %s is run by Patroni %s: hand it over to Lictor first", m.Value.Name, m.Value.Version)
		case !m.Value.Lictor.QuorumTakeover:
			return fmt.Errorf("takeover: quorum needs agents that know it, and that of %s (Lictor %s) does not: upgrade it first", m.Value.Name, m.Value.Version)
		}
	}
	return nil
}
