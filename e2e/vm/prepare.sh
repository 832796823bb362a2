#!/usr/bin/env bash
# Prepares what the tests with virtual machines need, once, in a cache outside
# the tree, and prints the directory that holds it:
#
#   cloud/, generic/   two of Debian's kernels: vmlinuz and the modules that the
#                      tests load (only the generic one has an i6300ESB driver)
#   root/              a root file system with this machine's PostgreSQL in it
#
# As root on Debian it installs QEMU if that is missing; as another user it says
# what is missing. Exit status 3: something is missing that it cannot install.
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

missing=()
need() { # PACKAGE COMMAND...: the package is needed unless the command succeeds
	local package=$1
	shift
	"$@" >/dev/null 2>&1 || missing+=("$package")
}

# The newest PostgreSQL where Debian and PGDG packages put the servers.
postgres_bin() {
	local bin newest=
	for bin in $(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V); do
		[[ -x $bin/postgres && -x $bin/initdb ]] && newest=$bin
	done
	[[ -n $newest ]] && echo "$newest"
}

need qemu-system-x86 command -v qemu-system-x86_64
need e2fsprogs command -v mke2fs
need xfsprogs command -v mkfs.xfs
need postgresql-15 postgres_bin
need apt command -v apt-get

if ((${#missing[@]})); then
	if ((EUID != 0)) || ! command -v apt-get >/dev/null; then
		echo "the virtual machines need these Debian packages: ${missing[*]}; install them, or run this as root" >&2
		exit 3
	fi
	echo "Installing ${missing[*]} ..." >&2
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -qq >&2
	apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
fi
if [[ $(dpkg --print-architecture) != amd64 ]]; then
	echo "the virtual machines need an amd64 Debian, for its kernels" >&2
	exit 3
fi

pg=$(postgres_bin)
cache=${XDG_CACHE_HOME:-${HOME:?set HOME or XDG_CACHE_HOME}/.cache}/lictor
# This recipe and PostgreSQL's version decide what is in the cache.
key=$({ "$pg/postgres" -V && cat "$here/prepare.sh"; } | sha256sum | cut -c1-12)
dir=$cache/vm-$key
if [[ -d $dir ]]; then
	echo "$dir"
	exit
fi
mkdir -p "$cache"
exec 9>"$dir.lock"
flock 9
if [[ -d $dir ]]; then
	echo "$dir"
	exit
fi
echo "Unpacking kernels and PostgreSQL for the virtual machines, once (cached in $dir) ..." >&2
building=$(mktemp -d "$dir.XXXXXX")
trap 'rm -rf "$building"' EXIT

# kernel NAME PACKAGE MODULE...: the package that the meta-package depends on is
# unpacked, not installed.
kernel() {
	local name=$1 meta=$2 package module file
	shift 2
	package=$(apt-cache depends "$meta" | awk '/Depends: linux-image/ {print $2; exit}')
	if [[ -z $package ]]; then
		apt-get update -qq >&2 || true
		package=$(apt-cache depends "$meta" | awk '/Depends: linux-image/ {print $2; exit}')
	fi
	[[ -n $package ]] || {
		echo "apt knows no kernel package $meta" >&2
		exit 1
	}
	mkdir -p "$building/$name/modules" "$building/unpacked/$name"
	(cd "$building/unpacked/$name" && apt-get -o APT::Sandbox::User=root download -qq "$package" >&2 && dpkg-deb -x ./*.deb .)
	cp "$building/unpacked/$name"/boot/vmlinuz-* "$building/$name/vmlinuz"
	for module; do # those that this kernel has built in are not there
		file=$(find "$building/unpacked/$name/lib/modules" -name "$module.ko")
		[[ -z $file ]] || cp "$file" "$building/$name/modules/"
	done
}
modules=(virtio virtio_ring virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk
	libcrc32c crc32c_generic crc16 mbcache jbd2 ext4 xfs watchdog softdog i6300esb)
kernel cloud linux-image-cloud-amd64 "${modules[@]}"
kernel generic linux-image-amd64 "${modules[@]}"
rm -rf "$building/unpacked"

# The root file system: PostgreSQL, a shell for initdb's popen(3), and the
# libraries of both. Directories that Debian links (/lib) are made as links.
root=$building/root
mkdir -p "$root"/{dev,proc,sys,tmp,run,etc,root,var/lib,usr/bin,usr/sbin,usr/lib,usr/lib64}
chmod 1777 "$root/tmp"
for link in bin sbin lib lib64; do ln -s "usr/$link" "$root/$link"; done
ln -s /run "$root/var/run"
take() { # FILE...: with the directories above it, links followed
	local file
	for file; do
		local target=$root/$(realpath -s "$file" | sed -E 's,^/(bin|sbin|lib|lib64)/,usr/\1/,; s,^/,,')
		[[ -e $target ]] || { mkdir -p "$(dirname "$target")" && cp -L "$file" "$target"; }
	done
}
libraries() { ldd "$@" 2>/dev/null | awk '/=> \// {print $3} $1 ~ /^\// && !/:$/ {print $1}' | sort -u; }
share=$("$pg/pg_config" --sharedir 2>/dev/null || echo "/usr/share/postgresql/$(basename "$(dirname "$pg")")")
mkdir -p "$root$(dirname "$pg")" "$root$share"
cp -a "$pg" "$root$(dirname "$pg")/"
mkdir -p "$root$(dirname "$pg")/lib"
(cd "$(dirname "$pg")/lib" && cp -a $(find . -maxdepth 1 -name '*.so' ! -name 'llvmjit*') "$root$(dirname "$pg")/lib/")
cp -aL "$share/." "$root$share/"
take /bin/sh /usr/share/zoneinfo/UTC /usr/share/zoneinfo/GMT /usr/share/zoneinfo/Etc/UTC
# shellcheck disable=SC2046
take $(libraries /bin/sh "$pg"/* "$root$(dirname "$pg")"/lib/*.so)
if [[ -d /usr/lib/locale/C.utf8 ]]; then
	mkdir -p "$root/usr/lib/locale"
	cp -a /usr/lib/locale/C.utf8 "$root/usr/lib/locale/"
fi
printf 'root:x:0:0:root:/root:/bin/sh\npostgres:x:70:70:PostgreSQL:/var/lib/postgresql:/bin/sh\n' >"$root/etc/passwd"
printf 'root:x:0:\npostgres:x:70:\n' >"$root/etc/group"
printf '127.0.0.1 localhost db1\n' >"$root/etc/hosts"
mkdir -p "$root/var/lib/postgresql" "$root/run/postgresql"
echo "$pg" >"$root/etc/postgres-bin"

mv "$building" "$dir"
trap - EXIT
echo "$dir"
