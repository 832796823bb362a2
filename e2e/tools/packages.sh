#!/usr/bin/env bash
# Builds the tools that make packages (nfpm, sbom) from the module beside this
# script, once per set of versions, into a cache outside the tree, and prints the
# directory that holds them.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${XDG_CACHE_HOME:-${HOME:?set HOME or XDG_CACHE_HOME}/.cache}/lictor
key=$({ go version && cat "$here"/packages/go.mod "$here"/packages/sbom/*.go; } | sha256sum | cut -c1-12)
dir=$cache/packages-$key

if [[ ! -d $dir ]]; then
	mkdir -p "$cache"
	exec 9>"$dir.lock"
	flock 9
	if [[ ! -d $dir ]]; then
		echo "Building the packaging tools, once (cached in $dir) ..." >&2
		building=$(mktemp -d "$dir.XXXXXX")
		trap 'rm -rf "$building"' EXIT
		(cd "$here/packages" && CGO_ENABLED=0 go build -trimpath -buildvcs=false -o "$building/" tool ./sbom) >&2
		chmod 755 "$building"
		mv "$building" "$dir"
		trap - EXIT
	fi
fi
echo "$dir"
