"""Marking: what stays, for a collector that must look at a million objects.

References are followed by object digest; the link of the same content id stays too.  What cannot be followed is a problem
with the refs that it belongs to; what is behind it is not marked.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from cfs_tags.errors import (
    BadRefLink,
    CfsTagsError,
    DamagedError,
    FormatError,
    InvalidDigest,
    SystemFailure,
    UnsupportedError,
)
from cfs_tags.formats import layout, splitstream
from cfs_tags.inventory import Keys, names_of_objects, object_directories
from cfs_tags.processes import in_processes, processors
from cfs_tags.reachability import EROFS_KEY, content_ids, read_image_refs, read_node, salvage_node, scan_image_refs
from cfs_tags.repo import refs
from cfs_tags.values import ObjectId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from cfs_tags.repo.refs import RefChange
    from cfs_tags.repo.store import ReadRepo
    from cfs_tags.values import ContentId

__all__ = ["Marker", "Problem", "Snapshot"]


R = TypeVar("R")
S = TypeVar("S")


MOST_REFS = 100
"""Refs that are named for one problem."""


class Problem(NamedTuple):
    """Something that a collector had to follow and could not, and the refs that need it: at most :data:`MOST_REFS` of them.

    ``unreadable``: it is there and the system would not give it, so that nobody knows what it leads to.
    """

    message: str
    refs: tuple[str, ...]
    unreadable: bool = False


class Snapshot(NamedTuple):
    """Names and targets of all links, as they were at one moment.

    ``streams`` and ``images`` map names to link texts, ``refs`` paths to link texts; the empty text stands for something
    that is no link.
    """

    streams: dict[str, str]
    images: dict[str, str]
    refs: dict[str, str]

    @classmethod
    def read(cls, repo: ReadRepo) -> Snapshot:
        """Look at all of them now.

        Refs first: others make the link before the ref, so that what a ref leads to is seen, too.
        """
        found = refs.everything(repo)
        return cls(_links(repo, layout.STREAMS), _links(repo, layout.IMAGES), found)

    def change(self, changes: Iterable[RefChange]) -> None:
        """Take changes of refs into account that were made, or would be."""
        for change in changes:
            if change.new is None:
                self.refs.pop(change.path, None)
            else:
                self.refs[change.path] = change.new

    def name(self, streams: Mapping[ContentId, ObjectId]) -> None:
        """Take names in ``streams/`` into account that will be made."""
        self.streams.update((name, layout.object_link(object_id)) for name, object_id in streams.items())

    def since(self, earlier: Snapshot) -> Snapshot:
        """What is new here, or has another target; what went is left out."""
        pairs = zip(self, earlier, strict=True)
        return Snapshot(*({name: link for name, link in now.items() if then.get(name) != link} for now, then in pairs))

    @property
    def empty(self) -> bool:
        """Whether there is nothing in it."""
        return not (self.streams or self.images or self.refs)


class Marker:
    """Marks from roots.

    Attributes:
        live: all objects that stay.
        problems: by what could not be followed (an object id, or the path of a ref), what is wrong with it.
    """

    def __init__(self, repo: ReadRepo, snapshot: Snapshot) -> None:
        self.live = Keys(repo.algorithm.size)
        self.problems: dict[str, str] = {}
        self._repo = repo
        self._snapshot = snapshot
        self._linked: set[str] | None = None
        self._broken: dict[str, list[Callable[[], None]]] = {}
        self._unreadable: set[str] = set()
        self._parents: dict[str, set[str]] = {}
        self._streams: set[ObjectId] = set()
        self._images: set[ObjectId] = set()
        self._erofs: set[ObjectId] = set()
        self._unneeded: set[str] = set()
        self._needed: set[str] = set()
        self._pending: list[tuple[ObjectId, str]] = []
        self._unread: list[tuple[ObjectId, str]] = []

    def update(self, snapshot: Snapshot) -> None:
        """Take later names and targets into account, for what is marked from now on.

        What could not be followed is tried once more: somebody may have brought it back.
        """
        self._snapshot = snapshot
        self._linked = None
        broken, self._broken = self._broken, {}
        self._unreadable.clear()
        for what in broken:
            del self.problems[what]
        for ways in broken.values():
            for again in ways:
                again()
        self._follow()

    def mark(self, roots: Iterable[tuple[str, str]]) -> None:
        """Mark what refs lead to.

        Args:
            roots: path and link text of each.
        """
        for path, link in roots:
            self._root(path, link)
        self._follow()

    def mark_links(self, links: Snapshot, *, needed: bool = False) -> None:
        """Mark what links in ``streams/`` and ``images/`` lead to.

        Args:
            links: those that are meant; its refs are left alone.
            needed: whether it is a problem that something cannot be followed.  Without a ref to it, it is none: the link is
                young, and what it still leads to stays with it.
        """
        for tree, mine in ((layout.STREAMS, links.streams), (layout.IMAGES, links.images)):
            for name, link in mine.items():
                path = f"{tree}/{name}"
                try:
                    object_id = layout.object_of_link(link, self._repo.algorithm, path)
                except DamagedError:
                    continue  # it leads to no object
                (self._needed if needed else self._unneeded).add(path)
                if tree == layout.STREAMS:
                    self._stream(object_id, path)
                else:
                    self._image(object_id, path)
        self._follow()

    def found(self) -> tuple[Problem, ...]:
        """The problems, each with the refs that need what is broken."""
        found = []
        for what, message in sorted(self.problems.items()):
            needed_by = self._refs_of(what)
            if needed_by:
                found.append(Problem(message, needed_by, what in self._unreadable))
        return tuple(found)

    def keep_unnamed(self) -> None:
        """Mark what refs that are dangling may have led to: every splitstream without a name, an image by its own.

        Nothing tells which of them it was; what they lead to may be had again once they have names (``cfs-tag fsck --repair``).
        """
        dangling = [what for what in self.problems if "/" in what]
        for path in dangling:
            name = self._snapshot.refs.get(path, "").rpartition("/")[2]
            if path.startswith(f"{layout.IMAGES}/"):
                with suppress(InvalidDigest):
                    image = ObjectId.parse(name, self._repo.algorithm)
                    if self._repo.has_object(image):
                        self._image(image, path)
        nameless = [path for path in dangling if path.startswith(f"{layout.STREAMS}/")]
        looked_at = set()
        if nameless:
            for parent in object_directories(self._repo):
                names, keys = names_of_objects(self._repo, parent, self._repo.names(f"{layout.OBJECTS}/{parent}") or [])
                live = self.live.of(parent)
                for name, key in zip(names, keys, strict=True):
                    object_id = ObjectId(parent + name)
                    if key not in live and object_id not in self._linked_objects() and self._is_stream(object_id):
                        looked_at.add(object_id)
                        self._unneeded.add(f"object/{object_id}")
                        self._stream(object_id, f"object/{object_id}")
        self._follow()
        for unreadable in looked_at & self._unreadable:  # it may be what a ref needs
            self._parents[unreadable].update(nameless)

    def _is_stream(self, object_id: ObjectId) -> bool:
        """Whether an object begins as a splitstream does; True also of one that cannot be read."""
        try:
            fd = self._repo.open_object(object_id, "a look at it")
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

    def _linked_objects(self) -> set[str]:
        """The objects that have a name in ``streams/``."""
        if self._linked is None:
            start = len("../objects/")
            self._linked = {link[start:].replace("/", "") for link in self._snapshot.streams.values()}
        return self._linked

    def _fail(self, what: str, error: CfsTagsError | str, again: Callable[[], None]) -> None:
        """Note that something cannot be followed, and how to try it once more: an object may be followed in several ways."""
        self.problems[what] = error if isinstance(error, str) else error.message
        self._broken.setdefault(what, []).append(again)
        if isinstance(error, SystemFailure):
            self._unreadable.add(what)

    def _root(self, path: str, link: str) -> None:
        problem: CfsTagsError | str
        try:
            if not link:  # it is none, or the system did not give it
                link = self._repo.read_link(path) or ""
                if not link:
                    return  # it went
            name = layout.ref_target(path, link)
            if self._leads(path, name):
                return
            problem = f"{path} is dangling: {path.partition('/')[0]}/{name} is not there"
        except BadRefLink as error:
            problem = error.reason
            try:  # the peers' collectors take its last part for a name: what that leads to stays
                self._leads(path, link.rpartition("/")[2])
            except SystemFailure as refused:
                problem = refused
            except DamagedError:
                pass
        except CfsTagsError as error:
            problem = error
        self._parents.setdefault(path, set()).add(path)
        self._fail(path, problem, partial(self._root, path, link))

    def _leads(self, path: str, name: str) -> bool:
        """Mark what a ref leads to, by its name in ``streams/`` or ``images/``; False where there is no such name."""
        tree = path.partition("/")[0]
        target = (self._snapshot.streams if tree == layout.STREAMS else self._snapshot.images).get(name)
        if target is None:  # a listing may miss what is renamed while it is read
            target = self._repo.read_link(f"{tree}/{name}")
        if target is None:
            return False
        object_id = layout.object_of_link(target, self._repo.algorithm, f"{tree}/{name}")
        (self._stream if tree == layout.STREAMS else self._image)(object_id, path)
        return True

    def _stream(self, object_id: ObjectId, parent: str) -> None:
        self._parents.setdefault(object_id, set()).add(parent)
        if object_id not in self._streams:
            self._streams.add(object_id)
            self._pending.append((object_id, parent))

    def _image(self, object_id: ObjectId, parent: str) -> None:
        self._parents.setdefault(object_id, set()).add(parent)
        if object_id in self._images:
            return
        self._images.add(object_id)
        self._unread.append((object_id, parent))

    def _follow(self) -> None:
        while self._pending:
            object_id, why = self._pending.pop()
            self.live.add(object_id)
            try:
                node = read_node(self._repo, object_id, why)
            except CfsTagsError as error:
                self._fail(object_id, error, partial(self._pending.append, (object_id, why)))
                if isinstance(error, FormatError | UnsupportedError):
                    self._salvage(object_id, why)
                continue
            self.live.update(node.table)
            for name, target in node.named:
                self._named(object_id, name, target)
        images = self._unread.copy()
        self._unread.clear()
        for (object_id, why), (table, problem) in in_processes(self._read_images, _both, images, processors(), 2).items():
            self.live.add(object_id)
            self.live.update(table)
            if problem is not None:
                self._fail(object_id, problem, partial(self._unread.append, (object_id, why)))

    def _salvage(self, object_id: ObjectId, why: str) -> None:
        """Mark what a damaged stream still leads to."""
        try:
            streams, objects = salvage_node(self._repo, object_id, why)
        except CfsTagsError:
            return
        self.live.update(streams + objects)
        size = self._repo.algorithm.size
        for at in range(0, len(streams), size):
            child = ObjectId.of_bytes(streams[at : at + size])
            if child in self._linked_objects() or self._is_stream(child):
                self._stream(child, object_id)

    def _read_images(
        self, images: Sequence[tuple[ObjectId, str]]
    ) -> dict[tuple[ObjectId, str], tuple[bytes, CfsTagsError | None]]:
        """For each image the digests of what it needs, raw, and what is wrong with it."""
        found = {}
        for image in images:
            table, problem = b"", None
            try:
                table = read_image_refs(self._repo, *image)
            except CfsTagsError as error:
                problem = error
                if isinstance(error, FormatError):  # what text in it still names stays
                    table = scan_image_refs(self._repo, *image)
            found[image] = table, problem
        return found

    def _named(self, parent: ObjectId, name: str, target: ObjectId) -> None:
        if name.startswith(EROFS_KEY):
            self.live.add(target)
            self._parents.setdefault(target, set()).add(parent)
            # the same object may be followed as a stream, or as an image that has a ref: each is remembered for itself
            if target not in self._erofs:
                self._erofs.add(target)
                self._erofs_there(name, target)
            if target in self._linked_objects():  # cfsctl follows what has a name in streams/, whatever the key says
                self._stream(target, parent)
            return
        self._stream(target, parent)
        for content_id in content_ids(name):
            link = self._snapshot.streams.get(content_id)
            if link is None:
                continue
            try:
                linked = layout.object_of_link(link, self._repo.algorithm, content_id)
            except DamagedError:
                continue
            if linked != target:
                self._stream(linked, parent)

    def _erofs_there(self, name: str, target: ObjectId) -> None:
        if not self._repo.has_object(target):
            again = partial(self._erofs_there, name, target)
            self._fail(target, f"EROFS image {target[:12]}… ({name}) is missing", again)

    def _refs_of(self, what: str) -> tuple[str, ...]:
        found: set[str] = set()
        seen: set[str] = set()
        pending = [what]
        while pending and len(found) < MOST_REFS:
            current = pending.pop()
            if current in seen:
                continue
            seen.add(current)
            if "/" in current and (current in self._needed or current not in self._unneeded):
                found.add(current)
            pending.extend(self._parents.get(current, ()))
        return tuple(sorted(found))


def _both(mine: dict[S, R], other: dict[S, R]) -> dict[S, R]:
    return mine | other


def _links(repo: ReadRepo, tree: str) -> dict[str, str]:
    found = {}
    for name in repo.names(tree) or ():
        if name == "refs":
            continue
        try:
            link = repo.read_link(f"{tree}/{name}")
        except DamagedError:
            link = ""
        if link is not None:
            found[name] = link
    return found
