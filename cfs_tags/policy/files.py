"""Where policies are: ``cfs-tags/policy.toml`` of a repository, and one for all repositories of a system.

What is parsed is imported when there is a file: most repositories have none, and every deletion asks.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from cfs_tags.errors import CfsTagsError, NotFoundError, SystemFailure, UsageError
from cfs_tags.repo import forgetting, layout
from cfs_tags.repo.directory import leads_nowhere

if TYPE_CHECKING:
    from collections.abc import Callable

    from cfs_tags.policy.rules import Policy
    from cfs_tags.repo.store import ReadRepo

_LIMIT = 1 << 20
"""Bytes of the longest policy that is read."""
FILE = f"{layout.STATE}/policy.toml"
"""The policy of a repository."""
_SYSTEM = "/etc/cfs-tags/policy.toml"
"""The policy of a system."""


def read(repo: ReadRepo) -> Policy | None:
    """The policy of a repository, before that of the system; None without either.

    Raises:
        UsageError: ``invalid-policy``.
        FormatError, SystemFailure: a file cannot be read.
    """
    texts = ((repo.read_file(FILE, _LIMIT), os.path.join(repo.path, FILE)), (_read_text(_SYSTEM, _open_no_pipe), _SYSTEM))
    found: Policy | None = None
    for text, path in texts:
        if text is not None:
            from cfs_tags.policy.rules import parse

            one = parse(text, path)
            found = one if found is None else found.before(one)
    return found


def read_alone(path: str) -> Policy:
    """The policy of a file that was named.

    Raises:
        NotFoundError: ``policy-not-found``.
        UsageError: ``invalid-policy``.
        SystemFailure: it cannot be read.
    """
    from cfs_tags.policy.rules import parse

    text = _read_text(path)
    if text is None:
        raise NotFoundError("policy-not-found", path=path)
    return parse(text, path)


def kept_by_delete(repo: ReadRepo) -> int:
    """Seconds that a tag which is deleted stays in the trash where nobody says how long; 0: it does not go there.

    Raises:
        as :func:`read`.
    """
    found = read(repo)
    return 0 if found is None else found.kept_by_delete


def kept_log(repo: ReadRepo) -> float | None:
    """Seconds that an entry of the log stays; None, for ever, where a policy cannot be read: that stops no collection."""
    try:
        found = read(repo)
    except CfsTagsError:
        return None
    return forgetting.USUAL if found is None or found.keep_log is None else float(found.keep_log)


def _open_no_pipe(path: str, flags: int) -> int:
    """Opens a file, or what masks one: nobody writes into a pipe in its place, and every deletion would wait for that."""
    fd = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise UsageError("invalid-policy", path=path, reason="it is a pipe")


def _read_text(path: str, opener: Callable[[str, int], int] | None = None) -> bytes | None:
    """A file of the system's; None where there is none.  What a link leads to may be on a disk that is not mounted."""
    try:
        with open(path, "rb", opener=opener) as file:
            text = file.read(_LIMIT + 1)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not any(map(leads_nowhere, (path, os.path.dirname(path)))):
            return None
        raise SystemFailure.of(error, "read", path) from error
    if len(text) > _LIMIT:
        raise UsageError("invalid-policy", path=path, reason=f"it is longer than {_LIMIT} bytes")
    return text
