#!/usr/bin/env bash
# Prints where tests keep their files: TMPDIR when it is set, else memory where there is
# enough of it. On a disk every initdb and checkpoint waits for it, and a file system that
# was just emptied searches long for a free inode. No test asks what outlives a host.
set -euo pipefail

readonly memory=/dev/shm needed_mb=6000

if [[ -n ${TMPDIR:-} ]]; then
	echo "$TMPDIR"
elif [[ -w $memory ]] && free=$(df --output=avail -m "$memory" 2>/dev/null | tail -n 1) && ((free >= needed_mb)) &&
	! findmnt --noheadings --output OPTIONS --target "$memory" | grep -qw noexec &&
	(($(awk '/^MemAvailable:/ { print int($2 / 1024) }' /proc/meminfo) >= 2 * needed_mb)); then
	echo "$memory"
else
	echo /tmp
fi
