#!/usr/bin/env bash
# Builds the container images: images.sh VERSION [DIRECTORY] (as root). Each is a Debian root file
# system with the .deb of build.sh in it, written as an archive of OCI's beside the packages:
# lictor-agent-VERSION.oci.tar has PostgreSQL, lictor-bouncer-VERSION.oci.tar PgBouncer. Nothing in
# them runs as root. For this machine's architecture.
set -euo pipefail

version=${1:?usage: images.sh VERSION [DIRECTORY]}
out=${2:-dist}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p "$out"
out=$(cd "$out" && pwd)
for program in buildah mmdebstrap; do
	command -v "$program" >/dev/null || { echo "$program is missing: apt-get install buildah mmdebstrap" >&2; exit 1; }
done
architecture=$(dpkg --print-architecture)
suite=${DEBIAN:-bookworm}

work=$(mktemp -d)
trap 'rm -rf --one-file-system "$work"' EXIT
chmod 755 "$work"
ARCHITECTURES=$architecture PACKAGERS=deb packages/build.sh "$version" "$work/packages" >&2
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH
# Storage of its own: what the machine has of images is not touched, and nothing is left behind.
buildah() { command buildah --root "$work/storage" --runroot "$work/run" --storage-driver vfs "$@"; }

image() { # NAME PACKAGES DATA PORT COMMAND...
	local name=lictor-$1 tag=${version//+/-} packages=$2 data=$3 port=$4 root=$work/$1 container file
	shift 4
	# A cluster that the package makes would be nobody's.
	mmdebstrap --quiet --mode=root --variant=minbase --architectures="$architecture" \
		--include="ca-certificates,tini,$packages" \
		--essential-hook='mkdir -p "$1/etc/postgresql-common" && echo "create_main_cluster = false" >"$1/etc/postgresql-common/createcluster.conf"' \
		--dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
		"$suite" "$root"
	cp "$work"/packages/lictor*.deb "$root/lictor.deb"
	chroot "$root" dpkg --install /lictor.deb >&2
	rm "$root/lictor.deb"
	chroot "$root" install -d -o postgres -g postgres -m 0750 "$data"
	rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/* "$root"/var/log/*.log "$root"/var/log/apt "$root"/etc/machine-id "$root"/etc/hostname "$root"/etc/resolv.conf
	rm -f "$root"/etc/ssl/private/ssl-cert-snakeoil.key "$root"/etc/ssl/certs/ssl-cert-snakeoil.pem # all copies would have one key
	find "$root" -xdev -type f -perm /6000 -exec chmod ug-s {} + # nobody in it becomes root
	# By its number, so that a runtime sees that it is not root's.
	local user
	user=$(chroot "$root" id -u postgres):$(chroot "$root" id -g postgres)
	container=$(buildah from scratch)
	# By cp, as buildah's own copy gives all of it to root.
	cp -a "$root/." "$(buildah mount "$container")/"
	buildah umount "$container" >/dev/null
	buildah config --user "$user" --workingdir "$data" --port "$port" --volume "$data" --stop-signal SIGTERM \
		--entrypoint "$(printf '"%s",' tini -- lictor "$@" | sed 's/^/[/; s/,$/]/')" --cmd '' \
		--label org.opencontainers.image.title="$name" --label org.opencontainers.image.version="$version" \
		--label org.opencontainers.image.licenses=Apache-2.0 --label org.opencontainers.image.source=https://github.com/lictor-ha/lictor "$container"
	file=$out/$name-$version-$architecture.oci.tar
	rm -f "$file"
	buildah commit --quiet --timestamp "$SOURCE_DATE_EPOCH" "$container" "$name:$tag" >&2
	buildah push --quiet "$name:$tag" "oci-archive:$file:$name:$tag" >&2
	buildah rm "$container" >/dev/null
	buildah rmi "$name:$tag" >/dev/null
	rm -rf --one-file-system "$root"
	echo "$file"
}

for which in ${IMAGES:-bouncer agent}; do
	case $which in
	bouncer) image bouncer pgbouncer /etc/pgbouncer 6432 bouncer /etc/lictor/bouncer.yml ;;
	agent) image agent postgresql /var/lib/postgresql 5432 agent /etc/lictor/agent.yml ;;
	*) echo "IMAGES: $which is neither bouncer nor agent" >&2; exit 1 ;;
	esac
done
