#!/usr/bin/python
# Copyright: the Lictor authors
# Apache License 2.0 (see LICENSE)
"""What of a PgBouncer's own file would be lost, or be otherwise, with the file of a bouncer."""

from __future__ import absolute_import, division, print_function

__metaclass__ = type

DOCUMENTATION = r"""
module: pgbouncer_fits
short_description: Compare a PgBouncer's file with what a bouncer would write
description:
  - Reads pgbouncer.ini, what it includes, and its users. Changes nothing.
  - Returns as I(problems) what the inventory does not say yet. Passwords are compared, and stand in no answer.
options:
  path:
    description: PgBouncer's file.
    type: path
    default: /etc/pgbouncer/pgbouncer.ini
  user:
    description: As whom PgBouncer runs. Its files are read with the rights of this user, who says in them which others are included.
    type: str
    default: postgres
  databases:
    description: >-
      Databases that the bouncer will have, by name: I(shard), I(dbname), I(port), I(options), and I(addresses) of the present primary's host.
      Without these it is not compared.
    type: dict
    required: true
  databases_only:
    description: Compare these and nothing else.
    type: bool
    default: false
  extra:
    description: Further keys that the inventory names for the bouncer's section pgbouncer.
    type: list
    elements: str
    default: []
  settings:
    description: Settings that the inventory names.
    type: dict
    default: {}
  port:
    description: The port of clients.
    type: int
    required: true
  socket_dir:
    description: Where the bouncer finds PgBouncer's console.
    type: path
    required: true
  users:
    description: The users that it will have.
    type: list
    elements: dict
    required: true
    suboptions:
      name: {description: As PgBouncer has it., type: str, required: true}
      password: {description: As clients have it., type: str, required: true}
  others:
    description: Whether other users will be looked up in the database.
    type: bool
    default: false
author: [the Lictor authors (@lictor-ha)]
"""

EXAMPLES = r"""
- name: Compare
  lictor_ha.lictor.pgbouncer_fits:
    port: 6432
    socket_dir: /var/run/postgresql
    databases: {orders: {shard: orders, dbname: orders, port: 5432, addresses: [10.0.0.1], options: {}}}
    users: [{name: app, password: "{{ app_password }}"}]
"""

RETURN = r"""
problems:
  description: What the inventory must say first.
  returned: always
  type: list
  elements: str
"""

import glob
import hashlib
import os
import re
import socket

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.lictor_ha.lictor.plugins.module_utils.osuser import rights_of

# The bouncer writes these by itself, as failovers depend on them, or they say where files are.
OWN = set(
    "admin_users auth_file cancel_wait_timeout dns_max_ttl listen_port logfile pidfile query_wait_timeout server_check_delay"
    " server_connect_timeout server_login_retry stats_users tcp_keepalive tcp_keepcnt tcp_keepidle tcp_keepintvl tcp_user_timeout"
    " unix_socket_dir user".split()
)
# What it writes where the inventory says nothing, and what PgBouncer has without a line.
DEFAULTS = {"listen_addr": ("*", "127.0.0.1"), "auth_type": ("scram-sha-256", "md5"), "pool_mode": ("transaction", "session")}


def lines(path, depth=0):
    """All lines of a file and of what it includes."""
    with open(path, encoding="utf-8", errors="replace") as f:
        for line in f:
            line = line.strip()
            if line.startswith("%include") and depth < 10:
                for included in sorted(glob.glob(line[len("%include"):].strip())):
                    for one in lines(included, depth + 1):
                        yield one
            elif line and line[0] not in "#;":
                yield line


def read(path):
    """The sections of a file: lists of names and values."""
    sections, section = {}, None
    for line in lines(path):
        if line.startswith("["):
            section = sections.setdefault(line.strip("[] \t"), [])
            continue
        name, equals, value = line.partition("=")
        if equals and section is not None:
            section.append((name.strip().strip("\"'"), value.strip()))
    return sections


def parameters(text):
    """The words of a connection string."""
    found = re.findall(r"(\w+)\s*=\s*('(?:[^']|'')*'|\S+)", text)
    return dict((k, v[1:-1].replace("''", "'") if v.startswith("'") else v) for k, v in found)


def resolve(host):
    try:
        return sorted(set(a[4][0] for a in socket.getaddrinfo(host, None)))
    except socket.gaierror:
        return []


def database_problems(name, has, p):
    wanted = p["databases"].get(name)
    if wanted is None and name.endswith("_ro") and name[:-3] in p["databases"]:
        return
    if wanted is None:
        if not p["databases_only"] and "fallback" not in p["extra"]:
            yield "no shard has the database %s: name it in lictor_shards.SHARD.databases, or set lictor_bouncer_extra.pgbouncer.fallback" % name
        return
    if not wanted.get("addresses"):
        return
    where = "its database %s" % name
    host, port = has.pop("host", ""), has.pop("port", "5432")
    at = resolve(host) if host and not host.startswith("/") else []
    if not set(at) & set(wanted["addresses"]):
        yield "%s leads to %s (%s), and the primary of %s is at %s" % (
            where, host or "this host", ", ".join(at), wanted["shard"], ", ".join(wanted["addresses"]))
    if port != str(wanted["port"]):
        yield "%s leads to port %s, and %s has port %s" % (where, port, wanted["shard"], wanted["port"])
    if has.get("dbname", name) != wanted["dbname"]:
        yield "%s is the database %s in PostgreSQL: name it %s=%s in lictor_shards.%s.databases" % (
            where, has["dbname"], name, has["dbname"], wanted["shard"])
    has.pop("dbname", None)
    for option in sorted(set(has) - set(wanted["options"])):
        yield "%s has the option %s: set it in lictor_shards.%s.pool (pool_size, pool_mode, or options)" % (where, option, wanted["shard"])


def setting_problems(has, p):
    for name, value in sorted(has.items()):
        if name in OWN or name in p["settings"] or name in DEFAULTS:
            continue
        yield "its %s is %s: set lictor_pgbouncer_settings.%s, to this value or to another one" % (name, value, name)
    for name, (then, without) in sorted(DEFAULTS.items()):
        now = has.get(name, without)
        if now != then and name not in p["settings"]:
            yield "its %s is %s and would be %s: set lictor_pgbouncer_settings.%s" % (name, now, then, name)
    if has.get("listen_port", "6432") != str(p["port"]):
        yield "it listens on port %s: set lictor_pgbouncer_port" % has.get("listen_port", "6432")
    directory = has.get("unix_socket_dir", "/tmp")
    if os.path.realpath(directory) != os.path.realpath(p["socket_dir"]):
        yield "its unix_socket_dir is %s, and the bouncer looks for it in %s: change that, and restart it" % (directory, p["socket_dir"])


def user_problems(path, p):
    try:
        with open(path, encoding="utf-8", errors="replace") as f:
            text = f.read()
    except (IOError, OSError) as e:
        yield "its auth_file cannot be read: %s" % e
        return
    known = dict((u["name"], u["password"]) for u in p["users"])
    for name, secret in re.findall(r'^\s*"((?:[^"]|"")*)"\s+"((?:[^"]|"")*)"', text, re.MULTILINE):
        name, secret = name.replace('""', '"'), secret.replace('""', '"')
        if name == "pgbouncer" or name not in known and p["others"]:
            continue
        if name not in known:
            yield "its user %s is none of lictor_users" % name
            continue
        same = secret == known[name]
        if secret.startswith("md5") and len(secret) == 35:
            same = secret[3:] == hashlib.md5((known[name] + name).encode()).hexdigest()
        if not same and not secret.startswith("SCRAM-SHA-256$"):
            yield "the password of its user %s is another one than in lictor_users" % name


def problems_of(p):
    problems, sections = [], read(p["path"])
    settings = dict(sections.get("pgbouncer", []))
    for name, text in sections.get("databases", []):
        problems += database_problems(name, parameters(text), p)
    if not p["databases_only"]:
        problems += setting_problems(settings, p)
        problems += user_problems(settings.get("auth_file", ""), p)
        for section in ("users", "peers"):
            if sections.get(section) and section not in p["extra"]:
                problems.append("it has a section [%s]: set lictor_bouncer_extra.pgbouncer.%s" % (section, section))
    return problems


def main():
    module = AnsibleModule(
        argument_spec=dict(
            path=dict(type="path", default="/etc/pgbouncer/pgbouncer.ini"),
            user=dict(type="str", default="postgres"),
            databases=dict(type="dict", required=True),
            databases_only=dict(type="bool", default=False),
            extra=dict(type="list", elements="str", default=[]),
            settings=dict(type="dict", default={}),
            port=dict(type="int", required=True),
            socket_dir=dict(type="path", required=True),
            users=dict(
                type="list",
                elements="dict",
                required=True,
                options=dict(name=dict(type="str", required=True), password=dict(type="str", required=True, no_log=True)),
            ),
            others=dict(type="bool", default=False),
        ),
        supports_check_mode=True,
    )
    try:
        # The user owns these files, and says in them which others are read.
        with rights_of(module.params["user"]):
            problems = problems_of(module.params)
    except (IOError, OSError) as e:
        module.fail_json(msg="PgBouncer's file cannot be read: %s" % e)
    module.exit_json(changed=False, problems=problems)


if __name__ == "__main__":
    main()
