#!/usr/bin/env bash
# Prints the path of the consul-template binary that the benchmark puts beside Lictor. It is built
# once, from the module beside this script, into a cache outside the tree.
# CONSUL_TEMPLATE_BIN, when set, is used as it is.
set -euo pipefail

readonly version=0.41.1
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=cache.sh
. "$here/cache.sh"

build() { (cd "$here/consul-template" && CGO_ENABLED=0 go build -trimpath -buildvcs=false -o "$1" github.com/hashicorp/consul-template); }

given CONSUL_TEMPLATE_BIN
once "consul-template-$version" "consul-template $version (a minute)" build
