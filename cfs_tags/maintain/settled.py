"""What the last maintenance left to know for the next: ``cfs-tags/maintain.json``.

A collection that found nothing to do leaves a mark: a digest of all links and refs, names and targets, and of the time stamps
of the directories of objects.  As long as these are the same there is nothing to do either: what is dead was made, or its last
link went, since.  A directory whose time stamp could be given again by a change right now leaves no mark.

It names the objects, too, that a check found to be damaged: they are read again by each maintenance until they are right
or gone, so that a finding is not said once and forgotten.

Where the file is lost, or says what it cannot, everything is looked at again: damage is found anew when its turn comes.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import NamedTuple

from cfs_tags.errors import CfsTagsError, SystemFailure
from cfs_tags.formats import json_fields
from cfs_tags.gc.mark import Snapshot
from cfs_tags.inventory import object_directories
from cfs_tags.repo import fsops, layout
from cfs_tags.repo.directory import is_settled
from cfs_tags.repo.store import ReadRepo, WriteRepo

FILE = f"{layout.STATE}/maintain.json"
_LIMIT = 1 << 20
MOST_WRONG = 4096
"""Damaged objects that are kept in mind: more are found again when their turn comes."""
_HEX = frozenset("0123456789abcdef")


class Known(NamedTuple):
    """What is known from the last maintenance.

    Attributes:
        mark: what the repository was when a collection found nothing to do; empty where none did.
        marked: when that was, in seconds since 1970.
        checked: up to when objects were checked as often as they are to be, in seconds since 1970; 0 before the first check.
        place: the object, or start of one, at which the next check begins.
        wrong: objects that were damaged when they were read last.
    """

    mark: str = ""
    marked: float = 0.0
    checked: float = 0.0
    place: str = ""
    wrong: tuple[str, ...] = ()


def read(repo: ReadRepo) -> Known:
    """What the file says; nothing where it is absent or makes no sense."""
    try:
        data = repo.read_file(FILE, _LIMIT)
        found = json_fields.load(data, "what maintenance knows", _LIMIT) if data is not None else {}
    except CfsTagsError:
        return Known()
    mark, marked, checked, place, wrong = (found.get(name, Known._field_defaults.get(name)) for name in Known._fields)
    if not (isinstance(mark, str) and isinstance(place, str) and set(place) <= _HEX):
        return Known()
    if not all(isinstance(time, int | float) and 0 <= time < 1 << 40 for time in (marked, checked)):
        return Known()
    if not (isinstance(wrong, list | tuple) and all(isinstance(name, str) and _is_object(repo, name) for name in wrong)):
        return Known()
    return Known(mark, marked, checked, place, tuple(wrong))  # type: ignore[arg-type]


def _is_object(repo: ReadRepo, name: str) -> bool:
    return len(name) == repo.algorithm.hex_length and set(name) <= _HEX


def write(repo: WriteRepo, known: Known) -> None:
    """Remember it.

    Raises:
        SystemFailure: the system refused.
    """
    try:
        repo.make_directories(layout.STATE)
        fsops.replace_file(repo.fd, FILE, json.dumps(known._asdict()).encode("ascii"), f"{FILE}.new")
    except OSError as error:
        raise SystemFailure.of(error, "write", os.path.join(repo.path, FILE)) from error


def mark(repo: ReadRepo) -> str:
    """What the repository is now; empty where a change right now could leave no trace."""
    digest = hashlib.sha256()
    for links in Snapshot.read(repo):
        for name, link in sorted(links.items()):
            digest.update(f"{name}\0{link}\0".encode("utf-8", "surrogateescape"))
        digest.update(b"\0")
    for parent in object_directories(repo):
        path = f"{layout.OBJECTS}/{parent}"
        fd = repo.directory(path)
        if fd is None:
            return ""
        try:
            with repo.reading(path):
                status = os.fstat(fd)
        finally:
            os.close(fd)
        if not is_settled(status.st_mtime_ns):
            return ""
        digest.update(f"{parent} {status.st_dev} {status.st_ino} {status.st_mtime_ns}\0".encode("ascii"))
    return digest.hexdigest()
