#!/usr/bin/python
# Copyright: the Lictor authors
# Apache License 2.0 (see LICENSE)
"""Give one member of an adopted shard back to Debian's unit."""

from __future__ import absolute_import, division, print_function

__metaclass__ = type

DOCUMENTATION = r"""
module: give_back
short_description: Give one member of an adopted shard back to Debian's unit
description:
  - Stops the agent and PostgreSQL, puts the operator's files back, and starts PostgreSQL by Debian's unit, all in one go, as clients wait for a primary.
  - Of a primary, the shard's keys are deleted from Consul before it is started, and its route is opened after. The order is that of design 4.3.
  - Stops at the first step that is not as it should be, and can be run again.
options:
  shard:
    description: The shard's scope.
    type: str
    required: true
  member:
    description: The member of this host.
    type: str
    required: true
  unit:
    description: Debian's unit.
    type: str
    required: true
  config_dir:
    description: Where the configuration files are.
    type: path
    required: true
  data_dir:
    description: Where the data are.
    type: path
    required: true
  bin_dir:
    description: PostgreSQL's programs.
    type: path
    required: true
  start_conf:
    description: The operator's start.conf, as it was before the adoption.
    type: path
    required: true
  port:
    description: PostgreSQL's port.
    type: int
    required: true
  consul:
    description: Set for the primary alone. A standby does without Consul.
    type: dict
    suboptions:
      api:
        description: How Consul is reached.
        type: dict
        required: true
        suboptions:
          servers: {description: "Addresses of servers, as host:port.", type: list, elements: str, required: true}
          ca_path: {description: The CA of their certificates., type: path, required: true}
          server_name: {description: "The name that is in them, server.DATACENTER.consul.", type: str, required: true}
          token: {description: A token that may write the shard's keys and its route., type: str, required: true}
      prefix: {description: The shard's keys., type: str, required: true}
      route: {description: The key of its route., type: str, required: true}
      others: {description: The other members. None of them may be known to Consul., type: list, elements: str, required: true}
author: [the Lictor authors (@lictor-ha)]
"""

EXAMPLES = r"""
- name: Give a standby back
  lictor_ha.lictor.give_back:
    shard: orders
    member: db1
    unit: postgresql@15-main.service
    config_dir: /etc/postgresql/15/main
    data_dir: /var/lib/postgresql/15/main
    bin_dir: /usr/lib/postgresql/15/bin
    start_conf: /var/lib/lictor-adopted/shards/orders/etc/start.conf
    port: 5432
"""

RETURN = r"""
"""

import base64
import json
import os
import stat
import time

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.text.converters import to_native
from ansible_collections.lictor_ha.lictor.plugins.module_utils.consul import API, Consul, Unreachable

# As PostgreSQL's user, whose directories these are. The operator's postgresql.conf is
# postgresql.base.conf; whom a standby follows is in the agent's, and is kept where pg_basebackup
# would write it. patroni.dynamic.json is the shard's configuration as it was: the next adoption
# begins with the inventory's.
FILES = r"""
set -eu
umask 077
cd "$1"
if [ -e standby.signal ] && [ -e "$2/postgresql.base.conf" ]; then
  { grep -vE '^ *primary_(conninfo|slot_name) *=' postgresql.auto.conf || true
    grep -E '^primary_(conninfo|slot_name) *=' "$2/postgresql.conf"; } >postgresql.auto.conf.new
  mv -f postgresql.auto.conf.new postgresql.auto.conf
fi
if [ -e "$2/postgresql.base.conf" ]; then
  mv -f "$2/postgresql.base.conf" "$2/postgresql.conf"
fi
cat >"$2/start.conf"
rm -f patroni.dynamic.json
"""
# How long PostgreSQL may take to answer.
PATIENCE = 120


class GiveBack:
    def __init__(self, module):
        self.module, self.p = module, module.params
        self.agent = "lictor-agent@%s.service" % self.p["shard"]

    def fail(self, what, *args):
        self.module.fail_json(msg="%s on %s: %s" % (self.p["shard"], self.p["member"], what % args))

    def run(self, argv, **options):
        return self.module.run_command(argv, cwd="/", **options)

    def must(self, argv, **options):
        code, out, err = self.run(argv, **options)
        if code != 0:
            self.fail("%s: exit code %d: %s", " ".join(argv[:3]), code, (err or out).strip())

    def as_postgres(self, *argv):
        return ["runuser", "-u", "postgres", "--"] + list(argv)

    def keep_in_mind(self):
        """Reads the operator's start.conf, which PostgreSQL's user gets. It is a copy of what was in that user's directory: a link in it may lead anywhere."""
        path, opened = self.p["start_conf"], []
        try:
            directory, name = os.path.split(path)
            opened.append(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW))
            opened.append(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=opened[0]))
            if not stat.S_ISREG(os.fstat(opened[1]).st_mode):
                self.fail("%s is no regular file: put the operator's start.conf there", path)
            with os.fdopen(opened.pop()) as f:
                self.start_conf = f.read()
        except OSError as e:
            self.fail("%s cannot be read (%s): put the operator's start.conf there, no link", path, to_native(e))
        finally:
            for fd in opened:
                os.close(fd)

    def stop(self):
        """By Debian's unit PostgreSQL runs already where this is run again, or where an adoption stopped half-way."""
        self.must(["systemctl", "disable", "--quiet", "--now", self.agent])
        if self.run(["systemctl", "is-active", "--quiet", self.p["unit"]])[0] != 0:
            pg_ctl = os.path.join(self.p["bin_dir"], "pg_ctl")
            code, out, err = self.run(self.as_postgres(pg_ctl, "-D", self.p["data_dir"], "status"))
            if code != 3:
                self.fail("PostgreSQL has not stopped with its agent: see its log; when it has stopped, run adopt_back again (%s)", (out + err).strip())
        role = "standby" if os.path.exists(os.path.join(self.p["data_dir"], "standby.signal")) else "primary"
        if role != ("primary" if self.p["consul"] else "standby"):
            self.fail(
                "it has become a %s meanwhile, and stays stopped: systemctl enable --now %s there, and begin anew when lictor list shows that all is well",
                role, self.agent)

    def ask(self, method, path, body=None):
        """The status and the body of an answer of Consul's."""
        try:
            status, text = Consul(self.p["consul"]["api"]).ask(method, path, body)
        except Unreachable as e:
            self.fail("Consul does not answer %s %s: %s; run adopt_back again", method, path, to_native(e))
        if status in (404, 409):
            return status, None
        if status != 200:
            self.fail("Consul's answer to %s %s is %d: %s", method, path, status, text.strip())
        try:
            return status, json.loads(text)
        except ValueError as e:
            self.fail("Consul's answer to %s %s is no JSON: %s; run adopt_back again", method, path, to_native(e))

    def set_route(self, index, state):
        value = json.dumps(dict(self.route, state=state)).encode()
        return {"KV": {"Verb": "cas", "Key": self.p["consul"]["route"], "Index": index, "Value": to_native(base64.b64encode(value))}}

    def forget(self):
        """Deletes the shard's keys, if nobody else has begun to lead. The index of its route is 0 where there is none."""
        consul = self.p["consul"]
        answer = self.ask("GET", "/v1/kv/%s?consistent=true" % consul["route"])[1]
        index = answer[0]["ModifyIndex"] if answer else 0
        ops = [{"KV": {"Verb": "check-not-exists", "Key": consul["prefix"] + key}} for key in ["leader"] + ["members/" + m for m in consul["others"]]]
        ops.append({"KV": {"Verb": "delete-tree", "Key": consul["prefix"]}})
        if answer:
            self.route = json.loads(to_native(base64.b64decode(answer[0]["Value"])))
            if self.route["leader"]["name"] != self.p["member"]:
                self.fail("its route leads to %s, who leads or has led: it stays stopped; see lictor list", self.route["leader"]["name"])
            ops.append(self.set_route(index, "down"))
        else:
            ops.append({"KV": {"Verb": "check-not-exists", "Key": consul["route"]}})
        status, answer = self.ask("PUT", "/v1/txn", ops)
        if status != 200:
            self.fail(
                "an agent of the shard has begun again, or its route has changed: it stays stopped. Run adopt_back again, or start the agents "
                "(systemctl enable --now %s)", self.agent)
        return answer["Results"][-1]["KV"]["ModifyIndex"] if index else 0

    def start(self):
        self.must(self.as_postgres("sh", "-c", FILES, "sh", self.p["data_dir"], self.p["config_dir"]), data=self.start_conf, binary_data=True)
        own = "/etc/systemd/system/%s.d/lictor.conf" % self.p["unit"]
        if os.path.exists(own):
            os.remove(own)
        self.must(["systemctl", "daemon-reload"])
        self.must(["systemctl", "start", self.p["unit"]])
        until = time.time() + PATIENCE
        ask = self.as_postgres("psql", "--no-psqlrc", "-h", "/var/run/postgresql", "-p", str(self.p["port"]), "-Atc", "SELECT 1", "postgres")
        while True:
            code, out, err = self.run(ask)
            if code == 0:
                return
            if time.time() > until:
                self.fail("PostgreSQL does not answer after %d s: %s", PATIENCE, err.strip())
            time.sleep(0.2)

    def open(self, index):
        if self.ask("PUT", "/v1/txn", [self.set_route(index, "open")])[0] != 200:
            self.fail("its route has changed while PostgreSQL was started: see lictor list")


def main():
    module = AnsibleModule(
        argument_spec=dict(
            shard=dict(type="str", required=True),
            member=dict(type="str", required=True),
            unit=dict(type="str", required=True),
            config_dir=dict(type="path", required=True),
            data_dir=dict(type="path", required=True),
            bin_dir=dict(type="path", required=True),
            start_conf=dict(type="path", required=True),
            port=dict(type="int", required=True),
            consul=dict(
                type="dict",
                options=dict(
                    api=API,
                    prefix=dict(type="str", required=True),
                    route=dict(type="str", required=True),
                    others=dict(type="list", elements="str", required=True),
                ),
            ),
        ),
    )
    g = GiveBack(module)
    g.keep_in_mind()
    g.stop()
    index = g.forget() if module.params["consul"] else 0
    g.start()
    if index:
        g.open(index)
    module.exit_json(changed=True)


if __name__ == "__main__":
    main()
