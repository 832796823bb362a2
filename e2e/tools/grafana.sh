#!/usr/bin/env bash
# Builds the program beside this script that reads dashboards by Grafana's schema, once per version of
# it, into a cache outside the tree, and prints its path.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=cache.sh
. "$here/cache.sh"

versions() { go version && cat "$here"/grafana/go.mod "$here"/grafana/*.go; }
build() { (cd "$here/grafana" && CGO_ENABLED=0 go build -trimpath -buildvcs=false -o "$1" .); }

once "grafana-$(key versions)" "the reader of Grafana's dashboards" build
