#!/bin/sh
# An upgrade (deb: "upgrade", rpm: 1) touches no service. Removal stops them:
# PostgreSQL in an orderly way, with a handover of the lead.
set -e
case "${1:-}" in
remove | 0) ;;
*) exit 0 ;;
esac
if [ -d /run/systemd/system ]; then
	systemctl stop lictor-web.service lictor-bouncer.service 'lictor-agent@*.service' || :
fi
