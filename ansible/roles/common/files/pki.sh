#!/bin/sh
# A small CA on the machine that runs Ansible.
#   pki.sh DIRECTORY ca
#   pki.sh DIRECTORY cert NAME SUBJECT_ALT_NAMES
# Keys never leave DIRECTORY but for the one that goes to its own host.
set -eu
umask 077
dir=$1 what=$2
mkdir -p "$dir"
cd "$dir"
work=$(mktemp -d making.XXXXXX)
trap 'rm -rf "$work"' EXIT
case $what in
ca)
	cat >"$work/ca.cnf" <<'CNF'
[req]
distinguished_name = dn
x509_extensions = ca
prompt = no
[dn]
CN = Lictor Consul CA
[ca]
basicConstraints = critical, CA:true
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
CNF
	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -sha256 -days 3650 \
		-config "$work/ca.cnf" -keyout "$work/key" -out "$work/pem"
	mv "$work/key" ca-key.pem
	mv "$work/pem" ca.pem
	;;
cert)
	name=$3 san=$4
	openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -sha256 -subj "/CN=$name" \
		-keyout "$work/key" -out "$work/csr"
	printf 'basicConstraints=critical,CA:false\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\nsubjectAltName=%s\n' "$san" >"$work/ext"
	openssl x509 -req -sha256 -days 1825 -in "$work/csr" -CA ca.pem -CAkey ca-key.pem -set_serial "0x$(openssl rand -hex 16)" \
		-extfile "$work/ext" -out "$work/pem"
	cat "$work/pem" "$work/key" >"$work/both"
	mv "$work/both" "$name.pem"
	;;
*)
	echo "usage: pki.sh DIRECTORY ca | cert NAME SANS" >&2
	exit 2
	;;
esac
