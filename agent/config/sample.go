package config

import _ "embed"

//go:embed sample.yml
var sample string

// Sample is the commented example that `lictor sample-config` prints. It is
// refused until the placeholders in it have become passwords.
func Sample() []byte { return []byte(sample) }
