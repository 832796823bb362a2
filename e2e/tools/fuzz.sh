#!/usr/bin/env bash
# Runs every fuzz target for a while, one after another: fuzz.sh TIME [REGEXP]. A target
# that fails leaves its input below testdata/fuzz of its package, where the unit tests run
# it from then on; the others are still run.
set -euo pipefail

time=$1 only=${2:-.}
failed=()
while read -r package; do
	# The names come before the line that says ok.
	for target in $(go test -list '^Fuzz' "$package" | grep '^Fuzz' | grep -E "$only" || true); do
		echo "== $package $target"
		go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "$package" || failed+=("$package $target")
	done
done < <(go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}} {{.Dir}}{{end}}' ./... | while read -r package dir; do
	[[ -z $dir ]] || ! grep -qs '^func Fuzz' "$dir"/*_test.go || echo "$package"
done)
if [[ ${#failed[@]} -gt 0 ]]; then
	printf 'failed: %s\n' "${failed[@]}" >&2
	exit 1
fi
