#!/usr/bin/env bash
# Builds the linters of the module beside this script, once per set of versions,
# into a cache outside the tree, and prints the directory that holds them.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=cache.sh
. "$here/cache.sh"

# The versions of Go and of the tools decide what a linter says.
versions() { go version && cat "$here/lint/go.mod"; }
build() { (cd "$here/lint" && CGO_ENABLED=0 go build -buildvcs=false -o "$1/" tool); }

once "lint-$(key versions)" "the linters (a few minutes)" build
