#!/usr/bin/python
# Copyright: the Lictor authors
# Apache License 2.0 (see LICENSE)
"""Policies and tokens of Consul's ACLs: what is missing is made, what differs is changed, what is retired is deleted."""

from __future__ import absolute_import, division, print_function

__metaclass__ = type

DOCUMENTATION = r"""
module: consul_acl
short_description: Keep policies and tokens of Consul's ACLs
description:
  - Makes and updates ACL policies (by name) and tokens (by accessor id). Deletes those that are named as absent. Others are left alone.
  - Supports check mode and diff. Secrets of tokens are not shown.
options:
  api:
    description: How Consul is reached.
    type: dict
    required: true
    suboptions:
      servers: {description: "Addresses of servers, as host:port.", type: list, elements: str, required: true}
      ca_path: {description: The CA of their certificates., type: path, required: true}
      server_name: {description: "The name that is in them, server.DATACENTER.consul.", type: str, required: true}
      token: {description: A token that may write ACLs., type: str, required: true}
  policies:
    description: Policies that must be there.
    type: list
    elements: dict
    default: []
    suboptions:
      name: {description: "Its name, by which it is found.", type: str, required: true}
      rules: {description: Its rules., type: str, required: true}
      description: {description: What it is for., type: str, default: ""}
  tokens:
    description: Tokens that must be there.
    type: list
    elements: dict
    default: []
    suboptions:
      accessor_id: {description: "A UUID, by which it is found.", type: str, required: true}
      secret_id: {description: The secret; that of a token that is there already is not changed., type: str, required: true}
      description: {description: What it is for., type: str, required: true}
      policies: {description: Names of its policies., type: list, elements: str, default: []}
      node_identities:
        description: Nodes whose agents it is for.
        type: list
        elements: dict
        default: []
        suboptions:
          node: {description: The node's name., type: str, required: true}
          datacenter: {description: Its datacenter., type: str, required: true}
  absent_tokens:
    description: Accessor ids of tokens that must not be there.
    type: list
    elements: str
    default: []
  absent_policies:
    description: Names of policies that must not be there.
    type: list
    elements: str
    default: []
  timeout:
    description: Seconds to wait for Consul to have ACLs ready.
    type: int
    default: 60
author: The Lictor authors
"""

EXAMPLES = r"""
- name: Keep ACLs
  lictor_ha.lictor.consul_acl:
    api:
      servers: [127.0.0.1:8501]
      ca_path: /etc/consul.d/tls/ca.pem
      server_name: server.dc1.consul
      token: "{{ consul_management_token }}"
    policies:
      - {name: readers, rules: 'key_prefix "" { policy = "read" }'}
    tokens:
      - {accessor_id: 3fdf..., secret_id: 9ab1..., description: a reader, policies: [readers]}
"""

RETURN = r"""
written:
  description: Names of the policies and descriptions of the tokens that were made, changed or deleted.
  type: list
  elements: str
  returned: always
"""

import json
import time

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.text.converters import to_native
from ansible_collections.lictor_ha.lictor.plugins.module_utils.consul import API, Consul, Unreachable


class ACLs(object):
    def __init__(self, module):
        self.module = module
        self.consul = Consul(module.params["api"])
        self.deadline = time.time() + module.params["timeout"]

    def ask(self, method, path, body=None):
        """The answer, or None when there is no such thing. Waits while Consul gets ready."""
        while True:
            try:
                status, text = self.consul.ask(method, path, body)
            except Unreachable as e:
                status, text = -1, to_native(e)
            if status == 200:
                return json.loads(text or "null")
            # Consul answers 403 for a token that does not exist.
            if status == 404 or (status == 403 and "ACL not found" in text and method == "GET" and "/token/" in path):
                return None
            early = status in (-1, 500) or "ACL not found" in text or "not bootstrapped" in text
            if not early or time.time() > self.deadline:
                self.module.fail_json(msg="%s %s: %s %s" % (method, path, status, text))
            time.sleep(0.25)


def wanted_token(token):
    return {
        "AccessorID": token["accessor_id"],
        "Description": token["description"],
        "Policies": sorted(token["policies"]),
        "NodeIdentities": sorted("%s/%s" % (n["node"], n["datacenter"]) for n in token["node_identities"]),
    }


def found_token(token):
    if token is None:
        return {}
    return {
        "AccessorID": token["AccessorID"],
        "Description": token.get("Description", ""),
        "Policies": sorted(p["Name"] for p in token.get("Policies") or []),
        "NodeIdentities": sorted("%s/%s" % (n["NodeName"], n["Datacenter"]) for n in token.get("NodeIdentities") or []),
    }


def main():
    module = AnsibleModule(
        argument_spec={
            "api": API,
            "policies": {"type": "list", "elements": "dict", "default": [], "options": {
                "name": {"type": "str", "required": True},
                "rules": {"type": "str", "required": True},
                "description": {"type": "str", "default": ""},
            }},
            # Not all of a token is secret: Ansible blots what is out of everything that
            # the module says, and a node may have a name that is part of many words.
            "tokens": {"type": "list", "elements": "dict", "default": [], "no_log": False, "options": {
                "accessor_id": {"type": "str", "required": True},
                "secret_id": {"type": "str", "required": True, "no_log": True},
                "description": {"type": "str", "required": True},
                "policies": {"type": "list", "elements": "str", "default": []},
                "node_identities": {"type": "list", "elements": "dict", "default": [], "options": {
                    "node": {"type": "str", "required": True},
                    "datacenter": {"type": "str", "required": True},
                }},
            }},
            "absent_tokens": {"type": "list", "elements": "str", "default": [], "no_log": False},
            "absent_policies": {"type": "list", "elements": "str", "default": []},
            "timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    consul = ACLs(module)
    before, after, written = {}, {}, []

    for policy in module.params["policies"]:
        body = {"Name": policy["name"], "Rules": policy["rules"], "Description": policy["description"]}
        found = consul.ask("GET", "/v1/acl/policy/name/" + policy["name"])
        known = {key: found.get(key, "") for key in body} if found else {}
        if known == body:
            continue
        before["policy " + policy["name"]], after["policy " + policy["name"]] = known, body
        written.append(policy["name"])
        if not module.check_mode:
            path = "/v1/acl/policy" + ("/" + found["ID"] if found else "")
            consul.ask("PUT", path, body)

    for token in module.params["tokens"]:
        want = wanted_token(token)
        found = consul.ask("GET", "/v1/acl/token/" + token["accessor_id"])
        known = found_token(found)
        same_secret = found is None or found.get("SecretID") == token["secret_id"]
        if found is not None and not same_secret:
            module.fail_json(
                msg="token %s (%s) has another secret in Consul: delete it there (consul acl token delete), or give this one another accessor_id"
                % (token["accessor_id"], want["Description"])
            )
        if known == want:
            continue
        before["token " + token["accessor_id"]], after["token " + token["accessor_id"]] = known, want
        written.append(want["Description"])
        if not module.check_mode:
            body = {
                "AccessorID": token["accessor_id"],
                "SecretID": token["secret_id"],
                "Description": want["Description"],
                "Policies": [{"Name": name} for name in want["Policies"]],
                "NodeIdentities": [
                    {"NodeName": n["node"], "Datacenter": n["datacenter"]} for n in token["node_identities"]
                ],
            }
            consul.ask("PUT", "/v1/acl/token" + ("/" + token["accessor_id"] if found else ""), body)

    # Tokens first: a policy that is gone takes its rights from those that have it.
    for accessor in module.params["absent_tokens"]:
        found = consul.ask("GET", "/v1/acl/token/" + accessor)
        if found is None:
            continue
        before["token " + accessor], after["token " + accessor] = found_token(found), {}
        written.append(found.get("Description") or accessor)
        if not module.check_mode:
            consul.ask("DELETE", "/v1/acl/token/" + accessor)

    for name in module.params["absent_policies"]:
        found = consul.ask("GET", "/v1/acl/policy/name/" + name)
        if not found:
            continue
        before["policy " + name], after["policy " + name] = {"Name": name, "Rules": found.get("Rules", "")}, {}
        written.append(name)
        if not module.check_mode:
            consul.ask("DELETE", "/v1/acl/policy/" + found["ID"])

    text = {name: json.dumps(value, indent=2, sort_keys=True) + "\n" for name, value in (("before", before), ("after", after))}
    module.exit_json(changed=bool(written), written=written, diff=text)


if __name__ == "__main__":
    main()
