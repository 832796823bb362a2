# For the scripts that make something once, to be sourced: what they make is kept in a
# cache outside the tree.
# shellcheck shell=bash

# given VARIABLE: where the variable names a program, that is what the script prints.
given() {
	local program=${!1:-}
	[[ -n $program ]] || return 0
	[[ -x $program ]] || {
		echo "$1=$program is not an executable file" >&2
		exit 1
	}
	echo "$program"
	exit
}

# key COMMAND...: a short name for what the command prints.
key() { "$@" | sha256sum | cut -c1-12; }

# once PATH WHAT COMMAND...: prints the path, below the cache's directory unless it is
# absolute. If nothing is there, the command makes it first, under the name that it gets
# as its last argument: nobody sees it before it is whole.
once() {
	local path=$1 what=$2 cache
	shift 2
	if [[ $path != /* ]]; then
		cache=${XDG_CACHE_HOME:-${HOME:?set HOME or XDG_CACHE_HOME}/.cache}/lictor
		path=$cache/$path
	fi
	if [[ ! -e $path ]]; then
		mkdir -p "${path%/*}"
		# Two at once would only be slower: the second waits for the first.
		exec 9>"$path.lock"
		flock 9
		if [[ ! -e $path ]]; then
			echo "Making $what, once (cached as $path) ..." >&2
			making=$(mktemp -d "$path.XXXXXX")
			trap 'rm -rf --one-file-system "$making"' EXIT
			"$@" "$making/it" >&2
			mv "$making/it" "$path"
		fi
	fi
	echo "$path"
}
