"""Marking: what stays.

From refs, and from names that stay for another reason, everything is followed that :class:`cfs_tags.graph.Graph` finds.  What
cannot be followed is a problem of the refs that need it; what is behind it is not marked, except for what can be salvaged.
"""

from __future__ import annotations

import errno
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from cfs_tags.errors import BadRefLink, BrokenRoots, CfsTagsError, DamagedError, FormatError, InvalidDigest, SystemFailure
from cfs_tags.gc.values import GcOptions, Problem
from cfs_tags.graph import Edge, Follow, Graph, Links, Visit, is_stream
from cfs_tags.host.refs import unnamed_configs
from cfs_tags.inventory import Keys, keys_of, names_of_objects, object_directories
from cfs_tags.repo import layout, refs
from cfs_tags.repo.images import MissingContent, absent_objects, describe
from cfs_tags.repo.transaction.change import RefChange
from cfs_tags.values import ContentId, ObjectId

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from cfs_tags.repo.store import ReadRepo

MOST_REFS = 100
"""Refs that are named for one problem."""
_MOST_LACKING = 100
"""Layers and images that are named of which content is missing."""
_NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV)
"""How the system answers where there is no object: nothing, or a file or link in the place of its directory."""


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


class Marks:
    """What stays.

    Attributes:
        live: all objects that stay.
        problems: what is wrong with each thing that could not be followed: an object id, or the path of a ref.
        snapshot: the names as they were last read; what they lead to is marked.
    """

    def __init__(self, repo: ReadRepo, snapshot: Snapshot) -> None:
        self.live = Keys(repo.algorithm.size)
        self.problems: dict[str, str] = {}
        self.snapshot = snapshot
        self._repo = repo
        self._graph = Graph(repo, Links(repo, snapshot.streams, snapshot.images), salvage=True)
        self._roots: dict[str, set[str]] = {}  # by object, paths of links that lead to it
        self._needed: set[str] = set()  # paths of which it is a problem that something behind them cannot be followed
        self._failed: list[Visit] = []
        self._failed_refs: dict[str, str] = {}
        self._unreadable: set[str] = set()

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
        for tree, follow, mine in ((layout.STREAMS, Follow.STREAM, links.streams), (layout.IMAGES, Follow.IMAGE, links.images)):
            for name, link in mine.items():
                path = f"{tree}/{name}"
                try:
                    edge = Edge(follow, layout.object_of_link(link, self._repo.algorithm, path), name)
                except DamagedError:
                    continue  # it leads to no object
                self._add(path, edge, needed=needed)
        self._follow()

    def update(self, snapshot: Snapshot) -> None:
        """Take later names and targets into account, for what is marked from now on.

        What could not be followed is tried once more: another process may have brought it back.
        """
        self.snapshot = snapshot
        self._graph.links = Links(self._repo, snapshot.streams, snapshot.images)
        failed, self._failed = self._failed, []
        failed_refs, self._failed_refs = self._failed_refs, {}
        self.problems.clear()
        self._unreadable.clear()
        for visit in failed:
            self._graph.add(visit.edge, visit.needed_by, again=True)
        self.mark(failed_refs.items())

    def found(self) -> tuple[Problem, ...]:
        """The problems, each with the refs that need what is broken."""
        if not self.problems:
            return ()
        parents = self._graph.parents()
        found = []
        for what, message in sorted(self.problems.items()):
            needed_by = self._refs_of(what, parents)
            if needed_by:
                found.append(Problem(message, needed_by, what in self._unreadable))
        return tuple(found)

    def lacking(self, absent: Collection[int]) -> tuple[Problem, ...]:
        """Content of live images that is not there, the files of layers by their names.

        Args:
            absent: the keys of marked objects that were not found; those that are there now are left out.
        """
        if not absent:
            return ()
        absent = frozenset(absent)
        size = self._repo.algorithm.size
        parents = self._graph.parents()
        found: list[Problem] = []
        for visit in self._graph.revisit():
            if len(found) == _MOST_LACKING:
                break
            table = visit.table if visit.error is None else b""
            hits = {at for at, key in enumerate(keys_of(table, size // 8)) if key in absent}
            ids = {ObjectId.of_bytes(table[at * size : (at + 1) * size]) for at in hits}
            gone = tuple(absent_objects(self._repo, ids))
            needed_by = self._refs_of(visit.edge.target, parents) if gone else ()
            if needed_by:
                what = describe(self._repo, MissingContent(visit.edge.name, visit.edge.target, gone))
                found.append(Problem(what, needed_by))
        return tuple(sorted(found))

    def keep_unnamed(self) -> None:
        """Mark what refs that are dangling may have led to: every splitstream without a name, an image by its own.

        Nothing tells which of them it was; what they lead to may be had again once they have names (``cfs-tag fsck --repair``).
        """
        for path in self._failed_refs:
            name = self.snapshot.refs.get(path, "").rpartition("/")[2]
            if path.startswith(f"{layout.IMAGES}/"):
                with suppress(InvalidDigest):
                    image = ObjectId.parse(name, self._repo.algorithm)
                    if self._repo.has_object(image):
                        self._add(path, Edge(Follow.IMAGE, image, name))
        nameless = [path for path in self._failed_refs if path.startswith(f"{layout.STREAMS}/")]
        streams = set(self._unnamed_streams()) if nameless else set()
        for stream in streams:
            self._graph.add(Edge(Follow.STREAM, stream, stream), f"object/{stream}")
        self._follow()
        for unreadable in streams & self._unreadable:  # it may be what a ref needs
            self._roots.setdefault(unreadable, set()).update(nameless)

    def keeps(self, link: str) -> bool:
        """Whether the object that a link in ``streams/`` or ``images/`` leads to stays."""
        try:
            return layout.object_of_link(link, self._repo.algorithm, "") in self.live
        except FormatError:
            return True  # it leads to no object: not ours to judge

    def keeps_subject(self, referrer: str) -> bool:
        """Whether what a referrer at this path is about stays."""
        link = self.snapshot.streams.get(f"{ContentId.MANIFEST}{_subject(referrer)}")
        return link is not None and self.keeps(link)

    # -- following -----------------------------------------------------------------------------------------------------

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
        self._needed.add(path)
        self._failed_refs[path] = link
        self._fail(path, problem)

    def _leads(self, path: str, name: str) -> bool:
        """Follow a ref, by the name that it leads to in ``streams/`` or ``images/``; False where there is no such name."""
        edge = self._graph.links.edge(path.partition("/")[0], name)
        if edge is not None:
            self._add(path, edge)
        return edge is not None

    def _add(self, path: str, edge: Edge, *, needed: bool = True) -> None:
        if needed:
            self._needed.add(path)
        self._roots.setdefault(edge.target, set()).add(path)
        self._graph.add(edge, path)

    def _follow(self) -> None:
        for visit in self._graph.walk():
            follow, target, name = visit.edge
            self.live.add(target)
            self.live.update(visit.table)
            problem: CfsTagsError | str | None = visit.error
            if follow is Follow.OBJECT and not self._repo.has_object(target):
                problem = f"EROFS image {target[:12]}… ({name}) is missing"
            if problem is not None:
                self._fail(target, problem)
                self._failed.append(visit)

    def _fail(self, what: str, problem: CfsTagsError | str) -> None:
        self.problems[what] = problem if isinstance(problem, str) else problem.message
        if isinstance(problem, SystemFailure):
            self._unreadable.add(what)

    def _unnamed_streams(self) -> Iterable[ObjectId]:
        """Dead objects that are splitstreams, or may be, and that no name leads to."""
        for parent in object_directories(self._repo):
            names, keys = names_of_objects(self._repo, parent, self._repo.names(f"{layout.OBJECTS}/{parent}") or [])
            live = self.live.of(parent)
            for name, key in zip(names, keys, strict=True):
                object_id = ObjectId(parent + name)
                if key not in live and self._graph.links.name_of(object_id) is None and is_stream(self._repo, object_id):
                    yield object_id

    def _refs_of(self, what: str, parents: Mapping[ObjectId, Sequence[ObjectId]]) -> tuple[str, ...]:
        if what in self._failed_refs:
            return (what,)
        found: set[str] = set()
        seen = {what}
        pending = [ObjectId(what)]
        while pending and len(found) < MOST_REFS:
            current = pending.pop()
            found.update(self._roots.get(current, set()) & self._needed)
            new = [parent for parent in parents.get(current, ()) if parent not in seen]
            seen.update(new)
            pending.extend(new)
        return tuple(sorted(found)[:MOST_REFS])


# -- all of them -------------------------------------------------------------------------------------------------------


def mark_all(
    repo: ReadRepo,
    snapshot: Snapshot,
    options: GcOptions,
    stamp: int,
    unmade: Sequence[RefChange] = (),
    *,
    gone: Sequence[RefChange],
) -> tuple[Marks, list[RefChange]]:
    """Mark from all roots, and name the referrers that are none (only with ``prune_referrers``).

    Args:
        repo: where.
        snapshot: all names.
        options: which names stay besides, and what is done about something broken.
        stamp: the time before the snapshot, in nanoseconds since 1970.
        unmade: refs that could not be made yet; they count as roots.
        gone: the changes that came before the marks: what such a ref led to was here, whether the log says so or not.

    Raises:
        BrokenRoots: nothing may be deleted.
    """
    snapshot.name(unnamed_configs(repo, unmade))
    marks = Marks(repo, snapshot)
    marks.mark((change.path, change.new) for change in unmade if change.new is not None)
    wanted = frozenset(options.roots)
    streams = {name: link for name, link in snapshot.streams.items() if name in wanted}
    images = {name: link for name, link in snapshot.images.items() if name in wanted}
    marks.mark_links(Snapshot(streams, images, {}), needed=True)
    if options.grace:
        limit = limit_of(options, stamp)
        streams, images = (
            {name: link for name, link in links.items() if _changed(repo, tree, name, link) >= limit}
            for tree, links in ((layout.STREAMS, snapshot.streams), (layout.IMAGES, snapshot.images))
        )
        marks.mark_links(Snapshot(streams, images, {}))
    pruned = []
    if options.prune_referrers:
        pruned = [RefChange(path, link, None, "prune") for path, link in _mark_all_but_referrers(repo, marks, gone)]
    else:
        marks.mark(snapshot.refs.items())
    settle(marks, options)
    return marks, pruned


def settle(marks: Marks, options: GcOptions) -> None:
    """Keep what something broken may have led to.

    Raises:
        BrokenRoots: nothing may be deleted.
    """
    _refuse_broken(marks, options)
    marks.keep_unnamed()
    _refuse_broken(marks, options)


def limit_of(options: GcOptions, stamp: int) -> int:
    """Objects that changed at this time (nanoseconds since 1970) or later stay."""
    return stamp - int(options.grace * 1e9)


def _refuse_broken(marks: Marks, options: GcOptions) -> None:
    """Stop where something is broken; with ``keep_broken`` only where it may lead to anything."""
    problems = [problem for problem in marks.found() if problem.unreadable or not options.keep_broken]
    if problems:
        raise BrokenRoots(problems=tuple((problem.message, problem.refs) for problem in problems))


def _mark_all_but_referrers(repo: ReadRepo, marks: Marks, gone: Sequence[RefChange]) -> list[tuple[str, str]]:
    """Mark from all refs but the referrers whose subject was here and is dead: the answer is these, path and link.

    To a fixed point: a signature may itself be signed, and may name another image.
    """
    was_here = _was_here(repo, marks.snapshot, gone)
    waiting = {path: link for path, link in marks.snapshot.refs.items() if _subject(path) in was_here}
    marks.mark((path, link) for path, link in marks.snapshot.refs.items() if path not in waiting)
    while True:
        ready = [(path, link) for path, link in waiting.items() if marks.keeps_subject(path)]
        if marks.found():  # what cannot be followed may have led to a subject
            ready = list(waiting.items())
        if not ready:
            return list(waiting.items())
        for path, _ in ready:
            del waiting[path]
        marks.mark(ready)


def _subject(path: str) -> str | None:
    """The digest that a referrer is about, by its path; None for other refs."""
    start = f"{layout.REFERRERS}/"
    subject, slash, _ = path[len(start) :].partition("/")
    return subject if path.startswith(start) and slash else None


def _was_here(repo: ReadRepo, snapshot: Snapshot, gone: Sequence[RefChange]) -> set[str]:
    """Manifests that are or were in this repository: they still have their link, or a ref led to them once."""
    from cfs_tags.repo import reflog

    start = ContentId.MANIFEST
    names = set(snapshot.streams)
    links = [link for entry in reflog.all_entries(repo).entries for link in (entry.old, entry.new)]
    links += [link for change in gone for link in (change.old, change.new)]
    names.update(link.rpartition("/")[2] for link in links if link is not None)
    return {name[len(start) :] for name in names if name.startswith(start)}


def _changed(repo: ReadRepo, tree: str, name: str, link: str) -> int:
    """When a link was made or the object behind it was last changed, whichever is later, in nanoseconds since 1970.

    0 where there is no object: then there is nothing to keep.

    Raises:
        SystemFailure: the system would not say.
    """
    path = f"{tree}/{name}"
    try:
        target = layout.object_path(layout.object_of_link(link, repo.algorithm, path))
    except DamagedError:
        return 0
    with repo.reading(path):
        try:
            return max(repo.status(one).st_ctime_ns for one in (target, path))
        except OSError as error:
            if error.errno in _NOTHING_THERE:
                return 0
            raise
