"""Root in a repository that belongs to another user: the program becomes that user, for good, before it opens anything there.

The owner of a repository can change every directory of it while root works in it.  As that user, the program can do no
more than the user could, so there is nothing to win.

It becomes the user as a login does, with the group and the other groups that the user has in the system's tables: it can
read what the user can read (the source of an import, for one), and neither less nor more.  For a user whom the tables do
not know it takes the group of the repository and no other; group 0 it does not take: that may read much that is root's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

from cfs_tags.errors import RefusedError

_WHOLE_MAP = ("0", "0", "4294967295")
"""The line of ``/proc/self/uid_map`` where every user is mapped to itself: the first user namespace."""

_became: str | None = None


def became() -> str | None:
    """The name of the user that this process became; None if it did not change."""
    return _became


def opened(path: str, say: Callable[[str], None]) -> int:
    """Open the directory of a repository and, as root, become the user who owns it; -1 where there is nothing to do.

    Args:
        path: of the repository.
        say: takes a line for people that says so.

    Returns:
        a descriptor, which the caller closes: the user may be unable to come to the directory by its path.

    Raises:
        RefusedError: code ``owner-not-to-be``.
    """
    if os.geteuid() != 0:
        return -1
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return -1  # opening it says why
    found = os.fstat(fd)
    if found.st_uid != 0:
        try:
            _become(path, found.st_uid, found.st_gid, say)
        except BaseException:
            os.close(fd)
            raise
    return fd


def _become(path: str, uid: int, gid: int, say: Callable[[str], None]) -> None:
    global _became
    import pwd

    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        user = None
    if user is not None:
        gid = user.pw_gid
    elif gid == 0:
        gid = _overflow("gid")
    reason = "this user namespace does not map the owner" if _is_unmapped(uid) else None
    if reason is None:
        places = _hold_program()
        try:
            if user is not None:
                os.initgroups(user.pw_name, gid)
            else:
                os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
        except OSError as error:
            reason = error.strerror or str(error)
        else:
            reason = _way_back(uid, gid)
            _import_from(places)
    if reason is not None:
        raise RefusedError("owner-not-to-be", path=path, owner=uid, reason=reason)
    name = user.pw_name if user is not None else str(uid)
    _became = f"{name} ({uid})" if user is not None else name
    for variable in [variable for variable in os.environ if variable.startswith("XDG_")]:
        del os.environ[variable]  # they name places of root's
    os.environ.update(HOME=user.pw_dir if user is not None else "/", USER=name, LOGNAME=name)
    say(f"{path} belongs to user {_became}: working as that user")


def _hold_program() -> dict[str, int]:
    """Descriptors of the directories that modules are imported from: the user may be unable to come to them by their paths,
    where the program is installed in root's own home."""
    places: dict[str, int] = {}
    for path in {*sys.path, *(path for paths in _package_paths() for path in paths)}:
        with suppress(OSError):
            places[path] = os.open(path or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return places


def _import_from(places: dict[str, int]) -> None:
    """Have modules that are imported later come from these descriptors where this process cannot read the paths any more."""
    new = {}
    for path, fd in places.items():
        if os.access(path or ".", os.R_OK | os.X_OK, effective_ids=True):
            os.close(fd)
        else:
            new[path] = f"/proc/self/fd/{fd}"
    for paths in (sys.path, *_package_paths()):
        paths[:] = [new.get(path, path) for path in paths]


def _package_paths() -> list[list[str]]:
    return [paths for module in list(sys.modules.values()) if isinstance(paths := getattr(module, "__path__", None), list)]


def _is_unmapped(uid: int) -> bool:
    """Whether a user id is the one that stands for all users that this user namespace does not map."""
    with open("/proc/self/uid_map", encoding="ascii") as table:
        maps = [tuple(line.split()) for line in table]
    return maps != [_WHOLE_MAP] and uid == _overflow("uid")


def _overflow(kind: Literal["uid", "gid"]) -> int:
    with open(f"/proc/sys/kernel/overflow{kind}", encoding="ascii") as file:
        return int(file.read())


def _way_back(uid: int, gid: int) -> str | None:
    """Why this process could still do more than the user, None where it could not."""
    if os.getresuid() != (uid, uid, uid) or os.getresgid() != (gid, gid, gid):
        return "the system kept another identity"
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        held = [line for line in status if line.startswith(("CapPrm:", "CapEff:", "CapAmb:"))]
    if len(held) != 3 or any(int(line.split()[1], 16) for line in held):
        return "the system kept capabilities"
    try:
        os.setresuid(-1, 0, -1)
    except PermissionError:
        return None
    return "there is a way back to root"
