"""What the last maintenance left to know for the next: ``cfs-tags/maintain.json``.

A collection that found nothing to do leaves a mark: a digest of the time stamps of all directories of objects, links and refs.
What is dead was made, or its last link went, in one of them, and no link can be changed but by another that takes its name.

The stamps are read before the collection looks at anything, and each is so old by then that any change after that gives
another one (a change within the same tick of the clock would not: there is no mark then).  So where they are the same once
more, nothing has been changed since before that collection looked, and what it found is true still, whoever else was at work.

It names the objects, too, that a check found to be damaged: they are read again by each maintenance until they are right
or gone, so that a finding is not said once and forgotten.

Where the file is lost, or says what it cannot, everything is looked at again: damage is found anew when its turn comes.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import NamedTuple

from cfs_tags.errors import FormatError, SystemFailure
from cfs_tags.formats import json_fields
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
    """What the file says; nothing where it is absent or makes no sense.

    Raises:
        SystemFailure: the system would not give it.
    """
    try:
        data = repo.read_file(FILE, _LIMIT)
        found = json_fields.load(data, "what maintenance knows", _LIMIT) if data is not None else {}
    except FormatError:
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
    pending = [f"{layout.OBJECTS}/{parent}" for parent in reversed(object_directories(repo))]
    pending += [layout.OBJECTS, layout.STREAMS, layout.IMAGES, layout.STREAM_REFS, layout.IMAGE_REFS]
    while pending:
        path = pending.pop()
        fd = repo.directory(path)
        if fd is None:
            continue
        try:
            with repo.reading(path):
                status = os.fstat(fd)
                if path.startswith((layout.STREAM_REFS, layout.IMAGE_REFS)):
                    pending += [f"{path}/{name}" for name in _directories_in(fd)]
        finally:
            os.close(fd)
        stamps = status.st_mtime_ns, status.st_ctime_ns
        if not is_settled(max(stamps)):
            return ""
        digest.update(f"{path}\0{status.st_dev} {status.st_ino} {stamps}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _directories_in(fd: int) -> list[str]:
    with os.scandir(fd) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
