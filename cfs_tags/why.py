"""Why something is kept: every chain from a root to it, or that there is none and what kept it last.

Exact: splitstreams are read as they are and EROFS images walked, nothing is guessed.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from cfs_tags import tags
from cfs_tags.errors import AmbiguousName, CfsTagsError, NotFoundError, TargetNotFound
from cfs_tags.formats import erofs, layout
from cfs_tags.formats.erofswalk import image_refs
from cfs_tags.reachability import EROFS_KEY, Links, Node, content_ids, mapped, read_node
from cfs_tags.repo import contents, reflog, refs
from cfs_tags.values import ContentId, Digest, ObjectId

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cfs_tags.repo.refs import RefChange
    from cfs_tags.repo.store import ReadRepo

__all__ = ["MOST_CHAINS", "LastKept", "Step", "Why", "explain"]

MOST_CHAINS = 100_000
"""Chains that are told: a repository can be made that has more of them than fit into any memory."""
_MOST_STEPS = 2_000_000
_SHORTEST_PREFIX = 6


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

    ``objects`` are the objects that were meant; ``present`` says whether they are in the repository; ``problems`` what
    could not be followed, so that a chain may be missing.
    """

    target: str
    objects: tuple[ObjectId, ...]
    present: bool
    live: bool
    chains: tuple[tuple[Step, ...], ...]
    last: LastKept | None
    problems: tuple[str, ...]


def explain(repo: ReadRepo, text: str, path: str | None = None, changes: Iterable[RefChange] = ()) -> Why:
    """Every chain from a root to something.

    Args:
        repo: where; the caller holds its lock shared.
        text: an object id, or at least six digits of one; a name in ``streams/``; a digest ``sha256:…`` of a manifest,
            config or layer; a tag or anything else that :func:`cfs_tags.tags.resolve` knows.
        path: of a file in the image that ``text`` names; then its content is meant.
        changes: of refs that a collection would make first: what only a ref keeps that runs out now is dead.

    Raises:
        TargetNotFound, TagNotFound: it stands for nothing.
        AmbiguousName: a prefix fits several objects.
        DamagedError: the image of ``path`` cannot be read.
    """
    links = Links(repo)
    wanted = _content(repo, text, path) if path is not None else _meant(repo, links, text)
    search = _Search(repo, links, wanted)
    links_of: dict[str, str | None] = dict(refs.everything(repo))
    changed = list(changes)
    links_of.update((change.path, change.new) for change in changed)
    # streams/ before images/
    found = search.chains(sorted(links_of.items(), key=lambda entry: (entry[0].startswith(layout.IMAGES), entry[0])))
    chains = list(islice(found, MOST_CHAINS))
    if next(found, None) is not None:
        search.problems[""] = f"there are more than {MOST_CHAINS} chains: the others are left out"
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


class _Stream(NamedTuple):
    """A stream on the way: its own step, the wanted things that it names itself, and the streams that it leads to."""

    step: Step
    ends: tuple[Step, ...]
    children: tuple[ObjectId, ...]


class _Search:
    """Finds the ways down to the wanted objects, reading each stream and image once.

    First everything that the refs lead to is read, then only what leads to something wanted is walked again.  Nothing
    recurses, and a way never comes by the same stream twice: links, unlike digests, can make circles.
    """

    def __init__(self, repo: ReadRepo, links: Links, wanted: frozenset[ObjectId]) -> None:
        self.problems = {message: message for message in links.problems}
        self._repo = repo
        self._links = links
        self._wanted = wanted
        self._raw = [bytes.fromhex(one) for one in wanted]
        self._streams: dict[ObjectId, _Stream] = {}
        self._images: dict[ObjectId, frozenset[ObjectId]] = {}
        self._steps = 0

    def chains(self, entries: Iterable[tuple[str, str | None]]) -> Iterator[tuple[Step, ...]]:
        """All chains from refs, in the order of the refs."""
        tops = [top for entry in entries for top in self._top(*entry)]
        for ref, name, object_id in tops:
            if ref.startswith(layout.STREAMS):
                self._explore(object_id, name, ref)
        leading = self._leading()
        for ref, name, object_id in tops:
            start = Step("ref", ref)
            if ref.startswith(layout.IMAGES):
                yield from ((start, *rest) for rest in self._from_image(name, object_id, ref))
            elif object_id in leading:
                yield from ((start, *rest) for rest in self._from_stream(object_id, leading))

    def leads(self, object_id: ObjectId, name: str, why: str) -> bool:
        """Whether a stream leads to something wanted."""
        self._explore(object_id, name, why)
        seen = {object_id}
        pending = [object_id]
        while pending:
            current = pending.pop()
            found = self._streams[current]
            if found.ends or current in self._wanted:
                return True
            new = [child for child in found.children if child not in seen]
            seen.update(new)
            pending.extend(new)
        return False

    def _top(self, ref: str, link: str | None) -> Iterator[tuple[str, str, ObjectId]]:
        """The path of a ref, the name that it leads to, and the object of that."""
        if link is None:
            return
        if not link:
            self.problems[ref] = refs.why_no_link(self._repo, ref)
            return
        try:
            name = layout.ref_target(ref, link)
            of_image = ref.startswith(layout.IMAGES)
            object_id = self._repo.image_object(name) if of_image else self._repo.stream_object(name)
        except CfsTagsError as error:
            self.problems[ref] = error.message
            return
        if object_id is not None:
            yield ref, name, object_id
        else:
            self.problems[ref] = f"{ref} is dangling: {name} is not there"

    def _explore(self, top: ObjectId, name: str, why: str) -> None:
        """Read a stream and all that it leads to."""
        pending = [(top, name, why)]
        while pending:
            object_id, name, why = pending.pop()
            if object_id in self._streams:
                continue
            step = Step(_kind(name), name, object_id)
            try:
                node = read_node(self._repo, object_id, why)
            except CfsTagsError as error:
                self.problems[object_id] = error.message
                self._streams[object_id] = _Stream(step, (), ())
                continue
            ends = [Step("object", one, one) for one in self._in_table(node)]
            children: dict[ObjectId, str] = {}
            for key, target in node.named:
                if key.startswith(EROFS_KEY):
                    if target in self._wanted:
                        ends.append(Step("erofs", key, target))
                    if target not in self._links.name_of:
                        continue
                for child, child_name in self._behind(key, target):
                    children.setdefault(child, child_name)
            self._streams[object_id] = _Stream(step, tuple(dict.fromkeys(ends)), tuple(children))
            pending.extend((child, child_name, name) for child, child_name in children.items())

    def _leading(self) -> set[ObjectId]:
        """The streams that lead to something wanted, or are it."""
        parents: dict[ObjectId, list[ObjectId]] = {}
        for object_id, found in self._streams.items():
            for child in found.children:
                parents.setdefault(child, []).append(object_id)
        pending = [one for one, found in self._streams.items() if found.ends or one in self._wanted]
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
            self._steps += 1
            if self._steps > _MOST_STEPS:
                self.problems[""] = "the streams lead to each other in too many ways: some chains are left out"
                return
            found = self._streams[child]
            path[child] = found.step
            way = tuple(path.values())
            if child in self._wanted:
                yield way
            for end in found.ends:
                yield (*way, end)
            stack.append(iter(found.children))

    def _behind(self, key: str, target: ObjectId) -> Iterator[tuple[ObjectId, str]]:
        named = content_ids(key)
        yield target, self._links.name_of.get(target) or (named[0] if named else key)
        for content_id in named:
            linked = self._links.object_of.get(content_id)
            if linked is not None and linked != target:
                yield linked, content_id

    def _in_table(self, node: Node) -> Iterator[ObjectId]:
        size = self._repo.algorithm.size
        for raw in self._raw:
            at = node.table.find(raw)
            while at >= 0 and at % size:
                at = node.table.find(raw, at + 1)
            if at >= 0:
                yield ObjectId.of_bytes(raw)

    def _from_image(self, name: str, object_id: ObjectId, why: str) -> Iterator[tuple[Step, ...]]:
        step = Step("erofs", name, object_id)
        if object_id in self._wanted:
            yield (step,)
        if object_id not in self._images:
            try:
                with mapped(self._repo, object_id, why) as data:
                    self._images[object_id] = self._wanted.intersection(image_refs(bytes(data), self._repo.algorithm))
            except CfsTagsError as error:
                self.problems[object_id] = error.message
                self._images[object_id] = frozenset()
        for one in sorted(self._images[object_id]):
            yield (step, Step("object", one, one))


def _kind(name: str) -> str:
    for kind in ("manifest", "config", "layer", "blob"):
        if name.startswith(f"oci-{kind}-"):
            return "layer" if kind == "blob" else kind
    return "stream"


# -- what is meant -----------------------------------------------------------------------------------------------------


def _meant(repo: ReadRepo, links: Links, text: str) -> frozenset[ObjectId]:
    if text in links.object_of:
        return frozenset((links.object_of[text],))
    digits = repo.algorithm.hex_length
    if _SHORTEST_PREFIX <= len(text) <= digits and set(text) <= set("0123456789abcdef") and tags.find(repo, text) is None:
        return frozenset((_object(repo, text),))
    if text.startswith("sha256:") and tags.find(repo, text) is None:
        found = {
            links.object_of[name]
            for kind in ("manifest", "config", "layer", "blob")
            if (name := f"oci-{kind}-{text}") in links.object_of
        }
        if found:
            return frozenset(found)
    digest = tags.resolve(repo, text, ended=True)
    object_id = repo.stream_object(ContentId.manifest(digest))
    if object_id is None:
        raise TargetNotFound(kind="manifest", name=digest)
    return frozenset((object_id,))


def _object(repo: ReadRepo, prefix: str) -> ObjectId:
    if len(prefix) == repo.algorithm.hex_length:
        return ObjectId.trusted(prefix)
    names = repo.names(f"{layout.OBJECTS}/{prefix[:2]}") or ()
    found = sorted(prefix[:2] + name for name in names if name.startswith(prefix[2:]))
    if not found:
        raise TargetNotFound(kind="object", name=prefix)
    if len(found) > 1:
        raise AmbiguousName(name=prefix, candidates=tuple(found))
    return ObjectId.parse(found[0], repo.algorithm)


def _content(repo: ReadRepo, text: str, path: str) -> frozenset[ObjectId]:
    """The object that holds the content of a file in an image."""
    image = _image(repo, text)
    with mapped(repo, image, text) as data:
        node = erofs.read_path(data, path)
    if node is None or node.object is None:
        kind = "file" if node is None else "file with content of its own (small ones are in the image itself)"
        raise TargetNotFound(kind=kind, name=path)
    return frozenset((node.object,))


def _image(repo: ReadRepo, text: str) -> ObjectId:
    try:
        found = repo.image_object(text) if "/" not in text else None
        if found is not None:
            return found
    except CfsTagsError:
        pass
    erofs_ids = contents.load(repo, tags.resolve(repo, text, ended=True)).erofs
    for key in sorted(erofs_ids, key=lambda key: key.startswith(contents.BOOT_KEY)):
        return erofs_ids[key]
    raise TargetNotFound(kind="EROFS image of", name=text)


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
            object_id = repo.stream_object(ContentId.manifest(digest))
        except (CfsTagsError, NotFoundError):
            continue
        if object_id is not None and search.leads(object_id, ContentId.manifest(digest), entry.ref):
            return LastKept(entry.ref, digest, entry.time, entry.action, entry.by)
    return None
