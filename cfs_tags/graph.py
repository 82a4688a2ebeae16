"""The references of a repository: what leads to what, and the one walk that follows them.

A *node* is a splitstream or an EROFS image; it has a *table*, the digests of the objects that it is made of.  An *edge* leads
from a ref or a splitstream to something, and says how that is followed (:class:`Follow`).  :class:`Graph` reads each node once.
A visitor sees each node when it is read, and asks for the edges afterwards:

===========  ==========================================  ==============================
question     what is done with a node                    where
===========  ==========================================  ==============================
what stays   its table is marked                         ``gc/mark.py``
proof        its table becomes a set                     :class:`Closures`, for ``migrate/``
chains       its table is searched for what is wanted    ``why.py``
sizes        its table gets the bits of those that       ``df/``
             reach it
===========  ==========================================  ==============================

Two rules for following a named ref, because two kinds of collectors look at a repository:

``LINKED``
    as ``cfsctl gc`` and bootc follow it (composefs-rs 0.9.4, ``repository.rs``, ``walk_streams``): the object that a named
    ref names stays; what is *in* it stays only if some link in ``streams/`` names that very object.
``OBJECT``
    as this program follows it: by object digest, link or not; the link of the same content id stays too, with what it
    leads to now.

EROFS images that a config names are objects to both: their contents are followed from ``images/refs/`` alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from enum import Enum
from functools import cached_property
from typing import NamedTuple

from cfs_tags.errors import CfsTagsError, DamagedError, FormatError, SystemFailure, UnsupportedError
from cfs_tags.formats import splitstream
from cfs_tags.inventory import keys_of
from cfs_tags.parallel import in_processes, processors
from cfs_tags.repo import layout
from cfs_tags.repo.images import EROFS_KEY
from cfs_tags.repo.store import ReadRepo
from cfs_tags.values import ContentId, ObjectId


class Rule(Enum):
    """How named refs are followed: see the head of this module."""

    LINKED = "linked"
    OBJECT = "object"


class Follow(Enum):
    """How something is followed."""

    STREAM = "stream"
    """It is read as a splitstream: its table stays, and its named refs are followed."""
    IMAGE = "image"
    """It is read as an EROFS image: the objects of its files stay."""
    OBJECT = "object"
    """It stays; it is not read."""


class Edge(NamedTuple):
    """One reference.  ``name`` is what the target is called: a name in ``streams/`` or ``images/``, else the named ref."""

    follow: Follow
    target: ObjectId
    name: str


class Visit(NamedTuple):
    """What was found at the end of an edge.

    Attributes:
        edge: the first one that led there.
        needed_by: the ref or node that it comes from, for messages.
        table: raw digests (32 or 64 bytes each), one after the other.
        edges: of a splitstream.
        error: why it could not be read.  ``table`` and ``edges`` are empty then, or what could be salvaged.
    """

    edge: Edge
    needed_by: str
    table: bytes = b""
    edges: tuple[Edge, ...] = ()
    error: CfsTagsError | None = None


class Links:
    """The names in ``streams/`` and ``images/``, and which object each leads to.

    Args:
        repo: where.
        streams: names in ``streams/`` with the texts of their links.
        images: the same of ``images/``.
    """

    def __init__(self, repo: ReadRepo, streams: Mapping[str, str], images: Mapping[str, str] | None = None) -> None:
        self._repo = repo
        self._texts = {layout.STREAMS: streams, layout.IMAGES: images or {}}

    @classmethod
    def read(cls, repo: ReadRepo, problems: list[str]) -> Links:
        """All names in ``streams/``; a line is added to ``problems`` for each that the system does not give."""
        streams = {}
        for name in repo.names(layout.STREAMS) or ():
            if name == "refs":
                continue
            try:
                text = repo.read_link(f"{layout.STREAMS}/{name}")
            except DamagedError:
                continue
            except SystemFailure as error:
                problems.append(error.message)
                continue
            if text is not None:
                streams[name] = text
        return cls(repo, streams)

    def object_of(self, name: str) -> ObjectId | None:
        """The object of a name in ``streams/``; None where there is no such name, or it leads to no object."""
        text = self._texts[layout.STREAMS].get(name)
        try:
            return None if text is None else layout.object_of_link(text, self._repo.algorithm, name)
        except FormatError:
            return None

    def name_of(self, object_id: ObjectId) -> str | None:
        """A name in ``streams/`` that leads to an object."""
        return self._names.get(layout.object_link(object_id))

    @cached_property
    def _names(self) -> dict[str, str]:
        return {text: name for name, text in self._texts[layout.STREAMS].items()}

    def edge(self, tree: str, name: str) -> Edge | None:
        """What ``streams/<name>`` or ``images/<name>`` leads to; None where there is no such name.

        Raises:
            NotALink, FormatError: it is no link to an object.
            SystemFailure: the system did not give it.
        """
        text = self._texts[tree].get(name)
        if not text:  # a listing may miss what is renamed while it is read
            text = self._repo.read_link(f"{tree}/{name}")
        if text is None:
            return None
        follow = Follow.STREAM if tree == layout.STREAMS else Follow.IMAGE
        return Edge(follow, layout.object_of_link(text, self._repo.algorithm, f"{tree}/{name}"), name)


def content_ids(key: str) -> tuple[ContentId, ...]:
    """The names in ``streams/`` that the thing behind a named ref may have; none for EROFS images."""
    if key.startswith("config:"):
        return (ContentId.trusted(f"{ContentId.CONFIG}{key[7:]}"),)
    if key.startswith(EROFS_KEY) or ":" not in key:
        return ()
    return (ContentId.trusted(f"{ContentId.LAYER}{key}"), ContentId.trusted(f"{ContentId.BLOB}{key}"))


def is_stream(repo: ReadRepo, object_id: ObjectId) -> bool:
    """Whether an object begins as a splitstream does; True also of one that cannot be read."""
    try:
        fd = repo.open_object(object_id, "a look at it")
    except DamagedError:
        return False
    except SystemFailure:
        return True
    try:
        return splitstream.looks_like_one(os.read(fd, 32))
    except OSError:
        return True
    finally:
        os.close(fd)


class Graph:
    """The references of a repository as far as they were followed: every splitstream and image is read once.

    Args:
        repo: where.
        links: the names there.
        rule: how named refs are followed.
        exact: walk through EROFS images.  Else they are searched for what looks like a reference: that takes a tenth of the
            time, and may find more, never less.
        salvage: also follow what a damaged or newer node still seems to refer to.

    Attributes:
        links: as given; later names may be put in.
        edges: the edges of each splitstream that was visited.
    """

    def __init__(
        self, repo: ReadRepo, links: Links, rule: Rule = Rule.OBJECT, *, exact: bool = False, salvage: bool = False
    ) -> None:
        self.links = links
        self.edges: dict[ObjectId, tuple[Edge, ...]] = {}
        self._repo = repo
        self._rule = rule
        self._exact = exact
        self._salvage = salvage
        self._seen: dict[tuple[Follow, ObjectId], Edge] = {}
        self._pending: list[tuple[Edge, str]] = []

    def add(self, edge: Edge, needed_by: str, *, again: bool = False) -> None:
        """Have an edge followed by the next walk, if what it leads to was not visited yet, or is to be visited ``again``."""
        if again or edge[:2] not in self._seen:
            self._seen[edge[:2]] = edge
            self._pending.append((edge, needed_by))

    def walk(self) -> Iterator[Visit]:
        """Follow what was added, and all that it leads to."""
        while self._pending:
            images = []
            while self._pending:
                edge, needed_by = self._pending.pop()
                if edge.follow is Follow.IMAGE:
                    images.append((edge, needed_by))
                elif edge.follow is Follow.OBJECT:
                    yield Visit(edge, needed_by)
                else:
                    yield self._visit_stream(edge, needed_by)
            yield from in_processes(self._visit_images, _joined, images, processors(), 2) if images else ()

    def revisit(self) -> Iterator[Visit]:
        """Read every splitstream and image that was visited once more, for a question that came later: images exactly."""
        self._exact = True
        for edge in list(self._seen.values()):
            self.add(edge, "an earlier look", again=True)
        return self.walk()

    def reach(self, top: Edge) -> Iterator[Edge]:
        """An edge that was followed, then every other that is followed behind it, one for each thing and way."""
        seen = {top[:2]}
        pending = [top]
        while pending:
            current = pending.pop()
            yield current
            if current.follow is Follow.STREAM:
                new = [edge for edge in self.edges.get(current.target, ()) if edge[:2] not in seen]
                seen.update(edge[:2] for edge in new)
                pending.extend(new)

    def parents(self) -> dict[ObjectId, list[ObjectId]]:
        """The splitstreams that lead to each thing that was visited."""
        found: dict[ObjectId, list[ObjectId]] = {}
        for object_id, edges in self.edges.items():
            for edge in edges:
                found.setdefault(edge.target, []).append(object_id)
        return found

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def _visit_stream(self, edge: Edge, needed_by: str) -> Visit:
        table, problem = b"", None
        edges: tuple[Edge, ...] = ()
        try:
            with self._repo.map(edge.target, needed_by) as data:
                stream = splitstream.parse(data, self._repo.algorithm)
                table = bytes(stream.raw_object_refs)
                stream.release()
            edges = tuple(dict.fromkeys(self._edges_of(stream.named_refs)))
        except CfsTagsError as error:
            problem = error
            if self._salvage and isinstance(error, FormatError | UnsupportedError):
                table, edges = self._salvaged(edge, needed_by)
        self.edges[edge.target] = edges
        for child in edges:
            self.add(child, edge.name)
        return Visit(edge, needed_by, table, edges, problem)

    def _edges_of(self, named: Mapping[str, ObjectId]) -> Iterator[Edge]:
        for key, target in named.items():
            names = content_ids(key)
            linked = self.links.name_of(target)
            kept_alone = key.startswith(EROFS_KEY) or self._rule is Rule.LINKED
            if kept_alone:
                yield Edge(Follow.OBJECT, target, key)
            if not kept_alone or linked is not None:  # cfsctl follows what has a name in streams/, whatever the key says
                yield Edge(Follow.STREAM, target, linked or (names[0] if names else key))
            if self._rule is Rule.OBJECT:
                for name in names:
                    other = self.links.object_of(name)
                    if other is not None and other != target:
                        yield Edge(Follow.STREAM, other, name)

    def _salvaged(self, edge: Edge, needed_by: str) -> tuple[bytes, tuple[Edge, ...]]:
        """What a splitstream that cannot be parsed still seems to refer to: all of it stays, streams among it are followed."""
        try:
            with self._repo.map(edge.target, needed_by) as data:
                streams, objects = splitstream.salvage_refs(data, self._repo.algorithm)
        except CfsTagsError:
            return b"", ()
        size = self._repo.algorithm.size
        named = {ObjectId.of_bytes(streams[at : at + size]) for at in range(0, len(streams), size)}
        followed = [one for one in named if self.links.name_of(one) is not None or is_stream(self._repo, one)]
        return streams + objects, tuple(Edge(Follow.STREAM, one, one) for one in followed)

    def _visit_images(self, images: Sequence[tuple[Edge, str]]) -> list[Visit]:
        return [self._visit_image(edge, needed_by) for edge, needed_by in images]

    def _visit_image(self, edge: Edge, needed_by: str) -> Visit:
        from cfs_tags.formats import erofs, erofswalk

        algorithm = self._repo.algorithm
        table, problem = b"", None
        try:
            with self._repo.map(edge.target, needed_by) as data:
                if self._exact:
                    table = erofswalk.image_table(bytes(data), algorithm)
                else:
                    erofs.check_image(data)
                    table = erofs.scan_object_refs(data, algorithm)
        except CfsTagsError as error:
            problem = error
            if self._salvage and isinstance(error, FormatError):  # what text in it still names stays
                with self._repo.map(edge.target, needed_by, cut=True) as data:
                    table = erofs.scan_object_refs(data, algorithm)
        return Visit(edge, needed_by, table, (), problem)


def _joined(mine: list[Visit], others: list[Visit]) -> list[Visit]:
    return mine + others


# -- closures ----------------------------------------------------------------------------------------------------------


class Closure(NamedTuple):
    """What some roots keep alive.

    ``nodes`` are splitstreams, images and objects, each with the way in which it was followed: read ones stay with their
    tables.  ``names`` are ``streams/<name>`` and ``images/<name>`` whose links stay.  What is behind something that cannot be
    followed is not in it.
    """

    nodes: frozenset[tuple[Follow, ObjectId]]
    names: frozenset[str]


class Closures:
    """The closures of roots, and how they compare: for questions about a few of them.

    Args:
        repo: where.
        rule: how named refs are followed.
    """

    def __init__(self, repo: ReadRepo, rule: Rule) -> None:
        self._repo = repo
        self._links = Links.read(repo, [])
        self._graph = Graph(repo, self._links, rule)
        self._tables: dict[tuple[Follow, ObjectId], bytes] = {}
        self._counted: tuple[Closure, int] | None = None

    def of(self, roots: Iterable[str]) -> Closure:
        """What refs to some names keep together.

        Args:
            roots: ``streams/<name>`` or ``images/<name>``.
        """
        nodes: set[tuple[Follow, ObjectId]] = set()
        names: set[str] = set()
        for root, top in self.read(roots):
            names.add(root)
            for edge in self._graph.reach(top):
                nodes.add(edge[:2])
                linked = self._links.name_of(edge.target) if edge.follow is Follow.STREAM else None
                if linked is not None:
                    names.add(f"{layout.STREAMS}/{linked}")
        return Closure(frozenset(nodes), frozenset(names))

    def read(self, roots: Iterable[str]) -> list[tuple[str, Edge]]:
        """Read all that some roots lead to, images in several processes; what each leads to.  Names that are not there are
        left out."""
        tops = []
        for root in roots:
            tree, _, name = root.partition("/")
            with suppress(DamagedError):
                top = self._links.edge(tree, name)
                if top is not None:
                    tops.append((root, top))
                    self._graph.add(top, root)
        for visit in self._graph.walk():
            self._tables[visit.edge[:2]] = visit.table
        return tops

    def count(self, closure: Closure) -> int:
        """How many objects and names stay; two objects whose digests share their first 64 bits count as one."""
        if self._counted is None or self._counted[0].nodes != closure.nodes:  # two in a row are the same, most often
            step = self._repo.algorithm.size // 8
            keys = {int(target[:16], 16) for _, target in closure.nodes}
            keys.update(*(keys_of(self._tables[node], step) for node in closure.nodes))
            self._counted = closure, len(keys)
        return self._counted[1] + len(closure.names)

    def lost(self, before: Closure, after: Closure, *, images: bool = True) -> int:
        """How many objects and names are in one closure and not in another; without the names in ``images/`` if so asked."""
        names = [name for name in before.names - after.names if images or name.startswith(layout.STREAMS)]
        gone = before.nodes - after.nodes
        objects = self._objects(gone) - self._objects(after.nodes) if gone else ()
        return len(names) + len(objects)

    def _objects(self, nodes: frozenset[tuple[Follow, ObjectId]]) -> set[bytes]:
        size = self._repo.algorithm.size
        found = {bytes.fromhex(target) for _, target in nodes}
        for node in nodes:
            table = self._tables[node]
            found.update([table[at : at + size] for at in range(0, len(table), size)])
        return found
