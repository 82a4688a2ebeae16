"""Why something is kept: every chain from a root to it, or that there is none and what kept it last.

Exact: splitstreams are read as they are and EROFS images walked, nothing is guessed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cfs_tags import tags
from cfs_tags.errors import AmbiguousName, CfsTagsError, NotFoundError, TargetNotFound
from cfs_tags.formats import erofs, layout
from cfs_tags.reachability import EROFS_KEY, Links, Node, content_ids, mapped, read_node
from cfs_tags.repo import contents, reflog, refs
from cfs_tags.values import ContentId, Digest, ObjectId

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cfs_tags.repo.store import ReadRepo

__all__ = ["LastKept", "Step", "Why", "explain"]

_SHORTEST_PREFIX = 6
_DEEPEST = 100


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


def explain(repo: ReadRepo, text: str, path: str | None = None) -> Why:
    """Every chain from a root to something.

    Args:
        repo: where; the caller holds its lock shared.
        text: an object id, or at least six digits of one; a name in ``streams/``; a digest ``sha256:…`` of a manifest,
            config or layer; a tag or anything else that :func:`cfs_tags.tags.resolve` knows.
        path: of a file in the image that ``text`` names; then its content is meant.

    Raises:
        TargetNotFound, TagNotFound: it stands for nothing.
        AmbiguousName: a prefix fits several objects.
        DamagedError: the image of ``path`` cannot be read.
    """
    links = Links(repo)
    wanted = _content(repo, text, path) if path is not None else _meant(repo, links, text)
    search = _Search(repo, links, wanted)
    chains: list[tuple[Step, ...]] = []
    for tree in (layout.STREAM_REFS, layout.IMAGE_REFS):
        for ref, link in sorted(refs.walk(repo, tree), key=lambda entry: entry.path):
            chains.extend((Step("ref", ref), *rest) for rest in search.from_ref(ref, link))
    last = None
    if not chains:
        last = _last_kept(repo, search)
    return Why(
        f"{text}:{path}" if path is not None else text,
        tuple(sorted(wanted)),
        all(repo.has_object(one) for one in wanted),
        bool(chains),
        tuple(chains),
        last,
        tuple(search.problems.values()),
    )


class _Search:
    """Finds the ways down to the wanted objects, looking at each node once."""

    def __init__(self, repo: ReadRepo, links: Links, wanted: frozenset[ObjectId]) -> None:
        self.problems: dict[str, str] = {}
        self._repo = repo
        self._links = links
        self._wanted = wanted
        self._raw = [bytes.fromhex(one) for one in wanted]
        self._ways: dict[ObjectId, tuple[tuple[Step, ...], ...]] = {}
        self._images: dict[ObjectId, frozenset[ObjectId]] = {}

    def from_ref(self, ref: str, link: str | None) -> Iterator[tuple[Step, ...]]:
        """The chains below a ref, without it."""
        if link is None:
            return
        try:
            name = layout.ref_target(ref, link)
            if ref.startswith(layout.IMAGES):
                object_id = self._repo.image_object(name)
                if object_id is not None:
                    yield from self._from_image(name, object_id, ref)
                return
            object_id = self._repo.stream_object(name)
        except CfsTagsError as error:
            self.problems[ref] = error.message
            return
        if object_id is not None:
            yield from self.from_stream(object_id, str(name), ref)

    def from_stream(self, object_id: ObjectId, name: str, why: str, depth: int = 0) -> tuple[tuple[Step, ...], ...]:
        """The chains from a splitstream on."""
        known = self._ways.get(object_id)
        if known is not None:
            return known
        if depth > _DEEPEST:
            self.problems[object_id] = f"{name} is named by {depth} streams in a row: not followed any further"
            return ()
        self._ways[object_id] = ()  # a stream that leads to itself has no way through itself
        step = Step(_kind(name), name, object_id)
        ways: list[tuple[Step, ...]] = [(step,)] if object_id in self._wanted else []
        try:
            node = read_node(self._repo, object_id, why)
        except CfsTagsError as error:
            self.problems[object_id] = error.message
            self._ways[object_id] = tuple(ways)
            return tuple(ways)
        ways.extend((step, Step("object", one, one)) for one in self._in_table(node))
        for key, target in node.named:
            if key.startswith(EROFS_KEY):
                if target in self._wanted:
                    ways.append((step, Step("erofs", key, target)))
                continue
            for child, child_name in self._behind(key, target):
                ways.extend((step, *rest) for rest in self.from_stream(child, child_name, name, depth + 1))
        self._ways[object_id] = tuple(ways)
        return tuple(ways)

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
                    self._images[object_id] = frozenset(erofs.object_refs(data, self._repo.algorithm))
            except CfsTagsError as error:
                self.problems[object_id] = error.message
                self._images[object_id] = frozenset()
        for one in sorted(self._wanted & self._images[object_id]):
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
    digest = tags.resolve(repo, text)
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
    erofs_ids = contents.load(repo, tags.resolve(repo, text)).erofs
    for key in sorted(erofs_ids, key=lambda key: key.startswith(contents.BOOT_KEY)):
        return erofs_ids[key]
    raise TargetNotFound(kind="EROFS image of", name=text)


# -- what was ----------------------------------------------------------------------------------------------------------


def _last_kept(repo: ReadRepo, search: _Search) -> LastKept | None:
    """The newest removal of a ref whose manifest is still here and led to what is asked for."""
    for entry in reversed(reflog.all_entries(repo).entries):
        if entry.old is None or entry.old == entry.new:
            continue
        digest = ContentId.trusted(entry.old.rpartition("/")[2]).manifest_digest
        if digest is None:
            continue
        try:
            object_id = repo.stream_object(ContentId.manifest(digest))
        except (CfsTagsError, NotFoundError):
            continue
        if object_id is not None and search.from_stream(object_id, ContentId.manifest(digest), entry.ref):
            return LastKept(entry.ref, digest, entry.time, entry.action, entry.by)
    return None
