"""Layers that imports have under way, as other processes see them: a registry shows them to other hosts.

An import that shares its layers has a file in a directory of its own in ``cfs-tags/incoming/`` (``incoming.py``), whose lock is
the sign that it is alive.  The file says what tags it will make, and for each layer, by diff_id, how far it is.  It is a
message, never a reason to keep or delete anything, and is not synced.

=============  =======================================================================================================
``wanted``     it will be needed
``claiming``   this import is about to fetch it from where the image comes from, unless another has begun
``fetching``   it is being fetched from there
``here``       it is in a splitstream, which may have no name yet
=============  =======================================================================================================
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import NamedTuple, Self

from cfs_tags.errors import CfsTagsError, SystemFailure
from cfs_tags.formats import json_fields
from cfs_tags.repo import fsops, incoming
from cfs_tags.repo.incoming import Incoming
from cfs_tags.repo.lock import take_at_once
from cfs_tags.repo.store import ReadRepo, WriteRepo
from cfs_tags.values import Digest, ObjectId

_FILE = "layers.json"
_MAX = 1 << 20
STATES = ("wanted", "claiming", "fetching", "here")


class Layer(NamedTuple):
    """How far a layer is; ``stream`` is the object of its splitstream where it is here."""

    state: str
    stream: ObjectId | None = None


class Arriving(NamedTuple):
    """What an import says of itself: a text that tells it from others, the tags that it will make, its layers."""

    by: str
    names: tuple[str, ...]
    layers: dict[Digest, Layer]


class Announcement:
    """What this import says of itself.  Close it, or use it as a context manager.

    Attributes:
        by: a text that tells it from others.

    Raises:
        SystemFailure: the system refused.
    """

    def __init__(self, repo: WriteRepo, names: Sequence[str]) -> None:
        self._repo = repo
        self._names = list(names)
        self._incoming = Incoming(repo)
        self.by = os.urandom(16).hex()

    def say(self, layers: Mapping[Digest, Layer]) -> None:
        """Say how far each layer is, in place of what was said before."""
        document = {"by": self.by, "names": self._names, "layers": {digest: list(layer) for digest, layer in layers.items()}}
        data = json.dumps(document).encode()
        path = f"{self._incoming.path}/{_FILE}"
        try:
            self._incoming.put_in_place(path, lambda spare: fsops.create_file(self._repo.fd, spare, data))
        except OSError as error:
            raise SystemFailure.of(error, "write", os.path.join(self._repo.path, path)) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._incoming.close()


def announced(repo: ReadRepo) -> Iterator[Arriving]:
    """What imports that are alive say of themselves; what cannot be read is left out."""
    for path in incoming.directories(repo):
        try:
            data = repo.read_file(f"{path}/{_FILE}", _MAX)
            if data is not None and _is_alive(repo, path):
                yield _parse(data)
        except (CfsTagsError, AttributeError, KeyError, TypeError, ValueError):
            continue


def _is_alive(repo: ReadRepo, path: str) -> bool:
    fd = repo.directory(path)
    if fd is None:
        return False
    try:
        return not take_at_once(fd, "shared")
    finally:
        os.close(fd)


def _parse(data: bytes) -> Arriving:
    document = json_fields.load(data, "layers of an import", _MAX)
    layers = {}
    for digest, (state, stream) in document["layers"].items():
        if state not in STATES:
            raise ValueError(state)
        layers[Digest.parse(digest)] = Layer(state, ObjectId.parse(stream) if stream is not None else None)
    return Arriving(str(document["by"]), tuple(map(str, document["names"])), layers)
