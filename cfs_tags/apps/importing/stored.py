"""What of an image the repository has already, and whether it can be relied on."""

from __future__ import annotations

import os
import stat
from array import array
from contextlib import suppress
from operator import attrgetter
from typing import TYPE_CHECKING

from cfs_tags.apps import layer_tar
from cfs_tags.errors import DamagedError, NotFoundError, SystemFailure, UnsupportedError
from cfs_tags.formats import splitstream
from cfs_tags.parallel import look_at
from cfs_tags.repo import images, layout
from cfs_tags.values import ContentId, Digest, ObjectId

if TYPE_CHECKING:
    from collections.abc import Callable

    from cfs_tags.formats.oci import Descriptor
    from cfs_tags.formats.splitstream import SplitStream
    from cfs_tags.repo.store import ReadRepo

_SOME = 4096
"""Objects that are looked at before what was read of their stream is let go of."""
_facts: Callable[[os.stat_result], tuple[int, int]] = attrgetter("st_mode", "st_size")


def is_linked(repo: ReadRepo, stream: ObjectId, *names: ContentId) -> bool:
    """Whether a link in ``streams/`` leads to that very object: one of ``names``, or the link that replaced it."""
    return any(repo.stream_object(name) == stream for name in (*names, ContentId.kept(stream)))


def has_image_link(repo: ReadRepo, image: ObjectId) -> bool:
    """Whether a name in ``images/`` leads to an EROFS image: without it, it can be neither mounted nor booted."""
    try:
        return repo.image_object(image) == image
    except DamagedError:
        return False


def old_config(repo: ReadRepo, manifest: Digest, config: Digest) -> tuple[ObjectId, SplitStream] | None:
    """The config's stream that is there: by its link, or by the manifest where the link is gone or leads to nothing."""
    content_id = ContentId.config(config)
    with suppress(DamagedError, UnsupportedError):
        linked = repo.stream_object(content_id)
        if linked is not None:
            return linked, repo.stream(linked, content_id)
    with suppress(DamagedError, UnsupportedError):
        stream = repo.stream_object(ContentId.manifest(manifest))
        if stream is not None:
            named = repo.stream(stream, f"manifest {manifest}").named_refs.get(f"config:{config}")
            if named is not None:
                return named, repo.stream(named, content_id)
    return None


def is_usable(repo: ReadRepo, stream: ObjectId, is_tar: bool) -> bool:
    """Whether a layer's splitstream is one of a tar (else: of a blob), and it and all its objects are there in full.

    That they are is seen by their sizes, which must make up what the stream says: nothing of the content is read.

    Raises:
        SystemFailure: the system refused.
    """
    wanted = splitstream.CONTENT_TYPE_LAYER if is_tar else splitstream.CONTENT_TYPE_BLOB
    width, step = repo.algorithm.hex_length, _SOME * repo.algorithm.size
    sizes = array("q")
    try:
        with layer_tar.opened(repo, stream) as found:
            if found.content_type != wanted:
                return False
            for begin in range(0, len(found.raw_object_refs), step):
                text = found.raw_object_refs[begin : begin + step].hex()
                if repo.distrusted and any(text[at : at + width] in repo.distrusted for at in range(0, len(text), width)):
                    return False
                names = [f"{text[at : at + 2]}/{text[at + 2 : at + width]}" for at in range(0, len(text), width)]
                found_there = look_at(repo.hold_objects(), names, _facts)
                some = [facts[1] for facts in found_there if facts is not None and stat.S_ISREG(facts[0])]
                if len(some) < len(names):
                    return False
                sizes.extend(some)
                layer_tar.let_go(found)
            splitstream.check_size(found, sizes)
    except (DamagedError, UnsupportedError):
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
                layers = images.load(self._repo, digest).layers
            except (NotFoundError, DamagedError, UnsupportedError):
                layers = ()
            self._pairs[digest] = {
                (one.descriptor.digest, one.descriptor.size, one.diff_id or one.descriptor.digest) for one in layers
            }
        return self._pairs[digest]
