#!/usr/bin/env bash
# Prints the folder of the playwright-core that tests drive a browser with: PLAYWRIGHT, when set,
# or one that npm puts once into a cache outside the tree. The browser itself is Debian's
# (`make browser`): playwright-core brings none.
set -euo pipefail

# shellcheck source=cache.sh
. "$(dirname "${BASH_SOURCE[0]}")/cache.sh"

version=1.65.1

install_playwright() {
	mkdir -p "$1"
	npm install --no-audit --no-fund --no-save --ignore-scripts --prefix "$1" "playwright-core@$version"
}

if [[ -n ${PLAYWRIGHT:-} ]]; then
	echo "$PLAYWRIGHT"
	exit
fi
command -v node >/dev/null || { echo "node is missing" >&2; exit 1; }
command -v npm >/dev/null || { echo "npm is missing" >&2; exit 1; }
once "playwright-$version" "playwright-core $version" install_playwright
