#!/usr/bin/env bash
# Prints the directory of the Debian 12 root file system that all test hosts start
# from. It is built once per list of packages, into a cache outside the tree; hosts
# lay an overlay over it and never write to it. Needs root and mmdebstrap.
set -euo pipefail

readonly release=bookworm
# What a cloud image of a database, pooler or balancer host would have cached: the
# hosts reach no package server.
readonly packages=(
	systemd-sysv systemd dbus libpam-systemd udev kmod
	python3-minimal python3-apt python3-psycopg2
	iproute2 iputils-ping procps openssh-server sudo ca-certificates curl openssl unzip
	postgresql-15 postgresql-contrib pgbouncer haproxy prometheus nftables locales
)

cache=${XDG_CACHE_HOME:-${HOME:?set HOME or XDG_CACHE_HOME}/.cache}/lictor
key=$({ echo "$release ${packages[*]}"; cat "${BASH_SOURCE[0]}"; } | sha256sum | cut -c1-12)
root=$cache/root-$release-$key

if [[ ! -d $root ]]; then
	mkdir -p "$cache"
	exec 9>"$root.lock"
	flock 9
	if [[ ! -d $root ]]; then
		# The machine's own sources: its mirror, its keys.
		sources=(/etc/apt/sources.list.d/*.sources)
		[[ -e ${sources[0]} ]] || sources=(/etc/apt/sources.list)
		echo "Building a Debian $release root with ${#packages[@]} packages, once (a minute; cached as $root) ..." >&2
		building=$(mktemp -d "$root.XXXXXX")
		trap 'rm -rf --one-file-system "$building"' EXIT
		include=$(
			IFS=,
			echo "${packages[*]}"
		)
		mmdebstrap --quiet --variant=minbase --include="$include" \
			--aptopt='Acquire::Check-Valid-Until "false"' --aptopt='Apt::Install-Recommends "false"' \
			--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
			--customize-hook='chroot "$1" systemctl disable postgresql.service pgbouncer.service haproxy.service prometheus.service' \
			--customize-hook='chroot "$1" pg_dropcluster 15 main' \
			--customize-hook='rm -f "$1"/etc/ssh/ssh_host_* "$1"/etc/machine-id' \
			"$release" "$building" "${sources[0]}" >&2
		chmod 755 "$building"
		mv "$building" "$root"
		trap - EXIT
	fi
fi
echo "$root"
