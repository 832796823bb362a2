# Copyright: the Lictor authors
# Apache License 2.0 (see LICENSE)
"""Touches files as the user whose directories they are in, where root runs this.

The owner of a directory can put a link to anything in the place of any file in it, also
between a look and a write. So root's rights are used only where nobody but root can change
what a path leads to, and everywhere else those of the user, to whom the kernel then refuses
what is none of its own. (Lictor's agents do the same: package agent/osuser.)
"""

from __future__ import absolute_import, division, print_function

__metaclass__ = type

import contextlib
import os
import pwd
import stat


def only_roots(path):
    """Whether nobody but root can change what a path leads to: each directory on the way, links followed, is root's alone."""
    at, todo, links = "/", path.split("/")[::-1], 0
    while todo:
        part = todo.pop()
        if part in ("", "."):
            continue
        directory = os.lstat(at)
        if directory.st_uid != 0 or directory.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return False
        if part == "..":
            at = os.path.dirname(at)
            continue
        entry = os.path.join(at, part)
        try:
            found = os.lstat(entry)
        except FileNotFoundError:
            return True  # it is to be made here
        if not stat.S_ISLNK(found.st_mode):
            at = entry
            continue
        links += 1
        if links > 40:
            return False
        target = os.readlink(entry)
        if target.startswith("/"):
            at = "/"
        todo.extend(target.split("/")[::-1])
    return True


@contextlib.contextmanager
def rights_of(name):
    """Files are touched with this user's rights. The process stays root's: the user can neither signal nor trace it."""
    if os.geteuid() != 0:
        yield
        return
    try:
        user = pwd.getpwnam(name)
    except KeyError:
        raise OSError("there is no user %s" % name)
    groups, gid = os.getgroups(), os.getegid()
    try:
        os.setgroups(os.getgrouplist(user.pw_name, user.pw_gid))
        os.setegid(user.pw_gid)
        os.seteuid(user.pw_uid)
        yield
    finally:
        os.seteuid(0)
        os.setegid(gid)
        os.setgroups(groups)


def keeper_of(path, name):
    """The rights with which root touches a path that is the user's."""
    return contextlib.nullcontext() if only_roots(path) else rights_of(name)
