"""The files in ``objects/``, of which there may be a million: their names, a directory at a time.

Objects are remembered by the first 64 bits of their digests, in one array for each directory: eight bytes for an object,
and what is looked at together fits into the processor's cache.  Two digests that share them would keep a dead object;
nothing that is live is ever missed.
"""

from __future__ import annotations

import re
import sys
from array import array
from collections.abc import Iterator, Sequence

from cfs_tags.repo import layout
from cfs_tags.repo.store import ReadRepo

LOOKERS = 4
"""Processes that look at objects: more than there are processors, often, because they wait for the disk at first."""


class Keys:
    """A set of objects, by the first 64 bits of their digests.

    ``size`` is the length of a digest in bytes.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._arrays = [array("Q") for _ in range(256)]
        self._last: tuple[int, set[int]] | None = None

    def add(self, object_id: str) -> None:
        """Add one object."""
        self._last = None
        self._arrays[int(object_id[:2], 16)].append(key_of(object_id))

    def update(self, table: bytes) -> None:
        """Add objects by their raw digests, one after the other."""
        self._last = None
        appends = [one.append for one in self._arrays]
        for first, key in zip(table[:: self._size], keys_of(table, self._size // 8), strict=True):
            appends[first](key)

    def of(self, parent: str) -> set[int]:
        """Those in ``objects/<parent>``."""
        return set(self._arrays[int(parent, 16)])

    def outside(self, parents: Sequence[str]) -> Iterator[int]:
        """The keys of those in any directory but these."""
        named = {int(parent, 16) for parent in parents}
        for first, one in enumerate(self._arrays):
            if first not in named:
                yield from set(one)

    def __contains__(self, object_id: str) -> bool:
        # quick for many questions in the order of the ids
        number = int(object_id[:2], 16)
        if self._last is None or self._last[0] != number:
            self._last = number, set(self._arrays[number])
        return key_of(object_id) in self._last[1]

    def __len__(self) -> int:
        return sum(len(set(one)) for one in self._arrays)


def key_of(object_id: str) -> int:
    """The first 64 bits of a digest."""
    return int(object_id[:16], 16)


def keys_of_names(parent: str, names: list[str], digits: int) -> array[int] | None:
    """The keys of the objects in one directory, in the order of their names, all at once.

    Args:
        parent: its two digits.
        names: of the files.
        digits: hexadecimal digits of a digest.

    Returns:
        None where any name is no digest: then nothing is known of the others either.
    """
    # each length: one name too short and one too long would shift all that stand between them
    if set(map(len, names)) - {digits - 2}:
        return None
    text = parent + parent.join(names) if names else ""
    try:
        table = bytes.fromhex(text)
    except ValueError:
        return None
    # blanks and capital letters are digits to fromhex
    return keys_of(table, digits // 16) if table.hex() == text else None


def keys_of(table: bytes, step: int) -> array[int]:
    """The keys of raw digests that stand one after the other; ``step`` is their length in units of 64 bits."""
    keys = array("Q")
    keys.frombytes(table)
    keys = keys[::step]
    if sys.byteorder == "little":
        keys.byteswap()
    return keys


def object_directories(repo: ReadRepo) -> list[str]:
    """The directories of ``objects/`` that have objects in them, in order; other names there are not ours."""
    shape = re.compile("[0-9a-f]{2}", re.ASCII)
    return sorted(name for name in repo.names(layout.OBJECTS) or () if shape.fullmatch(name))


def names_of_objects(repo: ReadRepo, parent: str, names: list[str]) -> tuple[list[str], array[int]]:
    """The names in ``objects/<parent>`` that are of objects, with their keys; a name that is no digest is left out."""
    digits = repo.algorithm.hex_length
    keys = keys_of_names(parent, names, digits)
    if keys is None:
        shape = re.compile(f"[0-9a-f]{{{digits - 2}}}", re.ASCII)
        names = [name for name in names if shape.fullmatch(name)]
        keys = keys_of_names(parent, names, digits)
    return (names, keys) if keys is not None else ([], array("Q"))


def about(repo: ReadRepo) -> int:
    """How many objects there are, by the names in three of the directories: digests are spread evenly."""
    parents = object_directories(repo)
    some = parents[:: max(len(parents) // 3, 1)][:3]
    seen = sum(len(repo.names(f"{layout.OBJECTS}/{parent}") or ()) for parent in some)
    return seen * len(parents) // max(len(some), 1)
