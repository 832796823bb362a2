#!/usr/bin/env bash
# Prints the path of the Consul binary that tests and the demo use. It is built
# once, from the module beside this script, into a cache outside the tree.
# CONSUL_BIN, when set, is used as it is.
set -euo pipefail

readonly version=1.20.1
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=cache.sh
. "$here/cache.sh"

build() { (cd "$here/consul" && CGO_ENABLED=0 go build -trimpath -buildvcs=false -o "$1" github.com/hashicorp/consul); }

given CONSUL_BIN
once "consul-$version" "Consul $version (a few minutes)" build
