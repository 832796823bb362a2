package cluster

import (
	"fmt"
	"strings"
)

// Handovers is the prefix under which all shards' handovers lie: a bouncer
// watches it with one blocking query however many shards there are.
func (k Keys) Handovers() string { return k.lictor + "/handovers/" }

// HandoverAnswers is the prefix of the bouncers' answers to this shard's
// handover, with its trailing slash. It lies apart from the handovers, so that
// an answer wakes only the leader that waits for it.
func (k Keys) HandoverAnswers() string {
	return k.lictor + "/handovers-answers/" + k.namespace + "/" + k.scope + "/"
}

// HandoverAnswer is the key in which a bouncer answers, held by its session.
func (k Keys) HandoverAnswer(bouncer string) string { return k.HandoverAnswers() + bouncer }

// SplitHandover takes the key of a handover apart. It fails on a key that is not
// HANDOVERS/NAMESPACE/SCOPE; the namespace itself may contain slashes.
func (k Keys) SplitHandover(key string) (namespace, scope string, err error) {
	rest, found := strings.CutPrefix(key, k.Handovers())
	if i := strings.LastIndexByte(rest, '/'); found && i > 0 && i < len(rest)-1 {
		return rest[:i], rest[i+1:], nil
	}
	return "", "", fmt.Errorf("handover key %q is not %sNAMESPACE/SCOPE", key, k.Handovers())
}
