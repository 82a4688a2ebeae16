"""Why something is kept: every chain from a root to it, or, if there is none, the ref that kept it last.

Exact: splitstreams are read as they are and EROFS images walked, nothing is guessed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from cfs_tags.errors import CfsTagsError, TargetNotFound
from cfs_tags.formats import erofstree
from cfs_tags.graph import Edge, Follow, Graph, Links, Visit
from cfs_tags.repo import images, layout, reflog, refs
from cfs_tags.repo.store import ReadRepo
from cfs_tags.repo.transaction.change import RefChange
from cfs_tags.tags import rows
from cfs_tags.tags.names import only, resolve
from cfs_tags.values import ContentId, Digest, ObjectId

if TYPE_CHECKING:
    from cfs_tags.formats.filetree import Directory, File

_MOST_TRIED = 2_000_000
"""Steps that are taken to find them."""
_DIGITS = re.compile(r"(sha256:)?([0-9a-f]{6,})", re.ASCII)


class Step(NamedTuple):
    """One link of a chain.

    ``kind`` is ``ref``, ``manifest``, ``config``, ``layer``, ``stream``, ``erofs`` or ``object``; ``name`` the path of a ref,
    the content id of a stream, or the id of an object; ``object`` the object behind it, None for a ref.
    """

    kind: str
    name: str
    object: ObjectId | None = None


class LastKept(NamedTuple):
    """The newest entry of the log that took away a ref to something dead."""

    ref: str
    manifest: Digest
    time: str
    action: str
    by: str | None


class Why(NamedTuple):
    """The answer: what was asked for, whether it is live, all chains, and for something dead what kept it last.

    ``objects`` are the objects that were asked about; ``present`` says whether they are in the repository; ``problems`` what
    could not be followed, so that a chain may be missing.
    """

    target: str
    objects: tuple[ObjectId, ...]
    present: bool
    live: bool
    chains: tuple[tuple[Step, ...], ...]
    last: LastKept | None
    problems: tuple[str, ...]


class Bounds(NamedTuple):
    """How much of an answer is given: at most so many chains, and so many steps of all of them together.

    A repository can have more chains than fit into memory, and a chain can be as long as there are streams.
    """

    chains: int = 100_000
    steps: int = 250_000


_USUAL = Bounds()


def explain(
    repo: ReadRepo, text: str, path: str | None = None, changes: Iterable[RefChange] = (), *, bounds: Bounds = _USUAL
) -> Why:
    """Every chain from a root to something.

    Args:
        repo: where; the caller holds its lock shared.
        text: an object id; a name in ``streams/``; a digest ``sha256:…`` of a manifest, config or layer; at least six digits of
            an id or a digest; a tag or anything else that :func:`cfs_tags.tags.names.resolve` knows.
        path: of a file in the image that ``text`` names: then the question is about its content.
        changes: of refs that a collection would make first: what only a ref keeps that runs out now is dead.
        bounds: of the answer; one chain is given however long it is.

    Raises:
        TargetNotFound, TagNotFound: it stands for nothing.
        UsageError: a prefix fits several.
        DamagedError: the image of ``path`` cannot be read.
    """
    unread: list[str] = []
    links = Links.read(repo, unread)
    wanted = _content(repo, text, path) if path is not None else _meant(repo, links, text)
    search = _Search(repo, links, wanted)
    search.problems.update((message, message) for message in unread)
    links_of: dict[str, str | None] = dict(refs.everything(repo))
    changed = list(changes)
    links_of.update((change.path, change.new) for change in changed)
    # streams/ before images/
    found = search.chains(sorted(links_of.items(), key=lambda entry: (entry[0].startswith(layout.IMAGES), entry[0])))
    chains = _bounded(found, bounds, search.problems)
    last = None
    if not chains:
        last = _last_kept(repo, search, changed)
    return Why(
        f"{text}:{path}" if path is not None else text,
        tuple(sorted(wanted)),
        all(repo.has_object(one) for one in wanted),
        bool(chains),
        tuple(chains),
        last,
        tuple(search.problems.values()),
    )


def _bounded(found: Iterator[tuple[Step, ...]], most: Bounds, problems: dict[str, str]) -> list[tuple[Step, ...]]:
    """The chains, up to the limits; a problem says so if there are more."""
    chains: list[tuple[Step, ...]] = []
    steps = 0
    for chain in found:
        steps += len(chain)
        if len(chains) == most.chains or (chains and steps > most.steps):
            given = f"{len(chains)} chains{'' if len(chains) == most.chains else f' of {most.steps} steps'}"
            problems[""] = f"there are more than {given}: the others are left out"
            break
        chains.append(chain)
    return chains


class _Search:
    """Finds the ways down to the wanted objects.

    First everything that the refs lead to is read, then only what leads to something wanted is walked again.  Nothing
    recurses, and a way never comes by the same stream twice: links, unlike digests, can make circles.
    """

    def __init__(self, repo: ReadRepo, links: Links, wanted: frozenset[ObjectId]) -> None:
        self.problems: dict[str, str] = {}
        self.links = links
        self._repo = repo
        self._graph = Graph(repo, links, exact=True)
        self._wanted = wanted
        self._raw = [bytes.fromhex(one) for one in sorted(wanted)]
        self._steps: dict[ObjectId, Step] = {}
        self._ends: dict[tuple[Follow, ObjectId], tuple[Step, ...]] = {}
        self._tried = 0

    def chains(self, entries: Iterable[tuple[str, str | None]]) -> Iterator[tuple[Step, ...]]:
        """All chains from refs, in the order of the refs."""
        tops = [(Step("ref", ref), edge) for ref, link in entries for edge in self._top(ref, link)]
        for start, edge in tops:
            self._explore(edge, start.name)
        leading = self._leading()
        for start, edge in tops:
            if edge.follow is Follow.IMAGE:
                yield from ((start, *rest) for rest in self._from_image(edge))
            elif edge.target in leading:
                yield from ((start, *rest) for rest in self._from_stream(edge.target, leading))

    def leads(self, top: Edge, needed_by: str) -> bool:
        """Whether a stream leads to something wanted."""
        self._explore(top, needed_by)
        return any(edge.target in self._wanted or self._ends.get(edge[:2]) for edge in self._graph.reach(top))

    def _top(self, ref: str, link: str | None) -> Iterator[Edge]:
        """What a ref leads to."""
        if link is None:
            return
        if not link:
            self.problems[ref] = refs.why_no_link(self._repo, ref)
            return
        try:
            name = layout.ref_target(ref, link)
            edge = self.links.edge(ref.partition("/")[0], name)
        except CfsTagsError as error:
            self.problems[ref] = error.message
            return
        if edge is not None:
            yield edge
        else:
            self.problems[ref] = f"{ref} is dangling: {name} is not there"

    def _explore(self, top: Edge, needed_by: str) -> None:
        """Read a stream or image and all that it leads to."""
        self._graph.add(top, needed_by)
        for visit in self._graph.walk():
            edge = visit.edge
            if edge.follow is Follow.STREAM:
                self._steps[edge.target] = Step(_kind(edge.name), edge.name, edge.target)
            if edge.follow is not Follow.OBJECT:
                self._ends[edge[:2]] = tuple(self._ends_of(visit))
            if visit.error is not None:
                self.problems[edge.target] = visit.error.message

    def _ends_of(self, visit: Visit) -> Iterator[Step]:
        """The wanted things that a node itself names."""
        for raw in self._raw:
            at = visit.table.find(raw)
            while at >= 0 and at % len(raw):
                at = visit.table.find(raw, at + 1)
            if at >= 0:
                one = ObjectId.of_bytes(raw)
                yield Step("object", one, one)
        for edge in visit.edges:
            if edge.follow is Follow.OBJECT and edge.target in self._wanted:
                yield Step("erofs", edge.name, edge.target)

    def _leading(self) -> set[ObjectId]:
        """The streams that lead to something wanted, or are it."""
        parents = self._graph.parents()
        streams = [(target, ends) for (follow, target), ends in self._ends.items() if follow is Follow.STREAM]
        pending = [target for target, ends in streams if ends or target in self._wanted]
        leading = set(pending)
        while pending:
            new = [parent for parent in parents.get(pending.pop(), ()) if parent not in leading]
            leading.update(new)
            pending.extend(new)
        return leading

    def _from_stream(self, top: ObjectId, leading: set[ObjectId]) -> Iterator[tuple[Step, ...]]:
        path: dict[ObjectId, Step] = {}
        stack: list[Iterator[ObjectId]] = [iter((top,))]
        while stack:
            child = next(stack[-1], None)
            if child is None:
                stack.pop()
                if path:
                    path.popitem()
                continue
            if child in path or child not in leading:
                continue
            self._tried += 1
            if self._tried > _MOST_TRIED:
                self.problems[""] = "the streams lead to each other in too many ways: some chains are left out"
                return
            path[child] = self._steps[child]
            if child in self._wanted:
                yield tuple(path.values())
            for end in self._ends[Follow.STREAM, child]:
                yield (*path.values(), end)
            edges = self._graph.edges[child]
            stack.append(iter(dict.fromkeys(edge.target for edge in edges if edge.follow is Follow.STREAM)))

    def _from_image(self, edge: Edge) -> Iterator[tuple[Step, ...]]:
        step = Step("erofs", edge.name, edge.target)
        if edge.target in self._wanted:
            yield (step,)
        yield from ((step, end) for end in self._ends[edge[:2]])


def _kind(name: str) -> str:
    for kind in ("manifest", "config", "layer", "blob"):
        if name.startswith(f"oci-{kind}-"):
            return "layer" if kind == "blob" else kind
    return "stream"


# -- which objects are asked about --------------------------------------------------------------------------------------


def _meant(repo: ReadRepo, links: Links, text: str) -> frozenset[ObjectId]:
    named = links.object_of(text)
    if named is not None:
        return frozenset((named,))
    digits = _DIGITS.fullmatch(text)
    if digits is not None and rows.find(repo, text) is None:
        fits = _beginning(repo, links, digits[2])
        if digits[1]:
            fits = {name: objects for name, objects in fits.items() if name.startswith(digits[1])}
        elif not fits:
            raise TargetNotFound(kind="object", name=text)
        if fits:
            return fits[only(list(fits), text, "object")]
    digest = resolve(repo, text, ended=True)
    object_id = repo.stream_object(ContentId.manifest(digest))
    if object_id is None:
        raise TargetNotFound(kind="manifest", name=digest)
    return frozenset((object_id,))


def _beginning(repo: ReadRepo, links: Links, digits: str) -> dict[str, frozenset[ObjectId]]:
    """What begins with digits: objects by their ids, streams by their digests (one may be of a layer and of a blob)."""
    length = repo.algorithm.hex_length
    names = [digits[:2] + name for name in repo.names(f"{layout.OBJECTS}/{digits[:2]}") or () if len(digits) < length]
    ids = [digits] if len(digits) == length else [name for name in names if len(name) == length and name.startswith(digits)]
    found = {name: frozenset((ObjectId.trusted(name),)) for name in ids}
    starts = tuple(f"oci-{kind}-sha256:{digits}" for kind in ("manifest", "config", "layer", "blob"))
    for name in repo.names(layout.STREAMS) or ():
        if name.startswith(starts) and (there := links.object_of(name)) is not None:
            digest = name[name.index("sha256:") :]
            found[digest] = found.get(digest, frozenset()) | {there}
    return found


def _content(repo: ReadRepo, text: str, path: str) -> frozenset[ObjectId]:
    """The object that holds the content of a file in an image, by its EROFS image, or its layers where there is none."""
    image = _image(repo, text)
    if image is not None:
        with repo.map(image, text) as data:
            node = erofstree.read_path(data, path)
        found, content = node is not None, node.object if node is not None else None
    else:
        found, content = _in_layers(repo, text, path)
    if content is None:
        kind = "file with content of its own (small ones are in the image itself)" if found else "file"
        raise TargetNotFound(kind=kind, name=path, where=f"the image of {text}")
    return frozenset((content,))


def _image(repo: ReadRepo, text: str) -> ObjectId | None:
    try:
        found = repo.image_object(text) if "/" not in text else None
        if found is not None:
            return found
    except CfsTagsError:
        pass
    erofs_ids = images.load(repo, resolve(repo, text, ended=True)).erofs
    return next((erofs_ids[key] for key in sorted(erofs_ids, key=lambda key: key.startswith(images.BOOT_KEY))), None)


def _in_layers(repo: ReadRepo, text: str, path: str) -> tuple[bool, ObjectId | None]:
    """Whether there is a file of that path, and the object of its content."""
    from cfs_tags.diff import laid

    folder: Directory | None = laid(repo, images.load(repo, resolve(repo, text, ended=True)), text)
    file: File | None = None
    for name in filter(None, os.fsencode(path).split(b"/")):
        if folder is None or name not in folder.names():
            return False, None
        file, folder = folder.file(name)
    content = file.content if file is not None else None
    return True, content if isinstance(content, ObjectId) else None


# -- what was ----------------------------------------------------------------------------------------------------------


def _last_kept(repo: ReadRepo, search: _Search, changes: Iterable[RefChange]) -> LastKept | None:
    """The newest removal of a ref whose manifest is still here and led to what is asked for.

    Newest are those that a collection would make now.
    """
    now = reflog.timestamp()
    removed = [reflog.Entry(change.path, change.old, change.new, change.action, now, "") for change in changes]
    for entry in (*removed, *reversed(reflog.all_entries(repo).entries)):
        if entry.old is None or entry.old == entry.new:
            continue
        digest = ContentId.trusted(entry.old.rpartition("/")[2]).manifest_digest
        if digest is None:
            continue
        try:
            edge = search.links.edge(layout.STREAMS, ContentId.manifest(digest))
        except CfsTagsError:
            continue
        if edge is not None and search.leads(edge, entry.ref):
            return LastKept(entry.ref, digest, entry.time, entry.action, entry.by)
    return None
