"""What a set of roots keeps alive.

Two rules for following a reference, because two kinds of collectors look at a repository:

``LINKED``
    as ``cfsctl gc`` and bootc follow it (composefs-rs 0.9.4, ``repository.rs``, ``walk_streams``): the object that a named
    ref names stays; what is *in* it stays only if some link in ``streams/`` names that very object.
``OBJECT``
    as this program follows it: by object digest, link or not; the link of the same content id stays too.

EROFS images named by a config are objects to both: their contents are followed from ``images/refs/`` alone.  For the
contents of an image the scan may find more than the image refers to, never less.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from cfs_tags.errors import DamagedError, FormatError, SystemFailure
from cfs_tags.formats import layout, splitstream
from cfs_tags.repo import verity
from cfs_tags.repo.contents import EROFS_KEY
from cfs_tags.values import ContentId, ObjectId

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from mmap import mmap

    from cfs_tags.repo.store import ReadRepo

__all__ = [
    "EROFS_KEY",
    "Closure",
    "Graph",
    "Links",
    "Node",
    "Rule",
    "content_ids",
    "mapped",
    "read_image_refs",
    "read_node",
    "salvage_node",
    "scan_image_refs",
]


class Rule(Enum):
    """How named refs are followed."""

    LINKED = "linked"
    OBJECT = "object"


class Closure(NamedTuple):
    """What something keeps alive.

    ``objects`` are raw digests (32 or 64 bytes each); ``streams`` and ``images`` are names in those directories whose
    links stay; ``problems`` is what could not be followed, one line each: what is behind it is not in the sets.
    """

    objects: frozenset[bytes]
    streams: frozenset[str]
    images: frozenset[str]
    problems: tuple[str, ...]

    @classmethod
    def union(cls, parts: Sequence[Closure]) -> Closure:
        """All together."""
        return cls(
            frozenset().union(*(part.objects for part in parts)),
            frozenset().union(*(part.streams for part in parts)),
            frozenset().union(*(part.images for part in parts)),
            tuple(problem for part in parts for problem in part.problems),
        )

    def missing_from(self, other: Closure) -> Closure:
        """What is here and not in ``other``; problems are left out."""
        return Closure(self.objects - other.objects, self.streams - other.streams, self.images - other.images, ())

    @property
    def empty(self) -> bool:
        """Whether nothing is kept alive."""
        return not (self.objects or self.streams or self.images)


_NOTHING = Closure(frozenset(), frozenset(), frozenset(), ())


class Node(NamedTuple):
    """A splitstream as a collector sees it.

    ``table`` is the digests of the objects that it is made of, raw, one after the other; ``named`` its named refs.
    """

    table: bytes
    named: tuple[tuple[str, ObjectId], ...]


def content_ids(name: str) -> tuple[ContentId, ...]:
    """The names in ``streams/`` that the thing behind a named ref may have; none for EROFS images."""
    if name.startswith("config:"):
        return (ContentId.trusted(f"oci-config-{name[7:]}"),)
    if name.startswith(EROFS_KEY) or ":" not in name:
        return ()
    return (ContentId.trusted(f"oci-layer-{name}"), ContentId.trusted(f"oci-blob-{name}"))


class Links:
    """The names in ``streams/``, read once: which object each leads to, and which name an object has.

    A name that leads to no object is left out: whatever needs it says so.  ``problems`` has a line for each that the system
    does not give.
    """

    def __init__(self, repo: ReadRepo) -> None:
        self.object_of: dict[str, ObjectId] = {}
        self.name_of: dict[ObjectId, str] = {}
        self.problems: list[str] = []
        for name in repo.names(layout.STREAMS) or ():
            if name == "refs":
                continue
            try:
                object_id = repo.stream_object(ContentId.trusted(name))
            except DamagedError:
                continue
            except SystemFailure as error:
                self.problems.append(error.message)
                continue
            if object_id is not None:
                self.object_of[name] = object_id
                self.name_of[object_id] = name


def read_node(repo: ReadRepo, object_id: ObjectId, why: str) -> Node:
    """The references in a splitstream object.

    Raises:
        MissingObject, FormatError: it cannot be followed; ``why`` is what names it.
    """
    with mapped(repo, object_id, why) as data:
        stream = splitstream.parse(data, repo.algorithm)
        node = Node(bytes(stream.raw_object_refs), tuple(stream.named_refs.items()))
        stream.release()
    return node


def salvage_node(repo: ReadRepo, object_id: ObjectId, why: str) -> tuple[bytes, bytes]:
    """For a splitstream that cannot be parsed, what it still seems to refer to: streams or images, and objects, as raw digests.

    Raises:
        MissingObject, SystemFailure: there is nothing to read.
    """
    with mapped(repo, object_id, why) as data:
        return splitstream.salvage_refs(data, repo.algorithm)


def read_image_refs(repo: ReadRepo, object_id: ObjectId, why: str) -> bytes:
    """At least the digests of the objects that an EROFS image needs, raw, one after the other; see ``formats/erofs.py``.

    Raises:
        MissingObject, FormatError: it is not there, or no image.
    """
    from cfs_tags.formats import erofs

    with mapped(repo, object_id, why) as data:
        erofs.check_image(data)
        return erofs.scan_object_refs(data, repo.algorithm)


def scan_image_refs(repo: ReadRepo, object_id: ObjectId, why: str) -> bytes:
    """The same for a damaged image: what its bytes still name, those before the limit of its size."""
    from cfs_tags.formats import erofs

    with mapped(repo, object_id, why, cut=True) as data:
        return erofs.scan_object_refs(data, repo.algorithm)


class Graph:
    """The references of a repository as sets, each object read at most once: for questions about a few roots."""

    def __init__(self, repo: ReadRepo) -> None:
        self._repo = repo
        self._nodes: dict[ObjectId, tuple[frozenset[bytes], tuple[tuple[str, ObjectId], ...]]] = {}
        self._contents: dict[ObjectId, frozenset[bytes]] = {}
        self._links: Links | None = None
        self._asked: dict[tuple[str, Rule | None], Closure] = {}

    def forget(self) -> None:
        """Forget the answers, which are large, and keep what was read."""
        self._asked.clear()

    def of_stream(self, content_id: ContentId, rule: Rule) -> Closure:
        """What a ref to ``streams/<content id>`` keeps alive."""
        known = self._asked.get((content_id, rule))
        if known is None:
            known = self._asked[content_id, rule] = self._of_stream(content_id, rule)
        return known

    def of_image(self, name: str) -> Closure:
        """What a ref to ``images/<name>`` keeps alive: the image and the objects of its files."""
        known = self._asked.get((name, None))
        if known is None:
            known = self._asked[name, None] = self._of_image(name)
        return known

    def _of_stream(self, content_id: ContentId, rule: Rule) -> Closure:
        try:
            object_id = self._repo.stream_object(content_id)
        except DamagedError as error:
            return _NOTHING._replace(problems=(error.message,))
        if object_id is None:
            return _NOTHING._replace(problems=(f"streams/{content_id} is gone",))
        objects: set[bytes] = set()
        streams = {str(content_id)}
        problems: list[str] = []
        pending = [(object_id, f"streams/{content_id}")]
        seen: set[ObjectId] = set()
        while pending:
            current, why = pending.pop()
            objects.add(bytes.fromhex(current))
            if current in seen:
                continue
            seen.add(current)
            try:
                contents, named = self._node(current, why)
            except DamagedError as error:
                problems.append(error.message)
                continue
            objects |= contents
            for name, target in named:
                objects.add(bytes.fromhex(target))
                if name.startswith(EROFS_KEY):
                    if not self._repo.has_object(target):
                        problems.append(f"object {target[:12]}… ({name}, named by {why}) is missing")
                    continue
                link = self._linked().name_of.get(target)
                if link is not None:
                    streams.add(link)
                if link is not None or rule is Rule.OBJECT:
                    pending.append((target, f"{name} of {why}"))
        return Closure(frozenset(objects), frozenset(streams), frozenset(), tuple(problems))

    def _of_image(self, name: str) -> Closure:
        try:
            object_id = self._repo.image_object(name)
            if object_id is None:
                return _NOTHING._replace(problems=(f"images/{name} is gone",))
            contents = self._image(object_id, f"images/{name}")
        except DamagedError as error:
            return _NOTHING._replace(problems=(error.message,))
        return Closure(contents | {bytes.fromhex(object_id)}, frozenset(), frozenset((name,)), ())

    def _node(self, object_id: ObjectId, why: str) -> tuple[frozenset[bytes], tuple[tuple[str, ObjectId], ...]]:
        known = self._nodes.get(object_id)
        if known is None:
            node = read_node(self._repo, object_id, why)
            known = self._nodes[object_id] = self._digests(node.table), node.named
        return known

    def _image(self, object_id: ObjectId, why: str) -> frozenset[bytes]:
        known = self._contents.get(object_id)
        if known is None:
            known = self._contents[object_id] = self._digests(read_image_refs(self._repo, object_id, why))
        return known

    def _digests(self, table: bytes) -> frozenset[bytes]:
        size = self._repo.algorithm.size
        return frozenset([table[at : at + size] for at in range(0, len(table), size)])

    def _linked(self) -> Links:
        if self._links is None:
            self._links = Links(self._repo)
        return self._links


@contextmanager
def mapped(repo: ReadRepo, object_id: ObjectId, why: str, *, cut: bool = False) -> Iterator[mmap | bytes]:
    """The bytes of a splitstream or image, mapped: nothing is copied.  A FormatError is told where they are.

    Raises:
        MissingObject: it is not there.
        FormatError: it has more bytes than any of them, and ``cut`` does not ask for the first ones alone.
        SystemFailure: the system refused.
    """
    path = os.path.join(repo.path, layout.object_path(object_id))
    fd = repo.open_object(object_id, why)
    try:
        if os.fstat(fd).st_size == 0:
            yield b""
            return
        mapped = verity.map_file(fd, cut=cut)
    except OSError as error:
        raise SystemFailure.of(error, "read", path) from error
    except FormatError as error:
        error.path = path
        raise
    finally:
        os.close(fd)
    try:
        yield mapped
    except FormatError as error:
        error.path = path
        raise
    finally:
        with suppress(BufferError):  # a traceback still has a view: the map goes with it
            mapped.close()
