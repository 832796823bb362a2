#!/usr/bin/env bash
# versions.sh [trixie|bullseye] prints the directory of the programs of another Debian
# release, as ordinary programs of this machine, for `make test-versions`:
#
#   DIR/usr/lib/postgresql/VERSION/bin   PostgreSQL (POSTGRES_BIN)
#   DIR/programs                         pgbouncer and patronictl, of trixie (for $PATH)
#
# The packages are unpacked, not installed, once per recipe, into a cache outside the
# tree. Each program names the loader and the libraries of its own release, so nothing
# is needed to run it: no chroot, no script, no variable that its children would
# inherit. Needs root, mmdebstrap and a mirror that has the release.
set -euo pipefail

readonly release=${1:-trixie}
case $release in
trixie) packages=(postgresql-17 postgresql-contrib pgbouncer patroni python3-consul patchelf) ;;
bullseye) packages=(postgresql-13 postgresql-contrib patchelf) ;;
*)
	echo "usage: ${0##*/} [trixie|bullseye]" >&2
	exit 2
	;;
esac

# Not in root's home, which is closed to PostgreSQL's user.
cache=/var/cache/lictor
key=$(sha256sum "${BASH_SOURCE[0]}" | cut -c1-12)
dir=$cache/versions-$release-$key

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

if [[ ! -d $dir ]]; then
	((EUID == 0)) || {
		echo "${0##*/} must run as root" >&2
		exit 1
	}
	mkdir -p "$cache"
	exec 9>"$dir.lock"
	flock 9
	if [[ ! -d $dir ]]; then
		# The machine's own sources, its mirror and its keys, for the other release.
		sources=(/etc/apt/sources.list.d/*.sources)
		[[ -e ${sources[0]} ]] || sources=(/etc/apt/sources.list)
		echo "Unpacking Debian $release's ${packages[*]}, once (a minute or two; cached in $dir) ..." >&2
		work=$(mktemp -d "$dir.XXXXXX")
		trap 'rm -rf --one-file-system "$work"' EXIT
		building=$work/root
		own=$work/${sources[0]##*/}
		# shellcheck source=/dev/null
		here=$(. /etc/os-release && echo "$VERSION_CODENAME")
		sed "s/\<$here\>/$release/g" "${sources[0]}" >"$own"
		include=$(
			IFS=,
			echo "${packages[*]}"
		)
		mmdebstrap --quiet --variant=extract --include="$include" \
			--aptopt='Acquire::Check-Valid-Until "false"' --aptopt='Apt::Install-Recommends "false"' \
			--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
			"$release" "$building" "$own" >&2

		# One folder of libraries, also where /lib is not yet a link to /usr/lib.
		[[ ! -d $building/lib ]] || cp -a "$building/lib/." "$building/usr/lib/"
		find "$building" -mindepth 1 -maxdepth 1 ! -name usr -exec rm -rf --one-file-system {} +
		# LLVM's library has a RUNPATH of its own, and so would find this machine's
		# libraries: PostgreSQL does without what it cannot find at all.
		rm -f "$building"/usr/lib/postgresql/*/lib/llvmjit*.so "$building"/usr/lib/*/libLLVM*

		loader=$(echo "$building"/usr/lib/*/ld-linux*.so.*)
		libraries=$(dirname "${loader#"$building/"}")
		# patchelf itself runs before there are patched programs.
		patchelf=("$loader" --library-path "$building/$libraries" "$building/usr/bin/patchelf")
		patch "$building"/usr/lib/postgresql/*/bin/*
		mkdir "$building/programs"
		if [[ -e $building/usr/sbin/pgbouncer ]]; then
			patch "$building/usr/sbin/pgbouncer"
			ln "$building/usr/sbin/pgbouncer" "$building/programs/pgbouncer"
		fi
		if [[ -e $building/usr/bin/patronictl ]]; then
			# Python is no position-independent program, which patchelf would break;
			# nobody looks for its process.
			cat >"$building/programs/patronictl" <<-WORDS
				#!/bin/sh
				PYTHONHOME=$dir/usr exec $dir/$libraries/${loader##*/} --library-path $dir/$libraries $dir/usr/bin/python3 $dir/usr/bin/patronictl "\$@"
			WORDS
			chmod 755 "$building/programs/patronictl"
		fi
		chmod 755 "$building"
		mv "$building" "$dir"

		check() { # They run in the place that they were made for, or not at all.
			"$@" >&2 || {
				rm -rf --one-file-system "$dir"
				echo "$1 does not run here" >&2
				exit 1
			}
		}
		check "$dir"/usr/lib/postgresql/*/bin/postgres --version
		[[ ! -e $dir/programs/pgbouncer ]] || check "$dir/programs/pgbouncer" --version
		[[ ! -e $dir/programs/patronictl ]] || check "$dir/programs/patronictl" version
	fi
fi
echo "$dir"
