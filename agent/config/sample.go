package config

import _ "embed"

//go:embed sample.yml
var sample []byte

// Sample is the commented example that `lictor sample-config` prints. It is
// refused until its passwords are set.
func Sample() []byte { return sample }
