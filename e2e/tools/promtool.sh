#!/usr/bin/env bash
# Prints the path of the promtool that tests use: PROMTOOL, when set, one in $PATH,
# or the one of Debian's package prometheus, unpacked once into a cache outside the
# tree. Nothing is installed.
set -euo pipefail

# shellcheck source=cache.sh
. "$(dirname "${BASH_SOURCE[0]}")/cache.sh"

unpack() {
	local work=${1%/*}
	chmod 755 "$work" # apt downloads as a user of its own
	(cd "$work" && apt-get download -qq prometheus && dpkg-deb -x prometheus_*.deb unpacked)
	install -m 755 "$work/unpacked/usr/bin/promtool" "$1"
}

given PROMTOOL
if ! command -v promtool; then
	once promtool "promtool" unpack
fi
