"""What a registry shows of a repository: the visible tags, their manifests, and the blobs that these name.

Nothing else is reachable.  A manifest is served if a visible tag names it, or if it is a referrer (signature, SBOM) of one
that is served; a blob if a manifest that is served names it; each under the repository of that tag alone.  Where the index of a
tag was kept (``import --keep-index``), the tag stands for it, and so for those of its manifests that visible tags name: an
index comes from outside, and can name anything.

Visible are, without a pattern, all tags whose owner is ``app``: shared, private, and leases until they end.  With patterns:
whatever fits one of them, tags of bootc's and deployment refs among it.  The trash never is.

**What is remembered.**  A :class:`_View` has the tags, and what was found out about them; it is made anew when a time stamp
of a directory that was looked at differs.  Of each manifest a few :class:`_Facts` are kept, for as long as it is shown, and
of the last ones all of it.
"""

from __future__ import annotations

import os
import re
from array import array
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from fnmatch import translate
from time import monotonic, time_ns
from typing import NamedTuple

from cfs_tags.apps import layer_tar
from cfs_tags.apps.manifests import plain_index
from cfs_tags.errors import CfsTagsError, DamagedError, MissingObject, NotFoundError, TargetNotFound, UnsupportedError
from cfs_tags.formats import oci
from cfs_tags.registry.images import INDEX_TYPES, Blob, Manifest, NotServed, manifest, one_of
from cfs_tags.registry.names import Place, place_of
from cfs_tags.repo import arriving, images, layout, refs
from cfs_tags.repo.store import ReadRepo
from cfs_tags.tags.rows import Tag, list_tags, moment, owner_of, referrers
from cfs_tags.values import ContentId, Digest, ObjectId

_TOPS = (layout.SHARED_TAGS, layout.PRIVATE_TAGS, layout.LEASES, layout.DEPLOYMENTS, layout.INDEXES)
_SETTLED = 100_000_000
"""Nanoseconds after which a directory's time stamp tells of every change before: file systems count in ticks."""
_MAX_PATH = 600
"""Characters of a path of a directory that is watched: no tag that stands deeper has a name that can be served."""
_SOME = 4
"""Manifests that are remembered for a blob: thousands may name it, and any will do."""
_MAX_DEPTH = 4
"""How far referrers of referrers are followed."""
_MAX_REFERRERS = 10_000
"""Most manifests that are reached from the tags of one repository by way of referrers."""


class Row(NamedTuple):
    """A tag and where it is served: ``place`` is None, and ``note`` says why, where it is not."""

    tag: Tag
    place: Place | None
    note: str | None


class LayerState(NamedTuple):
    """What other hosts get to know about a layer.

    Attributes:
        state: as in ``repo/arriving.py``.
        by: which import it is that has it under way.
        size: bytes of it, uncompressed, where it is here.
    """

    state: str
    by: str
    size: int


def _progress(layer: arriving.Layer) -> int:
    return arriving.STATES.index(layer.state)


class Paused(Exception):
    """A look-up took its share of time: asked for again, it continues where it was."""


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
        self.names: dict[int, list[Digest]] | None = None
        self.stamps: dict[str, int | None] = {}
        self.taken = time_ns()
        self.ends: str | None = None  # when the first of its leases does


class Catalog:
    """The visible tags of a repository.  Takes no lock.  For one thread.

    Args:
        repo: which.
        patterns: in the way of a shell (``*``, ``?``, ``[abc]``), for names as ``cfs-tag list`` shows them; none for the
            tags of apps.
        cache: bytes, about, of manifests that are remembered.

    Attributes:
        idle_patterns: those that fit no tag, as :meth:`rows` was last made.
        until: when, as :func:`time.monotonic` counts, a look-up that has to read many manifests raises :class:`Paused`.
    """

    def __init__(self, repo: ReadRepo, patterns: Sequence[str] = (), *, cache: int = 16 << 20) -> None:
        self._repo = repo
        self._patterns = [(pattern, re.compile(translate(pattern))) for pattern in patterns]
        self.idle_patterns: list[str] = []
        self._owners = ("app", "bootc", "deployment") if patterns else ("app",)
        self.until = float("inf")
        self._view: _View | None = None
        self._facts: dict[Digest, _Facts] = {}
        self._known: OrderedDict[Digest, tuple[ObjectId, Manifest]] = OrderedDict()
        self._room = cache
        self._objects: tuple[int | None, ...] = ()
        self._missing: dict[ObjectId, tuple[ObjectId, ...]] = {}
        self._holes: dict[Digest, str | None] = {}

    # -- manifests and blobs -------------------------------------------------------------------------------------------

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
        """What is served of a manifest of the repository, visible or not, down to the content of its layers."""
        made = self._load(digest)
        return made if isinstance(made, NotServed) else self._without_holes(made)

    def by_tag(self, repository: str, reference: str) -> Manifest | NotServed | None:
        """The manifest that a tag names, or the index that it stands for."""
        view = self._current()
        digest = view.repositories.get(repository, {}).get(reference)
        if digest is None:
            return None
        return view.indexes.get(repository, {}).get(reference) or self.manifest_of(digest)

    def by_digest(self, repository: str, digest: Digest) -> Manifest | NotServed | None:
        """The manifest with that digest, if a visible tag of the repository leads to it.

        The digest of an original whose layers are kept in another form is answered with where to find it: its bytes name
        blobs that are missing.
        """
        view = self._current()
        found: Manifest | NotServed | None = None
        for index in view.indexes.get(repository, {}).values():
            if digest in (index.digest, index.original):
                found = index
                break
        else:
            # those of tags first: what refers to them need not be read then
            if digest in view.roots.get(repository, ()):
                found = self.manifest_of(digest)
            else:
                for original in self._reached(view, repository):
                    facts = self._facts_of(view, original)
                    if original == digest or (facts is not None and facts.digest == digest):
                        found = self.manifest_of(original)
                        break
        if isinstance(found, Manifest) and found.digest != digest:
            return NotServed(f"layers are kept uncompressed here: it is served as {found.digest}")
        return found

    def blob(self, repository: str, digest: Digest) -> Blob | None:
        """The blob with that digest, if a manifest names it that is served in the repository."""
        view = self._current()
        # those of tags first: what refers to them need not be read for the blob of an image
        found = self._named(view, view.roots.get(repository, ()), digest)
        return found or self._named(view, self._reached(view, repository), digest)

    def any_blob(self, digest: Digest) -> Blob | None:
        """The blob with that digest of any repository; or a layer that an import has by now, whose tags would be visible."""
        view = self._current()
        found = self._named(view, self._all_names(view).get(hash(digest), ()), digest)
        if found is not None:
            return found
        layer = self._arriving([digest]).get(digest)
        if layer is None or layer[1].stream is None:
            return None
        with suppress(CfsTagsError):
            return Blob(digest, layer_tar.size(self._repo, layer[1].stream), layer[1].stream)
        return None

    def _all_names(self, view: _View) -> dict[int, list[Digest]]:
        """Manifests by the hash of the digest of each blob that they name, a few for each.  Raises Paused."""
        if view.names is None:
            names: dict[int, list[Digest]] = {}
            for repository in view.roots:
                for original in (*view.roots[repository], *self._reached(view, repository)):
                    facts = self._facts_of(view, original)
                    for name in facts.names if facts is not None else ():
                        known = names.setdefault(name, [])
                        if len(known) < _SOME and original not in known:
                            known.append(original)
            view.names = names
        return view.names

    def layers(self, digests: Sequence[Digest]) -> dict[Digest, LayerState]:
        """What is known of layers, by diff_id; those of which nothing is are left out."""
        found: dict[Digest, LayerState] = {}
        under_way = self._arriving(digests)
        for digest in digests:
            blob = self.any_blob(digest)
            if blob is not None:
                found[digest] = LayerState("here", "", blob.size)
            elif digest in under_way and under_way[digest][1].stream is None:
                by, layer = under_way[digest]
                found[digest] = LayerState(layer.state, by, 0)
        return found

    def _arriving(self, digests: Sequence[Digest]) -> dict[Digest, tuple[str, arriving.Layer]]:
        """Of some layers how far the import is that has got farthest, of those whose tags would all be visible."""
        found: dict[Digest, tuple[str, arriving.Layer]] = {}
        for one in arriving.announced(self._repo):
            if not one.names or not all(map(self._would_show, one.names)):  # whose each layer is it does not say
                continue
            for digest in digests:
                layer = one.layers.get(digest)
                known = found.get(digest)
                if layer is not None and (known is None or _progress(layer) > _progress(known[1])):
                    found[digest] = one.by, layer
        return found

    def _would_show(self, name: str) -> bool:
        """Whether a tag of that name is visible once it is there."""
        if isinstance(place_of(name), str):
            return False
        if not self._patterns:
            return owner_of(name) in self._owners
        return any(compiled.match(name) for _, compiled in self._patterns)

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
            self._view = refs.read_at_once(self._repo, self._look, patience=None)
        return self._view

    def _still(self, view: _View) -> bool:
        """Whether nothing was changed since, every change of a link changes the time stamp of its directory, and no lease
        has ended."""
        if view.ends is not None and view.ends <= moment():
            return False
        for path, stamp in view.stamps.items():
            if self._stamp(path) != stamp or (stamp is not None and view.taken - stamp < _SETTLED):
                return False
        return True

    def _stamp(self, path: str) -> int | None:
        try:
            return self._repo.status(path).st_mtime_ns
        except OSError:
            return None

    def _watch(self, view: _View, path: str) -> None:
        """Have a directory's changes noticed; that one is made is noticed in the directory above."""
        stamp = self._stamp(path)
        if stamp is not None:
            view.stamps.setdefault(path, stamp)

    def _look(self) -> _View:
        view = _View()
        for path in (layout.STREAMS, layout.REFERRERS, *self._directories()):
            view.stamps[path] = self._stamp(path)
        placed: list[tuple[Place, Tag, Digest]] = []
        fitting: set[str] = set()
        for tag in list_tags(self._repo, owners=self._owners):
            fit = [pattern for pattern, compiled in self._patterns if compiled.match(tag.name)]
            fitting.update(fit)
            if self._patterns and not fit:
                continue
            if tag.home == "lease" and tag.expires is not None and not tag.has_ended:
                view.ends = min(view.ends or tag.expires, tag.expires)
            place = place_of(tag.name)
            if tag.digest is None or tag.problem is not None:
                view.rows.append(Row(tag, None, tag.problem or "it leads to no manifest"))
            elif isinstance(place, str):
                view.rows.append(Row(tag, None, place))
            else:
                placed.append((place, tag, tag.digest))
        for place, tag, digest in sorted(placed, key=lambda one: one[0].rank):
            known = view.repositories.setdefault(place.repository, {})
            if place.reference in known:
                note = f"another tag is served as {place.repository}:{place.reference}"
                view.rows.append(Row(tag, None, note))
                continue
            if place.reference is not None:
                known[place.reference] = digest
            view.roots.setdefault(place.repository, set()).add(digest)
            view.rows.append(Row(tag, place, None))
        self.idle_patterns = [pattern for pattern, _ in self._patterns if pattern not in fitting]
        view.rows.sort(key=lambda row: row.tag.name)
        shown = {row.tag.digest for row in view.rows if row.place is not None and row.tag.digest is not None}
        self._facts = {digest: facts for digest, facts in self._facts.items() if digest in shown or facts.subject is not None}
        kept = set(self._repo.names(layout.INDEXES) or ())
        for row in view.rows:
            if row.place is not None and (name := layout.encode_name(row.tag.name)) in kept:
                # it is an addition: what is wrong with it has the image served without it
                with suppress(CfsTagsError):
                    self._add_index(view, row.tag, row.place, f"{layout.INDEXES}/{name}", shown)
        return view

    def _directories(self) -> Iterator[str]:
        """The directories of refs in which something that can be served may stand."""
        pending = list(_TOPS)
        while pending:
            path = pending.pop()
            yield path
            fd = self._repo.directory(path)
            if fd is None:
                continue
            try:
                with os.scandir(fd) as entries:
                    below = [f"{path}/{entry.name}" for entry in entries if entry.is_dir(follow_symlinks=False)]
            finally:
                os.close(fd)
            pending += [path for path in below if len(path) <= _MAX_PATH]

    def _add_index(self, view: _View, tag: Tag, place: Place, path: str, shown: set[Digest]) -> None:
        """The index that was kept for a tag, if it is still the tag's.

        It leads to the manifests that visible tags name, and to what import keeps beside them (attestations).
        """
        content_id = layout.ref_target(path, self._repo.read_link(path) or "")
        digest = Digest.parse(content_id.removeprefix(ContentId.blob(Digest.trusted(""))))
        stream = self._repo.stream_object(content_id)
        if stream is None:
            raise MissingObject(object=content_id, needed_by=path)
        raw = self._repo.sole_content(self._repo.stream(stream, path), path)
        found = Digest.of(raw)
        if digest != found:
            raise DamagedError("digest-mismatch", path=path, wanted=digest, found=found)
        entries = [entry.digest for entry in oci.parse_index(raw).manifests]
        if tag.digest not in entries:
            return
        named = shown.intersection(entries)
        beside = {other for one in named for other in referrers(self._repo, one)}
        here: dict[str, tuple[Digest, int]] = {}
        for entry in entries:
            if entry in named or entry in beside:
                facts = self._facts_of(view, entry)
                if facts is not None:
                    here[entry] = facts.digest, facts.size
        for one in named:
            self._watch(view, f"{layout.REFERRERS}/{one}")
        if tag.digest not in here:
            return
        served = plain_index(raw, digest, here)
        parsed = oci.parse_index(served)
        view.indexes.setdefault(place.repository, {})[place.reference] = Manifest(
            digest=digest if served is raw else Digest.of(served),
            original=digest,
            raw=served,
            media_type=one_of(parsed.media_type, INDEX_TYPES),
            artifact_type=parsed.artifact_type,
            subject=parsed.subject.digest if parsed.subject is not None else None,
            annotations=dict(parsed.annotations),
            blobs={},
        )
        view.roots[place.repository].update(Digest.trusted(name) for name in here)

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
        """The refs of referrers whose manifests are here and name that subject."""
        self._watch(view, f"{layout.REFERRERS}/{digest}")
        found = []
        for other in referrers(self._repo, digest):
            facts = self._facts_of(view, other)
            if facts is not None and facts.subject == digest:
                found.append(other)
        return found

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
                made = manifest(self._repo, digest)
                if isinstance(made, Manifest):
                    self._remember(digest, stream, made)
        except (DamagedError, NotFoundError, UnsupportedError) as error:
            return NotServed(error.message)
        if isinstance(made, Manifest):
            names = array("q", map(hash, made.blobs))
            facts = _Facts(stream, made.digest, len(made.raw), made.subject, hash(made.artifact_type), names)
            self._facts[digest] = facts
            if self._view is not None and digest in self._view.facts:
                self._view.facts[digest] = facts  # what was missing may have come back
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

    def _without_holes(self, made: Manifest) -> Manifest | NotServed:
        """The same, if all content of its layers is there.  What was found holds until something in ``objects/`` changes."""
        taken = time_ns()
        stamps = tuple(self._stamp(f"{layout.OBJECTS}/{parent:02x}") for parent in range(256))
        if stamps != self._objects:
            self._holes.clear()
            self._missing.clear()
            is_settled = all(stamp is None or taken - stamp >= _SETTLED for stamp in stamps)
            self._objects = stamps if is_settled else ()
        if made.original not in self._holes:
            found = images.missing_content(self._repo, made.original, self._missing)
            gone = next((one for one in found if not one.key.startswith(images.EROFS_KEY)), None)
            self._holes[made.original] = images.describe(self._repo, gone) if gone is not None else None
        reason = self._holes[made.original]
        return made if reason is None else NotServed(reason)

    def doubt(self) -> None:
        """Look at content again: some that was thought to be there could not be sent."""
        self._objects = ()
