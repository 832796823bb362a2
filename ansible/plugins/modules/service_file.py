#!/usr/bin/python
# Copyright: the Lictor authors
# Apache License 2.0 (see LICENSE)
"""Files and directories of a service's user."""

from __future__ import absolute_import, division, print_function

__metaclass__ = type

DOCUMENTATION = r"""
module: service_file
short_description: Keep files and directories of a service's user
description:
  - Makes and changes what is a service's user's own, or is in a directory of its. Ansible's own modules do so as root, and follow links or
    chown by name - so whoever owns a directory on the way would have root write or give away any file of the host.
  - This one has the rights of I(owner) wherever another user than root can change what the path leads to.
options:
  path:
    description: The file or directory.
    type: path
    required: true
  owner:
    description: The service's user.
    type: str
    required: true
  group:
    description: Its group, one that the user is in. The user's own if it is left out.
    type: str
  mode:
    description: The mode, in octal digits. Of a file that is changed by I(line) it stays as it is.
    type: str
  state:
    description: What it is. A directory's parents are made, too.
    type: str
    choices: [file, directory]
    default: file
  content:
    description: All that stands in the file.
    type: str
  line:
    description: A line that must be in the file, in the place of the last one that I(regexp) finds, or at its end.
    type: str
  regexp:
    description: Finds the line.
    type: str
author: [the Lictor authors (@lictor-ha)]
"""

EXAMPLES = r"""
- name: Make the data directory
  lictor_ha.lictor.service_file:
    path: /var/lib/postgresql/15
    owner: postgres
    mode: "0755"
    state: directory
"""

RETURN = r"""
"""

import grp
import os
import pwd
import re
import stat
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.text.converters import to_bytes, to_text
from ansible_collections.lictor_ha.lictor.plugins.module_utils.osuser import keeper_of


class Refused(Exception):
    pass


def owned(found, uid, gid, mode):
    return found.st_uid == uid and found.st_gid == gid and (mode is None or stat.S_IMODE(found.st_mode) == mode)


def give(fd, uid, gid, mode):
    """Sets owner, group and mode of an open file."""
    found = os.fstat(fd)
    if (found.st_uid, found.st_gid) != (uid, gid):
        os.fchown(fd, uid, gid)
    if mode is not None and stat.S_IMODE(found.st_mode) != mode:
        os.fchmod(fd, mode)


def directory(path, uid, gid, mode, dry):
    if not os.path.isdir(path):
        if dry:
            return True
        os.makedirs(path, 0o755)
        changed = True
    else:
        found = os.stat(path)
        if found.st_uid != uid and os.geteuid() != 0:
            raise Refused("it is another user's (%d), and in a directory that is not root's: see what it is, and chown it by hand if it is right" % found.st_uid)
        changed = not owned(found, uid, gid, mode)
    if changed and not dry:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            give(fd, uid, gid, mode)
        finally:
            os.close(fd)
    return changed


def read(path):
    """What stands in a file, and its mode; nothing of one that is not there."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return None, None
    with os.fdopen(fd, "rb") as f:
        found = os.fstat(f.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise Refused("it is no regular file")
        return f.read(), found


def with_line(text, regexp, line):
    """The text with the line in the place of the last one that is found, or at its end."""
    lines = to_text(text or b"").splitlines()
    at = [i for i, one in enumerate(lines) if re.search(regexp, one)] if regexp else [i for i, one in enumerate(lines) if one == line]
    if at:
        lines[at[-1]] = line
    else:
        lines.append(line)
    return to_bytes("\n".join(lines) + "\n")


def file(path, uid, gid, mode, wanted, dry):
    """Another file takes its place in one step. Of a link it is what that leads to."""
    path = os.path.realpath(path)
    before, found = read(path)
    after = wanted(before)
    if mode is None:
        mode = stat.S_IMODE(found.st_mode) if found else 0o644
    if found and before == after and owned(found, uid, gid, mode):
        return False, before, after
    if not dry:
        fd, new = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".ansible-")
        try:
            with os.fdopen(fd, "wb") as f:
                f.write(after)
                f.flush()
                give(f.fileno(), uid, gid, mode)
                os.fsync(f.fileno())
            os.rename(new, path)
        except BaseException:
            os.unlink(new)
            raise
    return True, before, after


def main():
    module = AnsibleModule(
        argument_spec=dict(
            path=dict(type="path", required=True),
            owner=dict(type="str", required=True),
            group=dict(type="str"),
            mode=dict(type="str"),
            state=dict(type="str", choices=["file", "directory"], default="file"),
            content=dict(type="str", no_log=True),
            line=dict(type="str"),
            regexp=dict(type="str"),
        ),
        mutually_exclusive=[("content", "line")],
        required_if=[("state", "file", ("content", "line"), True)],
        supports_check_mode=True,
    )
    p = module.params
    try:
        user = pwd.getpwnam(p["owner"])
        gid = grp.getgrnam(p["group"]).gr_gid if p["group"] else user.pw_gid
        mode = None if p["mode"] is None else int(p["mode"], 8)
    except KeyError as e:
        if module.check_mode:  # a package brings the user
            module.exit_json(changed=True)
        module.fail_json(msg="%s: %s" % (p["path"], to_text(e)))
    except ValueError:
        module.fail_json(msg="mode %s: must be octal digits" % p["mode"])
    diff = {}
    try:
        with keeper_of(p["path"], p["owner"]):
            if p["state"] == "directory":
                changed = directory(p["path"], user.pw_uid, gid, mode, module.check_mode)
            else:
                def wanted(before):
                    return with_line(before, p["regexp"], p["line"]) if p["content"] is None else to_bytes(p["content"])
                changed, before, after = file(p["path"], user.pw_uid, gid, mode, wanted, module.check_mode)
                if p["content"] is None:
                    diff = dict(before=to_text(before or b"", errors="replace"), after=to_text(after, errors="replace"))
    except (OSError, Refused) as e:
        module.fail_json(msg="%s, which is %s's: %s" % (p["path"], p["owner"], to_text(e)))
    module.exit_json(changed=changed, diff=diff)


if __name__ == "__main__":
    main()
