# Copyright: the Lictor authors
# Apache License 2.0 (see LICENSE)
"""Consul's HTTP API at its servers. A token goes to nobody but them.

Any user of a host can listen on Consul's ports while it is restarted, and PostgreSQL's has a
certificate of the same CA, which is good for 127.0.0.1. So whoever answers must show the
certificate of a server: server.DATACENTER.consul, as servers ask it of each other.
"""

from __future__ import absolute_import, division, print_function

__metaclass__ = type

import http.client
import json
import socket
import ssl

# The module's option `api`.
API = dict(
    type="dict",
    required=True,
    options=dict(
        servers=dict(type="list", elements="str", required=True),
        ca_path=dict(type="path", required=True),
        server_name=dict(type="str", required=True),
        token=dict(type="str", required=True, no_log=True),
    ),
)


class Unreachable(Exception):
    """No server has answered, or none that shows what it must."""


class _Connection(http.client.HTTPSConnection):
    """One that asks for the certificate of another name than that by which it is reached."""

    def __init__(self, host, port, name, context, timeout):
        super().__init__(host, port, context=context, timeout=timeout)
        self.name = name

    def connect(self):
        # Not by HTTPS_PROXY: it is a host of this site.
        plain = socket.create_connection((self.host, self.port), self.timeout)
        try:
            self.sock = self._context.wrap_socket(plain, server_hostname=self.name)
        except BaseException:
            plain.close()
            raise


class Consul(object):
    def __init__(self, api):
        self.api = api

    def ask(self, method, path, body=None, timeout=10):
        """The status and the text of an answer, of the first server that can be reached."""
        data = None if body is None else json.dumps(body)
        headers = {"X-Consul-Token": self.api["token"], "Content-Type": "application/json"}
        problems = []
        try:
            context = ssl.create_default_context(cafile=self.api["ca_path"])
        except (OSError, ssl.SSLError) as e:
            raise Unreachable("%s: %s" % (self.api["ca_path"], e))
        # A CA of one's own may be made as the older rules have it.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        for address in self.api["servers"]:
            host, _colon, port = address.rpartition(":")
            connection = _Connection(host.strip("[]"), int(port), self.api["server_name"], context, timeout)
            try:
                try:
                    connection.connect()
                except OSError as e:  # of TLS, too
                    problems.append("%s (as %s): %s" % (address, self.api["server_name"], e))
                    continue
                connection.request(method, path, body=data, headers=headers)
                answer = connection.getresponse()
                return answer.status, answer.read().decode("utf-8", "replace")
            except (OSError, http.client.HTTPException) as e:
                raise Unreachable("%s: %s" % (address, e))
            finally:
                connection.close()
        raise Unreachable("; ".join(problems))
