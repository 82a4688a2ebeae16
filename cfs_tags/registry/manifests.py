"""Manifests as they are served, and what is remembered of them.

Of each a few :class:`Facts` are kept, for as long as it is shown, and of the last ones all of it.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Collection
from contextlib import suppress
from time import monotonic, time_ns
from typing import NamedTuple

from cfs_tags.errors import CfsTagsError, DamagedError, NotFoundError, TargetNotFound, UnsupportedError
from cfs_tags.registry.images import Manifest, NotServed, manifest
from cfs_tags.repo import images, layout
from cfs_tags.repo.directory import is_settled
from cfs_tags.repo.store import ReadRepo
from cfs_tags.values import ContentId, Digest, ObjectId

_NOT_WHOLE = (DamagedError, NotFoundError, UnsupportedError)
"""What is raised of an image that is not served, and of no other."""


def stamp(repo: ReadRepo, path: str) -> int | None:
    """When a directory of the repository was changed last, in nanoseconds since 1970; None where there is none."""
    try:
        return repo.status(path).st_mtime_ns
    except OSError:
        return None


class Paused(Exception):
    """A look-up took its share of time: asked for again, it continues where it was."""


class Facts(NamedTuple):
    """What is remembered of every manifest that is shown: little, however large it is.

    ``stream`` is the object that it was read from; ``digest`` and ``size`` in bytes are those that it is served with;
    ``kind`` and ``names`` are hashes, of its artifact type and of the digests of its blobs.
    """

    stream: ObjectId
    digest: Digest
    size: int
    subject: Digest | None
    kind: int
    names: array[int]


class Manifests:
    """The manifests of a repository, visible or not.  For one thread.

    Args:
        repo: which.
        room: bytes, about, of manifests that are remembered whole.

    Attributes:
        until: when, as :func:`time.monotonic` counts, reading another one raises :class:`Paused`.
        found: facts of those that were read, by original digest.
    """

    def __init__(self, repo: ReadRepo, room: int) -> None:
        self._repo = repo
        self.until = float("inf")
        self.found: dict[Digest, Facts] = {}
        self._known: OrderedDict[Digest, tuple[ObjectId, Manifest]] = OrderedDict()
        self._room = room
        self._objects: tuple[int | None, ...] = ()
        self._missing: dict[ObjectId, tuple[ObjectId, ...]] = {}
        self._holes: dict[Digest, str | None] = {}

    def forget_all_but(self, shown: Collection[Digest]) -> None:
        """Forget the facts of images that are not shown any more."""
        self.found = {digest: facts for digest, facts in self.found.items() if digest in shown or facts.subject is not None}

    def facts(self, digest: Digest) -> Facts | None:
        """What there is to know of a manifest, None where it is not served.  Raises Paused."""
        known = self.found.get(digest)
        if known is not None:
            with suppress(CfsTagsError):
                if self._repo.stream_object(ContentId.manifest(digest)) == known.stream:
                    return known
        if monotonic() > self.until:
            raise Paused
        return self.found[digest] if isinstance(self.load(digest), Manifest) else None

    def load(self, digest: Digest) -> Manifest | NotServed:
        """What is served of a manifest, whatever lacks of its layers."""
        try:
            stream = self._repo.stream_object(ContentId.manifest(digest))
            if stream is None:
                raise TargetNotFound(kind="manifest", name=digest)
            known = self._known.get(digest)
            if known is not None and known[0] == stream:
                self._known.move_to_end(digest)
                made: Manifest | NotServed = known[1]
            else:
                made = manifest(self._repo, digest)
                if isinstance(made, Manifest):
                    self._remember(digest, stream, made)
        except _NOT_WHOLE as error:
            return NotServed(error.message)
        if isinstance(made, Manifest):
            names = array("q", map(hash, made.blobs))
            self.found[digest] = Facts(stream, made.digest, len(made.raw), made.subject, hash(made.artifact_type), names)
        return made

    def _remember(self, digest: Digest, stream: ObjectId, made: Manifest) -> None:
        self._forget(digest)
        self._known[digest] = stream, made
        self._room -= made.weight
        while self._room < 0 and len(self._known) > 1:
            self._forget(next(iter(self._known)))

    def _forget(self, digest: Digest) -> None:
        if digest in self._known:
            self._room += self._known.pop(digest)[1].weight

    def without_holes(self, made: Manifest) -> Manifest | NotServed:
        """The same, if all content of its layers is there.  What was found holds until something in ``objects/`` changes."""
        taken = time_ns()
        stamps = tuple(stamp(self._repo, f"{layout.OBJECTS}/{parent:02x}") for parent in range(256))
        if stamps != self._objects:
            self._holes.clear()
            self._missing.clear()
            self._objects = stamps if all(one is None or is_settled(one, taken) for one in stamps) else ()
        if made.original not in self._holes:
            try:
                found = images.missing_content(self._repo, made.original, self._missing)
                gone = next((one for one in found if not one.key.startswith(images.EROFS_KEY)), None)
                self._holes[made.original] = images.describe(self._repo, gone) if gone is not None else None
            except _NOT_WHOLE as error:
                self._holes[made.original] = error.message
        reason = self._holes[made.original]
        return made if reason is None else NotServed(reason)

    def doubt(self) -> None:
        """Look at content again: some that was thought to be there could not be sent."""
        self._objects = ()
