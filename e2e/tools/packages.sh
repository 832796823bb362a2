#!/usr/bin/env bash
# Builds the tools that make packages (nfpm, sbom) from the module beside this
# script, once per set of versions, into a cache outside the tree, and prints the
# directory that holds them.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=cache.sh
. "$here/cache.sh"

versions() { go version && cat "$here"/packages/go.mod "$here"/packages/sbom/*.go; }
build() { (cd "$here/packages" && CGO_ENABLED=0 go build -trimpath -buildvcs=false -o "$1/" tool ./sbom); }

once "packages-$(key versions)" "the packaging tools" build
