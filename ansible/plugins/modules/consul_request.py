#!/usr/bin/python
# Copyright: the Lictor authors
# Apache License 2.0 (see LICENSE)
"""One request to a server of Consul, with a token that nobody else gets."""

from __future__ import absolute_import, division, print_function

__metaclass__ = type

DOCUMENTATION = r"""
module: consul_request
short_description: Ask a server of Consul something
description:
  - Sends one request, with a token, to the first of Consul's servers that can be reached and shows a server's certificate.
  - In a dry run it sends nothing but GET.
options:
  api:
    description: How Consul is reached.
    type: dict
    required: true
    suboptions:
      servers: {description: "Addresses of servers, as host:port.", type: list, elements: str, required: true}
      ca_path: {description: The CA of their certificates., type: path, required: true}
      server_name: {description: "The name that is in them, server.DATACENTER.consul.", type: str, required: true}
      token: {description: The token., type: str, required: true}
  method:
    description: The request's method.
    type: str
    default: GET
  path:
    description: Its path, with /v1/.
    type: str
    required: true
  body:
    description: What is sent, as JSON. It may be secret, and is not shown.
    type: dict
  status_code:
    description: What may be answered.
    type: list
    elements: int
    default: [200]
  timeout:
    description: Seconds to wait for the answer.
    type: int
    default: 30
author: [the Lictor authors (@lictor-ha)]
"""

EXAMPLES = r"""
- name: Ask for a key
  lictor_ha.lictor.consul_request:
    api:
      servers: [10.0.0.1:8501]
      ca_path: /etc/consul.d/tls/ca.pem
      server_name: server.dc1.consul
      token: "{{ consul_management_token }}"
    path: /v1/kv/lictor/routes/service/orders
    status_code: [200, 404]
"""

RETURN = r"""
status:
  description: The answer's status, -1 if there was none.
  returned: always
  type: int
json:
  description: What was answered, if it was JSON.
  returned: success
  type: raw
"""

import json

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.text.converters import to_native
from ansible_collections.lictor_ha.lictor.plugins.module_utils.consul import API, Consul, Unreachable


def main():
    module = AnsibleModule(
        argument_spec=dict(
            api=API,
            method=dict(type="str", default="GET"),
            path=dict(type="str", required=True),
            body=dict(type="dict", no_log=True),
            status_code=dict(type="list", elements="int", default=[200]),
            timeout=dict(type="int", default=30),
        ),
        supports_check_mode=True,
    )
    p = module.params
    what = "%s %s" % (p["method"], p["path"])
    if module.check_mode and p["method"] != "GET":
        module.exit_json(changed=True, status=-1)
    try:
        status, text = Consul(p["api"]).ask(p["method"], p["path"], p["body"], timeout=p["timeout"])
    except Unreachable as e:
        module.fail_json(msg="%s: no server of Consul answers: %s" % (what, to_native(e)), status=-1)
    if status not in p["status_code"]:
        module.fail_json(msg="%s: Consul answers %d: %s" % (what, status, text.strip()), status=status)
    result = dict(changed=p["method"] != "GET", status=status)
    try:
        result["json"] = json.loads(text)
    except ValueError:  # "No such key", say
        pass
    module.exit_json(**result)


if __name__ == "__main__":
    main()
