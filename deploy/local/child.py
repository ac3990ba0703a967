"""Runs a program that ends when its parent does: `child.py <parent pid> <signal> <uid:gid or -> <program> [arguments]`.

It stands alone (run with `python -I -S`): it drops privileges, asks the kernel for a signal at the parent's death (in
this order, since a change of credentials clears the request) and becomes the program.
"""

from __future__ import annotations

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1
_CANNOT_RUN = 127  # what a shell says for a program that is not there


def main() -> None:
    """Becomes the program."""
    parent, death, user, *command = sys.argv[1:]
    if user != "-":
        uid, gid = (int(part) for part in user.split(":"))
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    os.environ.pop("LC_CTYPE", None)  # Python's own doing, for want of a locale
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(death), 0, 0, 0)
    if os.getppid() != int(parent):
        sys.exit(1)  # the parent died before the request was made
    try:
        os.execvpe(command[0], command, os.environ)  # noqa: S606 -- no shell is the point
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        sys.exit(_CANNOT_RUN)


main()
