"""What a registry shows of a repository: the visible tags, their manifests, and the blobs that these name.

Nothing else is reachable.  A manifest is served if a visible tag names it, or if it is a referrer (signature, SBOM) of one
that is served; a blob if a manifest that is served names it; each under the repository of that tag alone.  Where the index of a
tag was kept (``import --keep-index``), the tag stands for it, and so for those of its manifests that visible tags name: an
index comes from outside, and can name anything.

Visible are, without a pattern, all tags whose owner is ``app``: shared, private, and leases until they end.  With patterns:
whatever fits one of them, tags of bootc's and deployment refs among it.  The trash never is.
"""

from __future__ import annotations

import os
from array import array
from collections import OrderedDict
from contextlib import suppress
from time import monotonic, time_ns
from typing import TYPE_CHECKING, NamedTuple

from cfs_tags import tags
from cfs_tags.apps.names import Place, place_of
from cfs_tags.apps.plain import PlainLayer, plain_index, plain_manifest
from cfs_tags.apps.tarstream import opened
from cfs_tags.errors import (
    CfsTagsError,
    DamagedError,
    DigestMismatch,
    MissingObject,
    NotFoundError,
    TargetNotFound,
    UnsupportedError,
)
from cfs_tags.formats import layout, oci, splitstream
from cfs_tags.repo import contents
from cfs_tags.values import ContentId, Digest, ObjectId

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from cfs_tags.repo.contents import StoredImage, StoredLayer
    from cfs_tags.repo.store import ReadRepo

__all__ = ["Blob", "Catalog", "Manifest", "NotServed", "Paused", "Row"]

_SETTLED = 100_000_000
"""Nanoseconds after which a directory's time stamp tells of every change before: file systems count in ticks."""
_MAX_DEPTH = 4
"""How far referrers of referrers are followed."""
_MAX_REFERRERS = 10_000
"""Most manifests that are reached from the tags of one repository by way of referrers."""
_CACHE = 16 << 20
"""Bytes, about, of manifests that are remembered."""
_MANIFEST_TYPES = (oci.MEDIA_TYPE_MANIFEST, oci.MEDIA_TYPE_DOCKER_MANIFEST)
_INDEX_TYPES = (oci.MEDIA_TYPE_INDEX, oci.MEDIA_TYPE_DOCKER_INDEX)
"""What a document may call itself; anything else is its author's text, and would be a header of ours."""
_COMPRESSED = ("+gzip", "+zstd", ".gzip", ".zstd")


class Blob(NamedTuple):
    """What a manifest names: its digest, its size in bytes, the object of its splitstream."""

    digest: Digest
    size: int
    stream: ObjectId


class Manifest(NamedTuple):
    """A manifest as it is served.

    Attributes:
        digest: of ``raw``.
        original: digest of the manifest in the repository; the same where the bytes are.
        raw: what is sent.
        media_type: of it.
        artifact_type: as the referrers API says it; None for an index that does not.
        subject: what it refers to, None where it does not.
        annotations: foreign text by key.
        blobs: by digest.
    """

    digest: Digest
    original: Digest
    raw: bytes
    media_type: str
    artifact_type: str | None
    subject: Digest | None
    annotations: dict[str, str]
    blobs: dict[Digest, Blob]


class NotServed(NamedTuple):
    """Why something that has a name is not served."""

    reason: str


class Row(NamedTuple):
    """A tag and where it is served: ``place`` is None, and ``note`` says why, where it is not."""

    tag: tags.Tag
    place: Place | None
    note: str | None


class Paused(Exception):
    """A look-up takes too long, and is to be done again: it goes on where it was."""


class _Facts(NamedTuple):
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


class _View:
    """The visible tags at one time, and what was found out about them since."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.repositories: dict[str, dict[str, Digest]] = {}
        self.roots: dict[str, set[Digest]] = {}
        self.indexes: dict[str, dict[str | None, Manifest]] = {}
        self.facts: dict[Digest, _Facts | None] = {}
        self.reached: dict[str, list[Digest]] = {}
        self.stamps: dict[str, int | None] = {}
        self.taken = 0
        self.ends: str | None = None  # when the first of its leases does


class Catalog:
    """The visible tags of a repository.  Takes no lock: whoever asks holds it.  For one thread.

    Args:
        repo: which.
        patterns: in the way of a shell (``*``, ``?``, ``[abc]``), for names as ``cfs-tag list`` shows them; none for the
            tags of apps.

    Attributes:
        until: when, as :func:`time.monotonic` counts, a look-up that has to read many manifests raises :class:`Paused`.
    """

    def __init__(self, repo: ReadRepo, patterns: Sequence[str] = ()) -> None:
        self._repo = repo
        self._fits = _matcher(patterns)
        self._owners = ("app", "bootc", "deployment") if patterns else ("app",)
        self.until = float("inf")
        self._view: _View | None = None
        self._facts: dict[Digest, _Facts] = {}
        self._known: OrderedDict[Digest, tuple[ObjectId, Manifest]] = OrderedDict()
        self._weight = 0

    # -- what is there -------------------------------------------------------------------------------------------------

    def rows(self) -> list[Row]:
        """Every tag that the patterns fit, and where it is served."""
        return self._current().rows

    def repositories(self) -> list[str]:
        """The names of the repositories with something in them, sorted."""
        return sorted(self._current().roots)

    def tags_of(self, repository: str) -> list[str] | None:
        """The references of a repository, sorted; None where there is no such repository."""
        view = self._current()
        return sorted(view.repositories.get(repository, ())) if repository in view.roots else None

    def manifest_of(self, digest: Digest) -> Manifest | NotServed:
        """What is served of a manifest of the repository, visible or not."""
        return self._load(digest)

    def by_tag(self, repository: str, reference: str) -> Manifest | NotServed | None:
        """The manifest that a tag names, or the index that it stands for."""
        view = self._current()
        digest = view.repositories.get(repository, {}).get(reference)
        if digest is None:
            return None
        return view.indexes.get(repository, {}).get(reference) or self._load(digest)

    def by_digest(self, repository: str, digest: Digest) -> Manifest | NotServed | None:
        """The manifest with that digest, if a visible tag of the repository leads to it.

        The digest of an original whose layers are kept in another form is answered with where to find it: its bytes name
        blobs that are not to be had.
        """
        view = self._current()
        for index in view.indexes.get(repository, {}).values():
            if digest == index.digest:
                return index
            if digest == index.original:
                return _moved(index)
        if digest in view.roots.get(repository, ()):
            found = self._load(digest)
            return found if isinstance(found, NotServed) or found.digest == digest else _moved(found)
        for original in self._reached(view, repository):
            facts = self._facts_of(view, original)
            if original == digest or (facts is not None and facts.digest == digest):
                found = self._load(original)
                return found if isinstance(found, NotServed) or found.digest == digest else _moved(found)
        return None

    def blob(self, repository: str, digest: Digest) -> Blob | None:
        """The blob with that digest, if a manifest names it that is served in the repository."""
        view = self._current()
        # those of tags first: what refers to them need not be read for the blob of an image
        found = self._named(view, view.roots.get(repository, ()), digest)
        return found or self._named(view, self._reached(view, repository), digest)

    def _named(self, view: _View, manifests: Collection[Digest], digest: Digest) -> Blob | None:
        key = hash(digest)
        for original in manifests:
            facts = self._facts_of(view, original)
            if facts is not None and key in facts.names:
                manifest = self._load(original)
                if isinstance(manifest, Manifest) and digest in manifest.blobs:
                    return manifest.blobs[digest]
        return None

    def referrers(
        self, repository: str, digest: Digest, artifact_type: str | None = None, last: str = ""
    ) -> Iterator[Manifest]:
        """What refers to a manifest of the repository, by digest; it goes by its original digest and by that it has here.

        Args:
            repository: where.
            digest: of the manifest.
            artifact_type: of those that are wanted; None for all.
            last: only those whose digests come after this.
        """
        view = self._current()
        reached = [
            (original, facts) for original in self._reached(view, repository) if (facts := self._facts_of(view, original))
        ]
        names = {digest}
        for index in view.indexes.get(repository, {}).values():
            if digest in (index.original, index.digest):
                names |= {index.original, index.digest}
        for original, facts in reached:
            if digest in (original, facts.digest):
                names |= {original, facts.digest}
        kind = hash(artifact_type)
        found = [
            (facts.digest, original)
            for original, facts in reached
            if facts.subject in names and facts.digest > last and (artifact_type is None or facts.kind == kind)
        ]
        for _, original in sorted(found):
            manifest = self._load(original)
            if isinstance(manifest, Manifest) and artifact_type in (None, manifest.artifact_type):
                yield manifest

    # -- the view ------------------------------------------------------------------------------------------------------

    def _current(self) -> _View:
        if self._view is None or not self._still(self._view):
            self._view = self._look()
        return self._view

    def _still(self, view: _View) -> bool:
        """Whether nothing was changed since, every change of a link changes the time stamp of its directory, and no lease
        has ended."""
        if view.ends is not None and view.ends <= tags.moment():
            return False
        for path, stamp in view.stamps.items():
            if self._stamp(path) != stamp or (stamp is not None and view.taken - stamp < _SETTLED):
                return False
        return True

    def _stamp(self, path: str) -> int | None:
        try:
            return os.stat(path, dir_fd=self._repo.fd, follow_symlinks=False).st_mtime_ns
        except OSError:
            return None

    def _look(self) -> _View:
        view = _View()
        view.taken = time_ns()
        for path in (layout.STREAMS, layout.REFERRERS):
            view.stamps[path] = self._stamp(path)
        for top in (layout.SHARED_TAGS, layout.PRIVATE_TAGS, layout.LEASES, layout.DEPLOYMENTS, layout.INDEXES):
            for path in self._directories(top):
                view.stamps[path] = self._stamp(path)
        ranks: dict[tuple[str, str | None], int] = {}
        for tag in tags.list_tags(self._repo, owners=self._owners):
            if not self._fits(tag.name):
                continue
            if tag.home == "lease" and tag.expires is not None and not tag.has_ended:
                view.ends = min(view.ends or tag.expires, tag.expires)
            place = place_of(tag.name)
            if tag.digest is None or tag.problem is not None:
                view.rows.append(Row(tag, None, tag.problem or "it leads to no manifest"))
            elif isinstance(place, str):
                view.rows.append(Row(tag, None, place))
            else:
                self._add(view, ranks, tag, tag.digest, place)
        shown = {row.tag.digest for row in view.rows if row.place is not None and row.tag.digest is not None}
        self._facts = {digest: facts for digest, facts in self._facts.items() if digest in shown or facts.subject is not None}
        kept = set(self._repo.names(layout.INDEXES) or ())
        for row in view.rows if kept else ():
            name = layout.encode_name(row.tag.name)
            if row.place is not None and name in kept:
                self._add_index(view, row, f"{layout.INDEXES}/{name}", shown)
        return view

    def _add_index(self, view: _View, row: Row, path: str, shown: set[Digest]) -> None:
        """The index that was kept for a tag, if it is still the tag's."""
        assert row.place is not None
        assert row.tag.digest is not None
        try:
            index, entries = self._index(view, path, shown)
        except CfsTagsError:
            return  # it is an addition: the image is served without it
        if row.tag.digest in entries:
            repository, reference, _ = row.place
            view.indexes.setdefault(repository, {})[reference] = index
            view.roots[repository].update(entries)

    def _index(self, view: _View, path: str, shown: set[Digest]) -> tuple[Manifest, list[Digest]]:
        """An index as it is served, and the manifests that it leads to, by their original digests.

        Those are the ones that visible tags name, and what import keeps beside them (attestations).
        """
        import hashlib

        content_id = layout.ref_target(path, self._repo.read_link(path) or "")
        digest = Digest.parse(content_id.removeprefix(ContentId.blob(Digest.trusted(""))))
        stream = self._repo.stream_object(content_id)
        if stream is None:
            raise MissingObject(object=content_id, needed_by=path)
        raw = self._repo.sole_content(self._repo.stream(stream, path), path)
        found = f"sha256:{hashlib.sha256(raw).hexdigest()}"
        if digest != found:
            raise DigestMismatch(path=path, wanted=digest, found=found)
        entries = [entry.digest for entry in oci.parse_index(raw).manifests]
        named = shown.intersection(entries)
        beside = {other for one in named for other in tags.referrers(self._repo, one)}
        here: dict[str, tuple[Digest, int]] = {}
        for entry in entries:
            if entry in named or entry in beside:
                facts = self._facts_of(view, entry)
                if facts is not None:
                    here[entry] = facts.digest, facts.size
        for one in named:
            self._watch(view, f"{layout.REFERRERS}/{one}")
        served = plain_index(raw, digest, here)
        parsed = oci.parse_index(served)
        made = Manifest(
            digest=digest if served is raw else Digest.trusted(f"sha256:{hashlib.sha256(served).hexdigest()}"),
            original=digest,
            raw=served,
            media_type=_one_of(parsed.media_type, _INDEX_TYPES),
            artifact_type=parsed.artifact_type,
            subject=parsed.subject.digest if parsed.subject is not None else None,
            annotations=dict(parsed.annotations),
            blobs={},
        )
        return made, [Digest.trusted(name) for name in here]

    def _directories(self, top: str) -> Iterator[str]:
        """A directory of refs and all below it."""
        yield top
        fd = self._repo.directory(top)
        if fd is None:
            return
        try:
            with os.scandir(fd) as entries:
                below = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        finally:
            os.close(fd)
        for name in below:
            yield from self._directories(f"{top}/{name}")

    def _add(self, view: _View, ranks: dict[tuple[str, str | None], int], tag: tags.Tag, digest: Digest, place: Place) -> None:
        repository, reference, rank = place
        if reference is not None:
            known = ranks.get((repository, reference))
            if known is not None and known <= rank:
                view.rows.append(Row(tag, None, f"another tag is served as {repository}:{reference}"))
                return
            if known is not None:
                for index, row in enumerate(view.rows):
                    if row.place is not None and row.place[:2] == (repository, reference):
                        view.rows[index] = Row(row.tag, None, f"another tag is served as {repository}:{reference}")
                        assert row.tag.digest is not None
                        self._forget(view, repository, row.tag.digest)
            ranks[repository, reference] = rank
            view.repositories.setdefault(repository, {})[reference] = digest
        view.roots.setdefault(repository, set()).add(digest)
        view.rows.append(Row(tag, place, None))

    @staticmethod
    def _forget(view: _View, repository: str, digest: Digest) -> None:
        """A tag lost its place: its manifest is visible only if another tag of the repository names it."""
        if not any(row.place and row.place.repository == repository and row.tag.digest == digest for row in view.rows):
            view.roots[repository].discard(digest)

    def _reached(self, view: _View, repository: str) -> list[Digest]:
        """The manifests of a repository, those of its tags and what refers to them, by original digest."""
        known = view.reached.get(repository)
        if known is not None:
            return known
        pending = sorted(view.roots.get(repository, ()))
        room = _MAX_REFERRERS + len(pending)
        for index in view.indexes.get(repository, {}).values():
            pending.extend(self._referring(view, index.original))
        found: dict[Digest, None] = {}
        for _ in range(_MAX_DEPTH):
            following: list[Digest] = []
            for digest in pending:
                if digest not in found and len(found) < room:
                    found[digest] = None
                    self._facts_of(view, digest)
                    following.extend(self._referring(view, digest))
            pending = following
        view.reached[repository] = list(found)
        return view.reached[repository]

    def _referring(self, view: _View, digest: Digest) -> list[Digest]:
        """What the refs of referrers say, as far as it is true."""
        self._watch(view, f"{layout.REFERRERS}/{digest}")
        found = []
        for other in tags.referrers(self._repo, digest):
            facts = self._facts_of(view, other)
            if facts is not None and facts.subject == digest:
                found.append(other)
        return found

    def _watch(self, view: _View, path: str) -> None:
        """Have a directory's changes noticed; that one is made is noticed in the directory above."""
        stamp = self._stamp(path)
        if stamp is not None:
            view.stamps.setdefault(path, stamp)

    # -- manifests -----------------------------------------------------------------------------------------------------

    def _facts_of(self, view: _View, digest: Digest) -> _Facts | None:
        """What there is to know of a manifest, None where it is not served.  Raises Paused."""
        if digest not in view.facts:
            view.facts[digest] = self._find_facts(digest)
        return view.facts[digest]

    def _find_facts(self, digest: Digest) -> _Facts | None:
        known = self._facts.get(digest)
        if known is not None:
            with suppress(CfsTagsError):
                if self._repo.stream_object(ContentId.manifest(digest)) == known.stream:
                    return known
        if monotonic() > self.until:
            raise Paused
        return self._facts[digest] if isinstance(self._load(digest), Manifest) else None

    def _load(self, digest: Digest) -> Manifest | NotServed:
        try:
            stream = self._repo.stream_object(ContentId.manifest(digest))
            if stream is None:
                raise TargetNotFound(kind="manifest", name=digest)
            known = self._known.get(digest)
            if known is not None and known[0] == stream:
                self._known.move_to_end(digest)
                made: Manifest | NotServed = known[1]
            else:
                made = _manifest(self._repo, digest)
                if isinstance(made, Manifest):
                    self._remember(digest, stream, made)
        except (DamagedError, NotFoundError, UnsupportedError) as error:
            return NotServed(error.message)
        if isinstance(made, Manifest) and digest not in self._facts:
            self._note(digest, stream, made)
        return made

    def _note(self, digest: Digest, stream: ObjectId, made: Manifest) -> None:
        names = array("q", map(hash, made.blobs))
        facts = _Facts(stream, made.digest, len(made.raw), made.subject, hash(made.artifact_type), names)
        self._facts[digest] = facts
        if self._view is not None and digest in self._view.facts:
            self._view.facts[digest] = facts  # what was missing may have come back

    def _remember(self, digest: Digest, stream: ObjectId, made: Manifest) -> None:
        replaced = self._known.pop(digest, None)
        if replaced is not None:
            self._weight -= _weight(replaced[1])
        self._note(digest, stream, made)
        self._known[digest] = stream, made
        self._weight += _weight(made)
        while self._weight > _CACHE and len(self._known) > 1:
            self._weight -= _weight(self._known.popitem(last=False)[1][1])


# -- details -----------------------------------------------------------------------------------------------------------


def _weight(manifest: Manifest) -> int:
    return 2000 + 4 * len(manifest.raw) + 1000 * len(manifest.blobs)


def _one_of(found: str | None, known: Sequence[str]) -> str:
    """A media type that is known; the first of them in place of another."""
    return found if found is not None and found in known else known[0]


def _moved(manifest: Manifest) -> NotServed:
    return NotServed(f"layers are kept uncompressed here: it is served as {manifest.digest}")


def _matcher(patterns: Sequence[str]) -> Callable[[str], object]:
    if not patterns:
        return lambda name: True
    import re
    from fnmatch import translate

    return re.compile("|".join([translate(pattern) for pattern in patterns])).match


def _manifest(repo: ReadRepo, digest: Digest) -> Manifest | NotServed:
    """Read an image, and make of it what can be served."""
    import hashlib

    image = contents.load(repo, digest)
    raw = contents.raw_manifest(repo, digest)
    config = image.manifest.config
    blobs = {config.digest: Blob(config.digest, config.size, image.config_object)}
    plain: list[PlainLayer | None] = []
    for layer in image.layers:
        made = _layer(repo, image, layer)
        if isinstance(made, NotServed):
            return made
        blobs[made.digest] = made
        plain.append(None if made.digest == layer.descriptor.digest else PlainLayer(made.digest, made.size))
    served = plain_manifest(raw, digest, plain)
    manifest = image.manifest
    return Manifest(
        digest=digest if served is raw else Digest.trusted(f"sha256:{hashlib.sha256(served).hexdigest()}"),
        original=digest,
        raw=served,
        media_type=_one_of(manifest.media_type, _MANIFEST_TYPES),
        artifact_type=manifest.artifact_type or config.media_type,
        subject=manifest.subject.digest if manifest.subject is not None else None,
        annotations=dict(oci.parse_manifest(served).annotations),
        blobs=blobs,
    )


def _layer(repo: ReadRepo, image: StoredImage, layer: StoredLayer) -> Blob | NotServed:
    """What is kept of a layer, by the digest that it has in that form."""
    descriptor = layer.descriptor
    if layer.object is None:
        return NotServed(f"layer {descriptor.digest} is not in the repository")
    try:
        kind, size = _head(repo, layer.object, descriptor.digest)
    except CfsTagsError as error:
        return NotServed(error.message)
    if image.config is None:
        # an artifact's layer goes by the digest of the blob; cfsctl unpacks those that say they are compressed tars
        changed = kind == splitstream.CONTENT_TYPE_LAYER and descriptor.media_type.endswith(_COMPRESSED)
        if changed or size != descriptor.size:
            return NotServed(f"layer {descriptor.digest} is kept in another form than it came in")
        return Blob(descriptor.digest, size, layer.object)
    assert layer.diff_id is not None
    return Blob(layer.diff_id, size, layer.object)


def _head(repo: ReadRepo, object_id: ObjectId, needed_by: str) -> tuple[int, int]:
    """Content type and size of what a splitstream stands for."""
    with opened(repo, object_id, needed_by) as stream:
        return stream.content_type, stream.stream_size
