#!/bin/sh
# Nothing is started and nothing restarted: when an agent or a bouncer changes to
# the new binary is the operator's decision (docs/rollout.md).
set -e
if command -v systemd-sysusers >/dev/null 2>&1; then
	systemd-sysusers lictor.conf
fi
chgrp postgres /etc/lictor/agents || :
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || :
fi
if command -v udevadm >/dev/null 2>&1 && [ -S /run/udev/control ]; then
	udevadm control --reload || :
	udevadm trigger --action=change --sysname-match='watchdog*' || :
fi
