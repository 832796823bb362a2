#!/usr/bin/env bash
# Prints the path of the consul-template binary that the benchmark puts beside Lictor. It is built
# once, from the module beside this script, into a cache outside the tree.
# CONSUL_TEMPLATE_BIN, when set, is used as it is.
set -euo pipefail

readonly version=0.41.1
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

if [[ -n ${CONSUL_TEMPLATE_BIN:-} ]]; then
	[[ -x $CONSUL_TEMPLATE_BIN ]] || {
		echo "CONSUL_TEMPLATE_BIN=$CONSUL_TEMPLATE_BIN is not an executable file" >&2
		exit 1
	}
	echo "$CONSUL_TEMPLATE_BIN"
	exit
fi

cache=${XDG_CACHE_HOME:-${HOME:?set HOME, XDG_CACHE_HOME or CONSUL_TEMPLATE_BIN}/.cache}/lictor
binary=$cache/consul-template-$version

if [[ ! -x $binary ]]; then
	mkdir -p "$cache"
	# Two builds at once would only be slower: the second waits for the first.
	exec 9>"$binary.lock"
	flock 9
	if [[ ! -x $binary ]]; then
		echo "Building consul-template $version, once (a minute; cached as $binary) ..." >&2
		building=$(mktemp "$binary.XXXXXX")
		trap 'rm -f "$building"' EXIT
		(cd "$here/consul-template" && CGO_ENABLED=0 go build -trimpath -buildvcs=false -o "$building" github.com/hashicorp/consul-template) >&2
		chmod 755 "$building"
		mv "$building" "$binary"
		trap - EXIT
	fi
fi
echo "$binary"
