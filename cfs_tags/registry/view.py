"""The visible tags at one time, where each is served, and what they lead to.

Visible are, without a pattern, all tags whose owner is ``app``: shared, private, and leases until they end.  With patterns:
whatever fits one of them, tags of bootc's and deployment refs among it.  The trash never is.

Where the index of a tag was kept (``import --keep-index``), the tag stands for it, and so for those of its manifests that
visible tags name: an index comes from outside, and can name anything.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from time import time_ns
from typing import NamedTuple

from cfs_tags.apps.manifests import plain_index
from cfs_tags.errors import CfsTagsError, DamagedError, MissingObject
from cfs_tags.formats import oci
from cfs_tags.registry.images import INDEX_TYPES, Manifest, one_of
from cfs_tags.registry.manifests import Facts, Manifests, stamp
from cfs_tags.registry.names import Place, place_of
from cfs_tags.repo import layout
from cfs_tags.repo.directory import is_settled
from cfs_tags.repo.store import ReadRepo
from cfs_tags.tags.rows import Tag, list_tags, moment, referrers
from cfs_tags.values import ContentId, Digest

_TOPS = (layout.SHARED_TAGS, layout.PRIVATE_TAGS, layout.LEASES, layout.DEPLOYMENTS, layout.INDEXES)
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


class View:
    """The visible tags, as :meth:`look` found them.

    Args:
        repo: which.
        manifests: of it.

    Attributes:
        rows: every tag that is meant, by name.
        repositories: digests by reference, by repository.
        roots: manifests that tags lead to, by repository.
        indexes: those that were kept for a tag, by reference, by repository.
        idle_patterns: those that fit no tag.
    """

    def __init__(self, repo: ReadRepo, manifests: Manifests) -> None:
        self._repo = repo
        self._manifests = manifests
        self.rows: list[Row] = []
        self.repositories: dict[str, dict[str, Digest]] = {}
        self.roots: dict[str, set[Digest]] = {}
        self.indexes: dict[str, dict[str | None, Manifest]] = {}
        self.idle_patterns: list[str] = []
        self._facts: dict[Digest, Facts | None] = {}
        self._reached: dict[str, list[Digest]] = {}
        self._names: dict[int, list[Digest]] | None = None
        self._stamps: dict[str, int | None] = {}
        self._taken = time_ns()
        self._ends: str | None = None  # when the first of its leases does

    def is_current(self) -> bool:
        """Whether nothing was changed since: every change of a link changes the time stamp of its directory; and no lease has
        ended."""
        if self._ends is not None and self._ends <= moment():
            return False
        for path, known in self._stamps.items():
            if stamp(self._repo, path) != known or (known is not None and not is_settled(known, self._taken)):
                return False
        return True

    def _watch(self, path: str) -> None:
        """Have a directory's changes noticed; that one is made is noticed in the directory above."""
        found = stamp(self._repo, path)
        if found is not None:
            self._stamps.setdefault(path, found)

    def look(self, owners: Sequence[str], patterns: Sequence[tuple[str, re.Pattern[str]]]) -> None:
        """Find the tags of some owners that fit one of the patterns, where there are any."""
        for path in (layout.STREAMS, layout.REFERRERS, *self._directories()):
            self._stamps[path] = stamp(self._repo, path)
        placed: list[tuple[Place, Tag, Digest]] = []
        fitting: set[str] = set()
        for tag in list_tags(self._repo, owners=owners):
            fit = [pattern for pattern, compiled in patterns if compiled.match(tag.name)]
            fitting.update(fit)
            if patterns and not fit:
                continue
            if tag.home == "lease" and tag.expires is not None and not tag.has_ended:
                self._ends = min(self._ends or tag.expires, tag.expires)
            place = place_of(tag.name)
            if tag.digest is None or tag.problem is not None:
                self.rows.append(Row(tag, None, tag.problem or "it leads to no manifest"))
            elif isinstance(place, str):
                self.rows.append(Row(tag, None, place))
            else:
                placed.append((place, tag, tag.digest))
        for place, tag, digest in sorted(placed, key=lambda one: one[0].rank):
            known = self.repositories.setdefault(place.repository, {})
            if place.reference in known:
                note = f"another tag is served as {place.repository}:{place.reference}"
                self.rows.append(Row(tag, None, note))
                continue
            if place.reference is not None:
                known[place.reference] = digest
            self.roots.setdefault(place.repository, set()).add(digest)
            self.rows.append(Row(tag, place, None))
        self.idle_patterns = [pattern for pattern, _ in patterns if pattern not in fitting]
        self.rows.sort(key=lambda row: row.tag.name)
        shown = {row.tag.digest for row in self.rows if row.place is not None and row.tag.digest is not None}
        self._manifests.forget_all_but(shown)
        kept = set(self._repo.names(layout.INDEXES) or ())
        for row in self.rows:
            if row.place is not None and (name := layout.encode_name(row.tag.name)) in kept:
                # it is an addition: what is wrong with it has the image served without it
                with suppress(CfsTagsError):
                    self._add_index(row.tag, row.place, f"{layout.INDEXES}/{name}", shown)

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

    def _add_index(self, tag: Tag, place: Place, path: str, shown: set[Digest]) -> None:
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
                facts = self.facts_of(entry)
                if facts is not None:
                    here[entry] = facts.digest, facts.size
        for one in named:
            self._watch(f"{layout.REFERRERS}/{one}")
        if tag.digest not in here:
            return
        served = plain_index(raw, digest, here)
        parsed = oci.parse_index(served)
        self.indexes.setdefault(place.repository, {})[place.reference] = Manifest(
            digest=digest if served is raw else Digest.of(served),
            original=digest,
            raw=served,
            media_type=one_of(parsed.media_type, INDEX_TYPES),
            artifact_type=parsed.artifact_type,
            subject=parsed.subject.digest if parsed.subject is not None else None,
            annotations=dict(parsed.annotations),
            blobs={},
        )
        self.roots[place.repository].update(Digest.trusted(name) for name in here)

    def facts_of(self, digest: Digest) -> Facts | None:
        """What there is to know of a manifest, None where it is not served.  Raises Paused."""
        if digest not in self._facts:
            self._facts[digest] = self._manifests.facts(digest)
        return self._facts[digest]

    def came_back(self, digest: Digest) -> None:
        """A manifest could be read: before, it may have been missing."""
        if digest in self._facts:
            self._facts[digest] = self._manifests.found[digest]

    def reached(self, repository: str) -> list[Digest]:
        """The manifests of a repository, those of its tags and what refers to them, by original digest."""
        known = self._reached.get(repository)
        if known is not None:
            return known
        pending = sorted(self.roots.get(repository, ()))
        room = _MAX_REFERRERS + len(pending)
        for index in self.indexes.get(repository, {}).values():
            pending.extend(self._referring(index.original))
        found: dict[Digest, None] = {}
        for _ in range(_MAX_DEPTH):
            following: list[Digest] = []
            for digest in pending:
                if digest not in found and len(found) < room:
                    found[digest] = None
                    self.facts_of(digest)
                    following.extend(self._referring(digest))
            pending = following
        self._reached[repository] = list(found)
        return self._reached[repository]

    def _referring(self, digest: Digest) -> list[Digest]:
        """The refs of referrers whose manifests are here and name that subject."""
        self._watch(f"{layout.REFERRERS}/{digest}")
        found = []
        for other in referrers(self._repo, digest):
            facts = self.facts_of(other)
            if facts is not None and facts.subject == digest:
                found.append(other)
        return found

    def naming(self, blob: Digest) -> list[Digest]:
        """Some manifests of any repository that name a blob, or one of the same hash.  Raises Paused."""
        if self._names is None:
            names: dict[int, list[Digest]] = {}
            for repository in self.roots:
                for original in (*self.roots[repository], *self.reached(repository)):
                    facts = self.facts_of(original)
                    for name in facts.names if facts is not None else ():
                        known = names.setdefault(name, [])
                        if len(known) < _SOME and original not in known:
                            known.append(original)
            self._names = names
        return self._names.get(hash(blob), [])
