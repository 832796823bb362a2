#!/usr/bin/env bash
# Builds the linters of the module beside this script, once per set of versions,
# into a cache outside the tree, and prints the directory that holds them.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${XDG_CACHE_HOME:-${HOME:?set HOME or XDG_CACHE_HOME}/.cache}/lictor
# The versions of Go and of the tools decide what a linter says.
key=$({ go version && cat "$here/lint/go.mod"; } | sha256sum | cut -c1-12)
dir=$cache/lint-$key

if [[ ! -d $dir ]]; then
	mkdir -p "$cache"
	exec 9>"$dir.lock"
	flock 9
	if [[ ! -d $dir ]]; then
		echo "Building the linters, once (a few minutes; cached in $dir) ..." >&2
		building=$(mktemp -d "$dir.XXXXXX")
		trap 'rm -rf "$building"' EXIT
		(cd "$here/lint" && CGO_ENABLED=0 go build -buildvcs=false -o "$building/" tool) >&2
		chmod 755 "$building"
		mv "$building" "$dir"
		trap - EXIT
	fi
fi
echo "$dir"
