#!/usr/bin/env bash
# Makes sure that the programs are there that the demo (deps.sh demo), the tests
# (deps.sh test), those of the fleet page in a browser (deps.sh browser), those with other versions (deps.sh versions) or those of the Ansible collection (deps.sh ansible) run. As root on Debian it installs the packages that are
# missing, without starting a service or creating a PostgreSQL cluster; as
# another user it says what is missing and how to install it.
set -euo pipefail

purpose=${1:-test}
export PATH=$PATH:/usr/sbin:/sbin

# has_postgres looks where Debian and PGDG packages put the servers, 12 and up.
has_postgres() {
	local bin
	for bin in /usr/lib/postgresql/*/bin/postgres; do
		[[ -x $bin ]] || continue
		bin=${bin#/usr/lib/postgresql/}
		((${bin%%/*} >= 12)) && return 0
	done
	command -v postgres >/dev/null
}
has_python_consul() { /usr/bin/python3 -c 'import consul' 2>/dev/null; }

missing=()
need() { # PACKAGE COMMAND...: the package is needed unless the command succeeds
	local package=$1
	shift
	"$@" >/dev/null 2>&1 || missing+=("$package")
}

if [[ $purpose != browser ]]; then
	need postgresql-15 has_postgres
	need pgbouncer command -v pgbouncer
	need haproxy command -v haproxy
fi
case $purpose in
demo) ;;
browser)
	need chromium command -v chromium
	need nodejs command -v node
	need npm command -v npm
	need fonts-dejavu-core test -e /usr/share/fonts/truetype/dejavu
	;;
test | versions)
	need gcc command -v gcc # for go test -race
	need libc6-dev test -e /usr/include/stdio.h
	need procps command -v ps
	need ansible-core command -v ansible-playbook
	need yamllint command -v yamllint
	need patroni command -v patroni
	need pgbackrest command -v pgbackrest
	need postgresql-15-repack command -v pg_repack
	need python3-consul has_python_consul
	if ((EUID == 0)); then # only root can make network namespaces
		need iproute2 command -v ip
		need nftables command -v nft
	fi
	if [[ $purpose == versions ]]; then
		need mmdebstrap command -v mmdebstrap
	fi
	;;
ansible)
	need ansible-core command -v ansible-playbook
	need ansible-lint command -v ansible-lint
	need yamllint command -v yamllint
	need openssl command -v openssl
	need openssh-client command -v ssh-keygen
	need systemd-container command -v systemd-nspawn
	need mmdebstrap command -v mmdebstrap
	need iproute2 command -v ip
	need procps command -v ps
	;;
*)
	echo "usage: ${0##*/} [demo|test|browser|versions|ansible]" >&2
	exit 2
	;;
esac
((${#missing[@]})) || exit 0

if ((EUID != 0)) || ! command -v apt-get >/dev/null; then
	{
		echo "These Debian packages are missing: ${missing[*]}"
		echo "Install them, as root, with"
		echo
		echo "  apt-get update && apt-get install --no-install-recommends ${missing[*]}"
		echo
		echo "or run this target as root, which does it without starting any service."
	} >&2
	exit 1
fi

# What the installation must not do is said by two files that exist only while
# it runs: no service is started, no default cluster is created.
policy=/usr/sbin/policy-rc.d
dropins=/etc/postgresql-common/createcluster.d
dropin=$dropins/lictor-no-main-cluster.conf
saved=
restore() {
	rm -f "$dropin"
	# Directories that the packages did not take over are ours: empty, they go.
	rmdir --ignore-fail-on-non-empty "$dropins" /etc/postgresql-common 2>/dev/null || true
	if [[ -n $saved ]]; then
		mv -f "$saved" "$policy"
	else
		rm -f "$policy"
	fi
}
if [[ -e $policy || -L $policy ]]; then
	saved=$(mktemp "$policy.XXXXXX")
	mv -f "$policy" "$saved"
fi
trap restore EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
printf '#!/bin/sh\nexit 101\n' >"$policy"
chmod 755 "$policy"
mkdir -p "$dropins"
echo 'create_main_cluster = false' >"$dropin"

echo "Installing ${missing[*]} ..." >&2
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq >&2
apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
