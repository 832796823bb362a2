#!/usr/bin/env bash
# versions.sh [trixie|bullseye|sid] prints the directory of the programs of another Debian
# release, as ordinary programs of this machine, for `make test-versions`:
#
#   DIR/usr/lib/postgresql/VERSION/bin   PostgreSQL (POSTGRES_BIN)
#   DIR/programs                         pgbackrest, and pgbouncer and patronictl but of bullseye (for $PATH)
#
# The packages are unpacked, not installed, once per recipe, into a cache outside the
# tree. Each program names the loader and the libraries of its own release, so nothing
# is needed to run it: no chroot, no script, no variable that its children would
# inherit. Needs root, mmdebstrap and a mirror that has the release.
set -euo pipefail

readonly release=${1:-trixie}
case $release in
trixie) packages=(postgresql-17 postgresql-contrib pgbouncer pgbackrest patroni python3-consul patchelf) ;;
bullseye) packages=(postgresql-13 postgresql-contrib pgbackrest patchelf) ;;
# sid goes on: its package of PostgreSQL is the one that it has by now.
sid) packages=(postgresql postgresql-contrib pgbouncer pgbackrest patroni python3-consul patchelf) ;;
*)
	echo "usage: ${0##*/} [trixie|bullseye|sid]" >&2
	exit 2
	;;
esac
# shellcheck source=cache.sh
. "$(dirname "${BASH_SOURCE[0]}")/cache.sh"

# Not in root's home, which is closed to PostgreSQL's user.
dir=/var/cache/lictor/versions-$release-$(key cat "${BASH_SOURCE[0]}")

# patch makes the ELF programs among its arguments run on the libraries below $dir,
# where they will be.
patch() {
	local program
	for program; do
		if [[ ! -L $program && $(head -c 4 "$program" | tail -c 3) == ELF ]]; then
			# RPATH, not RUNPATH: what a program loads later looks there, too.
			"${patchelf[@]}" --set-interpreter "$dir/$libraries/${loader##*/}" --force-rpath --set-rpath "$dir/$libraries" "$program"
		fi
	done
}

unpack() { # DIRECTORY
	local root=$1 program own sources here loader libraries patchelf
	((EUID == 0)) || {
		echo "${0##*/} must run as root" >&2
		exit 1
	}
	# The machine's own sources, its mirror and its keys, for the other release.
	sources=(/etc/apt/sources.list.d/*.sources)
	[[ -e ${sources[0]} ]] || sources=(/etc/apt/sources.list)
	own=${root%/*}/${sources[0]##*/}
	# shellcheck source=/dev/null
	here=$(. /etc/os-release && echo "$VERSION_CODENAME")
	sed "s/\<$here\>/$release/g" "${sources[0]}" >"$own"
	if [[ $release == sid ]]; then # it has neither updates nor a security archive
		awk -v RS= -v ORS='\n\n' '!/sid-security/ { gsub(/ sid-[a-z]+/, ""); print }' "$own" >"$own.sid"
		mv "$own.sid" "$own"
	fi
	mmdebstrap --quiet --variant=extract --include="${packages[*]}" \
		--aptopt='Acquire::Check-Valid-Until "false"' --aptopt='Apt::Install-Recommends "false"' \
		--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
		"$release" "$root" "$own"

	# One folder of libraries, also where /lib is not yet a link to /usr/lib.
	[[ ! -d $root/lib ]] || cp -a "$root/lib/." "$root/usr/lib/"
	find "$root" -mindepth 1 -maxdepth 1 ! -name usr -exec rm -rf --one-file-system {} +
	# LLVM's library has a RUNPATH of its own, and so would find this machine's
	# libraries: PostgreSQL does without what it cannot find at all.
	rm -f "$root"/usr/lib/postgresql/*/lib/llvmjit*.so "$root"/usr/lib/*/libLLVM*

	loader=$(echo "$root"/usr/lib/*/ld-linux*.so.*)
	libraries=$(dirname "${loader#"$root/"}")
	# patchelf itself runs before there are patched programs.
	patchelf=("$loader" --library-path "$root/$libraries" "$root/usr/bin/patchelf")
	patch "$root"/usr/lib/postgresql/*/bin/*
	mkdir "$root/programs"
	for program in "$root"/usr/{sbin/pgbouncer,bin/pgbackrest}; do
		if [[ -e $program ]]; then
			patch "$program"
			ln "$program" "$root/programs/"
		fi
	done
	if [[ -e $root/usr/bin/patronictl ]]; then
		# Python is no position-independent program, which patchelf would break;
		# nobody looks for its process.
		cat >"$root/programs/patronictl" <<-WORDS
			#!/bin/sh
			PYTHONHOME=$dir/usr exec $dir/$libraries/${loader##*/} --library-path $dir/$libraries $dir/usr/bin/python3 $dir/usr/bin/patronictl "\$@"
		WORDS
		chmod 755 "$root/programs/patronictl"
	fi
	chmod 755 "$root"
}

# runs checks programs, which run in the place that they were made for or not at all.
runs() {
	"$@" >/dev/null || {
		rm -rf --one-file-system "$dir"
		echo "$1 does not run here" >&2
		exit 1
	}
}

once "$dir" "Debian $release's ${packages[*]} (a minute or two)" unpack
runs "$dir"/usr/lib/postgresql/*/bin/postgres --version
runs "$dir/programs/pgbackrest" version
[[ ! -e $dir/programs/pgbouncer ]] || runs "$dir/programs/pgbouncer" --version
[[ ! -e $dir/programs/patronictl ]] || runs "$dir/programs/patronictl" version
