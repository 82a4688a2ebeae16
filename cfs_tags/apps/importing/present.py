"""What of an image the repository has already, and whether it can be relied on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cfs_tags.apps import tarstream
from cfs_tags.errors import DamagedError, NotFoundError, SystemFailure, UnsupportedError
from cfs_tags.formats import layout, splitstream
from cfs_tags.repo import contents
from cfs_tags.values import ContentId

if TYPE_CHECKING:
    from cfs_tags.formats.oci import Descriptor
    from cfs_tags.repo.store import ReadRepo
    from cfs_tags.values import Digest, ObjectId

__all__ = ["Known", "is_linked", "is_usable"]

_SOME = 4096


def is_linked(repo: ReadRepo, stream: ObjectId, *names: ContentId) -> bool:
    """Whether a link in ``streams/`` leads to that very object: one of ``names``, or the one that it got when it lost that."""
    return any(repo.stream_object(name) == stream for name in (*names, ContentId.kept(stream)))


def is_usable(repo: ReadRepo, stream: ObjectId, is_tar: bool) -> bool:
    """Whether a layer's splitstream is one of a tar (else: of a blob), and it and all its objects are there."""
    wanted = splitstream.CONTENT_TYPE_LAYER if is_tar else splitstream.CONTENT_TYPE_BLOB
    root = repo.fd
    stat = os.stat
    try:
        with tarstream.opened(repo, stream) as found:
            if found.content_type != wanted:
                return False
            width = repo.algorithm.hex_length
            step = _SOME * repo.algorithm.size
            for begin in range(0, len(found.raw_object_refs), step):
                text = found.raw_object_refs[begin : begin + step].hex()
                for at in range(0, len(text), width):
                    stat(f"objects/{text[at : at + 2]}/{text[at + 2 : at + width]}", dir_fd=root, follow_symlinks=False)
    except (DamagedError, UnsupportedError, FileNotFoundError):
        return False
    except OSError as error:
        raise SystemFailure.of(error, "look at", os.path.join(repo.path, layout.OBJECTS)) from error
    return True


class Known:
    """Which compressed layers stand for which diff_ids, by the manifests that the repository has: those were checked."""

    def __init__(self, repo: ReadRepo) -> None:
        self._repo = repo
        self._naming: dict[str, list[Digest]] | None = None
        self._pairs: dict[Digest, set[tuple[Digest, int, Digest]]] = {}

    def stands_for(self, descriptor: Descriptor, key: Digest) -> bool:
        """Whether some manifest has the layer, with that digest and size, for that diff_id (in an artifact: digest)."""
        if self._naming is None:
            self._naming = self._read()
        wanted = descriptor.digest, descriptor.size, key
        return any(wanted in self._of(digest) for digest in self._naming.get(key, ()))

    def _read(self) -> dict[str, list[Digest]]:
        naming: dict[str, list[Digest]] = {}
        for name in self._repo.names(layout.STREAMS) or ():
            digest = ContentId(name).manifest_digest
            try:
                stream = self._repo.stream_object(ContentId(name)) if digest is not None else None
                if digest is not None and stream is not None:
                    for key in self._repo.stream(stream, name).named_refs:
                        naming.setdefault(key, []).append(digest)
            except (NotFoundError, DamagedError, UnsupportedError):
                continue
        return naming

    def _of(self, digest: Digest) -> set[tuple[Digest, int, Digest]]:
        if digest not in self._pairs:
            try:
                layers = contents.load(self._repo, digest).layers
            except (NotFoundError, DamagedError, UnsupportedError):
                layers = ()
            self._pairs[digest] = {
                (one.descriptor.digest, one.descriptor.size, one.diff_id or one.descriptor.digest) for one in layers
            }
        return self._pairs[digest]
