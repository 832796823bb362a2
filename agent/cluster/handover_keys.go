package cluster

import (
	"fmt"
	"strings"
)

// Handovers is the prefix under which all shards' handovers lie: a bouncer
// watches it with one blocking query however many shards there are.
func (k Keys) Handovers() string { return k.lictor + "/handovers/" }

// SplitHandover takes the key of a handover apart. It fails on a key that is not
// HANDOVERS/NAMESPACE/SCOPE; the namespace itself may contain slashes.
func (k Keys) SplitHandover(key string) (namespace, scope string, err error) {
	rest, found := strings.CutPrefix(key, k.Handovers())
	if i := strings.LastIndexByte(rest, '/'); found && i > 0 && i < len(rest)-1 {
		return rest[:i], rest[i+1:], nil
	}
	return "", "", fmt.Errorf("handover key %q is not %sNAMESPACE/SCOPE", key, k.Handovers())
}
