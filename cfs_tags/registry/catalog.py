"""What a registry shows of a repository: the visible tags, their manifests, and the blobs that these name.

Nothing else is reachable.  A manifest is served if a visible tag names it, or if it is a referrer (signature, SBOM) of one
that is served; a blob if a manifest that is served names it; each under the repository of that tag alone.  Where the index of a
tag was kept (``import --keep-index``), the tag stands for it, and so for those of its manifests that visible tags name: an
index comes from outside, and can name anything.

What is visible stands in ``view.py``, and what is remembered of manifests in ``manifests.py``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from fnmatch import translate
from typing import NamedTuple

from cfs_tags.apps import layer_tar
from cfs_tags.errors import CfsTagsError
from cfs_tags.registry.images import Blob, Manifest, NotServed
from cfs_tags.registry.manifests import Manifests
from cfs_tags.registry.names import place_of
from cfs_tags.registry.view import Row, View
from cfs_tags.repo import arriving, refs
from cfs_tags.repo.store import ReadRepo
from cfs_tags.tags.rows import owner_of
from cfs_tags.values import Digest


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


class Catalog:
    """The visible tags of a repository.  Takes no lock.  For one thread.

    Args:
        repo: which.
        patterns: in the way of a shell (``*``, ``?``, ``[abc]``), for names as ``cfs-tag list`` shows them; none for the
            tags of apps.
        cache: bytes, about, of manifests that are remembered.

    Attributes:
        manifests: of the repository; their ``until`` bounds a look-up that has to read many of them.
    """

    def __init__(self, repo: ReadRepo, patterns: Sequence[str] = (), *, cache: int = 16 << 20) -> None:
        self._repo = repo
        self._patterns = [(pattern, re.compile(translate(pattern))) for pattern in patterns]
        self._owners = ("app", "bootc", "deployment") if patterns else ("app",)
        self._view: View | None = None
        self.manifests = Manifests(repo, cache)

    # -- manifests and blobs -------------------------------------------------------------------------------------------

    def rows(self) -> list[Row]:
        """Every tag that the patterns fit, and where it is served."""
        return self._current().rows

    def idle_patterns(self) -> list[str]:
        """The patterns that fit no tag."""
        return self._current().idle_patterns

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
        return made if isinstance(made, NotServed) else self.manifests.without_holes(made)

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
                for original in view.reached(repository):
                    facts = view.facts_of(original)
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
        return found or self._named(view, view.reached(repository), digest)

    def any_blob(self, digest: Digest) -> Blob | None:
        """The blob with that digest of any repository; or a layer that an import has by now, whose tags would be visible."""
        view = self._current()
        found = self._named(view, view.naming(digest), digest)
        if found is not None:
            return found
        layer = self._arriving([digest]).get(digest)
        if layer is None or layer[1].stream is None:
            return None
        with suppress(CfsTagsError):
            return Blob(digest, layer_tar.size(self._repo, layer[1].stream), layer[1].stream)
        return None

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

    def _named(self, view: View, manifests: Collection[Digest], digest: Digest) -> Blob | None:
        key = hash(digest)
        for original in manifests:
            facts = view.facts_of(original)
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
        reached = [(original, facts) for original in view.reached(repository) if (facts := view.facts_of(original))]
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

    def _load(self, digest: Digest) -> Manifest | NotServed:
        made = self.manifests.load(digest)
        if self._view is not None and isinstance(made, Manifest):
            self._view.came_back(digest)
        return made

    def _current(self) -> View:
        if self._view is None or not self._view.is_current():
            self._view = refs.read_at_once(self._repo, self._look, patience=None)
        return self._view

    def _look(self) -> View:
        view = View(self._repo, self.manifests)
        view.look(self._owners, self._patterns)
        return view
