#!/usr/bin/env bash
# Builds the packages: build.sh VERSION [DIRECTORY]. For linux on amd64 and arm64 a
# .deb and a .rpm each, with their bills of materials and SHA256SUMS. The same
# commit, version and Go give the same bytes: every time in them is SOURCE_DATE_EPOCH,
# by default the commit's.
set -euo pipefail

version=${1:?usage: build.sh VERSION [DIRECTORY]}
out=${2:-dist}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p "$out"
out=$(cd "$out" && pwd)
tools=$(e2e/tools/packages.sh)
GO=${GO:-go}

if [[ -z ${SOURCE_DATE_EPOCH:-} ]]; then
	SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) || {
		echo "no git history to take the date from: set SOURCE_DATE_EPOCH" >&2
		exit 1
	}
fi
export SOURCE_DATE_EPOCH
MTIME=$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)
export MTIME VERSION=$version LC_ALL=C TZ=UTC

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
umask 022

build() { # ARCHITECTURE FILE
	CGO_ENABLED=0 GOOS=linux GOARCH=$1 "$GO" build -buildvcs=false -trimpath \
		-ldflags "-s -w -buildid= -X github.com/lictor-ha/lictor/cmd/lictor/commands.version=$version" -o "$2" ./cmd/lictor
}

# What the binary itself writes does not depend on the architecture: the one that
# runs here writes it.
common=$work/common
mkdir -p "$common/man"
build "$("$GO" env GOHOSTARCH)" "$common/lictor"
"$common/lictor" sample-config >"$common/agent.yml"
for shell in bash zsh fish; do
	"$common/lictor" completion "$shell" >"$common/completion.$shell"
done
"$GO" run ./e2e/docs/cmd/cli -man "$common/man"
{
	echo "Lictor: https://github.com/lictor-ha/lictor"
	echo
	cat LICENSE
} >"$common/copyright"
find "$common/man" -type f -exec gzip -9n {} +

rm -f "$out"/lictor[-_]* "$out/SHA256SUMS"
for ARCH in ${ARCHITECTURES:-amd64 arm64}; do
	export ARCH STAGE=$work/$ARCH
	cp -r "$common" "$STAGE"
	build "$ARCH" "$STAGE/lictor"
	"$tools/sbom" -name lictor -version "$version" "$STAGE/lictor" >"$STAGE/lictor.cdx.json"
	# nfpm puts variables only into some of its fields.
	config=$work/nfpm-$ARCH.yaml
	{
		sed -e "s|\${STAGE}|$STAGE|g" -e "s|\${ARCH}|$ARCH|" -e "s|\${VERSION}|$version|" -e "s|\${MTIME}|$MTIME|" packages/nfpm.yaml
		for page in $(find "$STAGE/man" -name "*.gz" | sort); do
			echo "  - {src: \"$page\", dst: /usr/share/man/man1/${page##*/}, file_info: {mode: 0644}}"
		done
	} >"$config"
	for kind in ${PACKAGERS:-deb rpm}; do
		"$tools/nfpm" package --config "$config" --packager "$kind" --target "$out" >&2
	done
	cp "$STAGE/lictor.cdx.json" "$out/lictor-$version-linux-$ARCH.cdx.json"
done
cd "$out"
sha256sum lictor[-_]* >SHA256SUMS
cat SHA256SUMS
