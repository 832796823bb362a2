#!/usr/bin/env bash
# Prints the path of the promtool that tests use: PROMTOOL, when set, one in $PATH,
# or the one of Debian's package prometheus, unpacked once into a cache outside the
# tree. Nothing is installed.
set -euo pipefail

if [[ -n ${PROMTOOL:-} ]]; then
	[[ -x $PROMTOOL ]] || {
		echo "PROMTOOL=$PROMTOOL is not an executable file" >&2
		exit 1
	}
	echo "$PROMTOOL"
	exit
fi
if command -v promtool; then
	exit
fi

cache=${XDG_CACHE_HOME:-${HOME:?set HOME, XDG_CACHE_HOME or PROMTOOL}/.cache}/lictor
binary=$cache/promtool
if [[ ! -x $binary ]]; then
	mkdir -p "$cache"
	exec 9>"$binary.lock"
	flock 9
	if [[ ! -x $binary ]]; then
		work=$(mktemp -d)
		trap 'rm -rf "$work"' EXIT
		chmod 755 "$work"
		(cd "$work" && apt-get download -qq prometheus && dpkg-deb -x prometheus_*.deb unpacked) >&2
		install -m 755 "$work/unpacked/usr/bin/promtool" "$binary"
	fi
fi
echo "$binary"
