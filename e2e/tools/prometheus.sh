#!/usr/bin/env bash
# Prints a directory with the programs that the dashboards are tried with: prometheus and
# prometheus-postgres-exporter, of Debian's packages, unpacked once into a cache outside the tree.
# Nothing is installed.
set -euo pipefail

# shellcheck source=cache.sh
. "$(dirname "${BASH_SOURCE[0]}")/cache.sh"

unpack() {
	local work=${1%/*}
	chmod 755 "$work" # apt downloads as a user of its own
	(cd "$work" && apt-get download -qq prometheus prometheus-postgres-exporter && for package in *.deb; do dpkg-deb -x "$package" unpacked; done)
	mkdir "$1"
	install -m 755 "$work"/unpacked/usr/bin/{prometheus,prometheus-postgres-exporter} "$1/"
}

once prometheus "prometheus and prometheus-postgres-exporter" unpack
