#!/usr/bin/env bash
# Runs govulncheck on the packages of its arguments. Where its database cannot be
# reached it says so, and why, and does not fail; what it finds is a failure.
# Built of the module beside this script: GOVULNCHECK_BIN names another program.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=cache.sh
. "$here/cache.sh"

versions() { go version && cat "$here/vuln/go.mod"; }
build() { (cd "$here/vuln" && CGO_ENABLED=0 go build -buildvcs=false -o "$1/" tool); }

program=${GOVULNCHECK_BIN:-}
if [[ -z $program ]]; then
	program=$(once "vuln-$(key versions)" govulncheck build)/govulncheck || true
	if [[ ! -x $program ]]; then
		echo "govulncheck: not checked: it cannot be built here (golang.org/x/vuln)" >&2
		exit 0
	fi
fi

status=0
out=$("$program" "$@" 2>&1) || status=$?
if [[ $status -ne 0 ]] && reason=$(grep -m 1 '^govulncheck: fetching vulnerabilities' <<<"$out"); then
	echo "govulncheck: not checked: ${reason#govulncheck: }" >&2
	exit 0
fi
printf '%s\n' "$out"
exit "$status"
