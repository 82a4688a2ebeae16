"""Objects: which there are, and whether each has the fs-verity digest that it is named by."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from cfs_tags.errors import FormatError
from cfs_tags.fsck.findings import Finding, finding
from cfs_tags.inventory import names_of_objects, object_directories
from cfs_tags.repo import layout, verity
from cfs_tags.repo.store import ReadRepo
from cfs_tags.values import ObjectId

PIECE = 1 << 20
"""Bytes that are read at once."""

_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class Inventory(NamedTuple):
    """The objects by digest (hexadecimal), each with its size in bytes where sizes were asked for, else 0."""

    objects: dict[str, int]
    findings: list[Finding]


def inventory(repo: ReadRepo, *, sizes: bool) -> Inventory:
    """List the objects.

    What stands in ``objects/`` and is no directory of objects is left alone: the collectors of the peers look into ``00`` to
    ``ff`` alone (composefs-rs 0.9.4, ``repository.rs``).
    """
    found: dict[str, int] = {}
    findings: list[Finding] = []
    try:
        parents = object_directories(repo)
    except FormatError as error:
        return Inventory({}, [finding("not-a-directory", layout.OBJECTS, f"it is {error.found}")])
    for parent in parents:
        path = f"{layout.OBJECTS}/{parent}"
        try:
            fd = repo.directory(path)
        except FormatError as error:
            findings.append(finding("not-a-directory", path, f"it is {error.found}"))
            continue
        if fd is None:
            continue
        try:
            with repo.reading(path), os.scandir(fd) as scan:
                entries = list(scan)
            # there may be a million: all are compared at once, and a loop looks for a wrong name only if there is one
            files = [entry for entry in entries if entry.is_file(follow_symlinks=False)]
            names, _ = names_of_objects(repo, parent, [entry.name for entry in files])
            if len(names) < len(entries):
                findings += _others(path, entries, frozenset(names), repo.algorithm.hex_length)
            found.update(dict.fromkeys([parent + name for name in names], 0))
            if sizes:
                for name in names:
                    with suppress(FileNotFoundError):
                        found[parent + name] = os.stat(name, dir_fd=fd, follow_symlinks=False).st_size
        finally:
            os.close(fd)
    return Inventory(found, findings)


def _others(path: str, entries: Sequence[os.DirEntry[str]], objects: frozenset[str], digits: int) -> Iterator[Finding]:
    """What is no object in a directory of objects."""
    name_of = re.compile(f"[0-9a-f]{{{digits - 2}}}", re.ASCII).fullmatch
    for entry in entries:
        if entry.name in objects:
            continue
        if name_of(entry.name) is None:
            yield finding("bad-object-name", f"{path}/{entry.name}", f"no fs-verity digest of {digits} digits")
        else:
            kind = "a link" if entry.is_symlink() else "a directory" if entry.is_dir() else "no file"
            yield finding("not-an-object", f"{path}/{entry.name}", f"it is {kind}, not a file")


# -- content -----------------------------------------------------------------------------------------------------------


def check_whole(repo: ReadRepo, objects: Sequence[str]) -> tuple[Finding, ...]:
    """What is wrong with these objects, by their bytes and, where the repository demands fs-verity, by the kernel."""
    found = tuple(check_content(repo, objects))
    return (*found, *check_verity(repo, objects)) if repo.is_secure else found


def check_content(repo: ReadRepo, objects: Sequence[str]) -> Iterator[Finding]:
    """Read every byte of these objects and measure them."""
    for name in objects:
        path = _path(name)
        try:
            measured = measure_object(repo, name)
        except FileNotFoundError:
            continue  # the check that needs it reports it
        except OSError as error:
            yield unreadable(path, error)
            continue
        if measured != name:
            yield finding("wrong-object-digest", path, f"its bytes have the digest {measured}")


def measure_object(repo: ReadRepo, name: str) -> ObjectId:
    """The fs-verity digest of an object's bytes, all of them read but holes.

    Raises:
        OSError: the system refused.
    """
    fd = repo.descriptor(_path(name))
    try:
        return verity.measured(fd, repo.algorithm)
    finally:
        os.close(fd)


def unreadable(path: str, error: OSError) -> Finding:
    """What the system would not give."""
    return finding("unreadable", path, error.strerror or str(error))


# -- fs-verity ---------------------------------------------------------------------------------------------------------


def check_verity(repo: ReadRepo, objects: Sequence[str]) -> Iterator[Finding]:
    """Ask the kernel whether these objects have fs-verity, and the digests that they are named by.

    It measured them when fs-verity was switched on, and answers from memory: a block that was flipped since is found by
    reading alone.
    """
    for name in objects:
        path = _path(name)
        try:
            fd = repo.descriptor(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            yield unreadable(path, error)
            continue
        try:
            measured = verity.verity_digest(fd)
        except OSError as error:
            yield unreadable(path, error)
            continue
        finally:
            os.close(fd)
        if measured is None:
            yield finding("no-verity", path, "it has no fs-verity")
        elif measured != name:
            yield finding("wrong-verity-digest", path, f"the kernel measured {measured}")


def names_of(findings: Iterable[Finding]) -> tuple[str, ...]:
    """The objects that findings of this module are about, each once, in order."""
    return tuple(sorted({one.path.removeprefix("objects/").replace("/", "") for one in findings}))


def _path(name: str) -> str:
    return f"objects/{name[:2]}/{name[2:]}"
