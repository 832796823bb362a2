#!/usr/bin/env bash
# Prints the directory of the Debian 12 root file system that all test hosts start
# from. It is built once per recipe, into a cache outside the tree; hosts
# lay an overlay over it and never write to it. Needs root and mmdebstrap.
set -euo pipefail

readonly release=bookworm
# What a cloud image of a database, pooler or balancer host would have cached: the
# hosts reach no package server.
readonly packages=(
	systemd-sysv systemd dbus libpam-systemd udev kmod
	python3-minimal python3-apt python3-psycopg2
	iproute2 iputils-ping procps openssh-server sudo ca-certificates curl openssl unzip
	postgresql-15 postgresql-contrib postgresql-15-repack pgbackrest pgbouncer haproxy prometheus nftables locales
)

# shellcheck source=../tools/cache.sh
. "$(dirname "${BASH_SOURCE[0]}")/../tools/cache.sh"

unpack() { # DIRECTORY
	local sources
	# The machine's own sources: its mirror, its keys.
	sources=(/etc/apt/sources.list.d/*.sources)
	[[ -e ${sources[0]} ]] || sources=(/etc/apt/sources.list)
	mmdebstrap --quiet --variant=minbase --include="${packages[*]}" \
		--aptopt='Acquire::Check-Valid-Until "false"' --aptopt='Apt::Install-Recommends "false"' \
		--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
		--customize-hook='chroot "$1" systemctl disable postgresql.service pgbouncer.service haproxy.service prometheus.service' \
		--customize-hook='chroot "$1" pg_dropcluster 15 main' \
		--customize-hook='rm -f "$1"/etc/ssh/ssh_host_* "$1"/etc/machine-id' \
		"$release" "$1" "${sources[0]}"
	chmod 755 "$1"
}

once "root-$release-$(key cat "${BASH_SOURCE[0]}")" "a Debian $release root with ${#packages[@]} packages (a minute)" unpack
