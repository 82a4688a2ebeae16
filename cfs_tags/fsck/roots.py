"""The refs: where each leads, whose it is, and what it should be."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from cfs_tags.errors import BadRefLink, CfsTagsError, FormatError
from cfs_tags.formats import splitstream
from cfs_tags.fsck.findings import Finding, finding
from cfs_tags.fsck.links import is_utf8, read_link
from cfs_tags.repo import images, layout, refs
from cfs_tags.tags import pins
from cfs_tags.tags.rows import HOMES, index_of_ref, name_of_ref, owner_of_ref, pin_of_ref, tag_of_ref
from cfs_tags.values import ContentId, ObjectId

if TYPE_CHECKING:
    from cfs_tags.fsck.images import Streams
    from cfs_tags.repo.refs import RefEntry
    from cfs_tags.repo.store import ReadRepo

_LEFT_OVER = ".symlink-"
_SHOWN = 10
"""Refs that are named for one image."""
_NESTED = ("nested-ref", "looping-ref")


class BrokenRef(NamedTuple):
    """A ref at which the peers' collectors stop.

    ``name`` is what it leads to in ``streams/`` or ``images/``; the empty text where it leads elsewhere.
    """

    path: str
    link: str
    code: str
    reason: str
    owner: str
    name: str


class Roots(NamedTuple):
    """All refs, those that are broken, and what was found."""

    entries: tuple[RefEntry, ...]
    broken: list[BrokenRef]
    findings: list[Finding]


@refs.at_once
def read_refs(repo: ReadRepo) -> Roots:
    """Read all refs, in order; the links that they lead to are read afterwards, because they were made before."""
    entries: list[RefEntry] = []
    findings: list[Finding] = []
    for top in (layout.STREAM_REFS, layout.IMAGE_REFS):
        try:
            entries += refs.walk(repo, top)
        except FormatError as error:
            findings.append(finding("not-a-directory", top, f"it is {error.found}"))
    return Roots(tuple(sorted(entries)), [], findings)


def check_refs(repo: ReadRepo, roots: Roots, streams: Streams, now: str) -> None:
    """Check the refs against the links; what is found is added to ``roots``.

    Args:
        repo: where.
        roots: as read.
        streams: of the repository, checked.
        now: ``YYYYMMDDThhmmssZ``, to which expiries are compared.
    """
    checker = _Checker(repo, roots, streams, now)
    for entry in roots.entries:
        checker.ref(entry.path, entry.target)
    checker.deployments()
    checker.pins()
    checker.homes()
    checker.indexes()
    checker.content()


class _Checker:
    def __init__(self, repo: ReadRepo, roots: Roots, streams: Streams, now: str) -> None:
        self._repo = repo
        self._roots = roots
        self._streams = streams
        self._now = now
        self._targets = {entry.path: entry.target for entry in roots.entries}
        self._good: dict[str, str] = {}

    def content(self) -> None:
        """Images of which content is gone: which refs they have, and which files."""
        needed: dict[str, list[str]] = {}
        for path, name in self._good.items():
            needed.setdefault(name, []).append(name_of_ref(path) if pin_of_ref(path) else tag_of_ref(path) or path)
        known: dict[ObjectId, tuple[ObjectId, ...]] = {}
        for name, found in needed.items():
            digest = ContentId.trusted(name).manifest_digest
            if digest is None or self._streams.is_whole(name):
                continue
            more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            with suppress(CfsTagsError):  # what cannot be read is a finding of its own
                for missing in images.missing_content(self._repo, digest, known):
                    lacks = images.describe(self._repo, missing)
                    self._add("content-missing", f"streams/{name}", f"{', '.join(sorted(found)[:_SHOWN])}{more}: {lacks}")

    def _add(self, code: str, path: str, message: str) -> None:
        self._roots.findings.append(finding(code, path, message))

    def ref(self, path: str, link: str | None) -> None:
        """One ref by itself."""
        if not is_utf8(path):
            self._add("undecodable-ref", path, "its name is not UTF-8")
        if link is None:
            self._no_link(path)
            return
        if path.startswith(f"{layout.SHARED_TAGS}/") and path.rpartition("/")[2].startswith(_LEFT_OVER):
            self._add("left-over-link", path, "left over from an interrupted cfsctl: a tag, and a root")
        name = self._target(path, link)
        if name is None:
            return
        self._good[path] = name
        tag = tag_of_ref(path)
        if tag is not None:
            self._tag(path, name, tag)
        elif path.startswith(f"{layout.PINS}/"):
            self._dated("pin", path)
        elif path.startswith(f"{layout.REFERRERS}/"):
            self._referrer(path, name)

    def _no_link(self, path: str) -> None:
        refused = refs.not_given(self._repo, path)
        if refused is not None:
            self._add("unreadable", path, refused.reason)
        else:
            self._add("not-a-link", path, "it is no link")

    def _target(self, path: str, link: str) -> str | None:
        """The name that a ref leads to, where it leads to something that is there."""
        tree = path.partition("/")[0]
        try:
            name = layout.ref_target(path, link)
        except BadRefLink as error:
            code, reason = self._bad_link(path, link, error.reason)
            self._add(code, path, f"-> {link}: {reason}")
            if code in _NESTED and link.rpartition("/")[2] not in self._streams.links.of(tree):
                self._roots.broken.append(BrokenRef(path, link, code, reason, owner_of_ref(path), ""))
            return None
        if name in self._streams.links.of(tree):
            return name
        problems: list[Finding] = []
        target = read_link(self._repo, f"{tree}/{name}", problems)
        if target is not None and self._repo.has_object(target):
            return name  # made since
        if problems:
            # the ref is not at fault, and taking it out would not help
            self._add("dangling-ref", path, f"it leads to {tree}/{name}: {problems[0].message}")
            return None
        reason = f"it leads to {tree}/{name}, {'which is not there' if target is None else 'whose object is missing'}"
        self._add("dangling-ref", path, reason)
        self._roots.broken.append(BrokenRef(path, link, "dangling-ref", reason, owner_of_ref(path), name))
        return None

    def _bad_link(self, path: str, link: str, reason: str) -> tuple[str, str]:
        """Code and reason for a link that is no ref's, by following it among the refs."""
        if link.startswith("/"):
            return "bad-ref-link", reason
        seen = {path}
        at, target = path, link
        while True:
            place = _resolved(at, target)
            if place is None or place.split("/")[1:2] != ["refs"]:
                return ("bad-ref-link" if len(seen) == 1 else "nested-ref"), reason
            if place in seen:
                return "looping-ref", "it leads to itself"
            seen.add(place)
            after = self._targets.get(place)
            if after is None:
                return "nested-ref", reason
            at, target = place, after

    # -- tags and referrers --------------------------------------------------------------------------------------------

    def _tag(self, path: str, name: str, tag: str) -> None:
        if path.startswith(f"{layout.SHARED_TAGS}/") and tag.startswith("@"):
            self._add("reserved-name", path, "a tag whose name starts with @")
        if ContentId.trusted(name).manifest_digest is None:
            self._add("bad-tag-target", path, f"it leads to {name}, which is no manifest")
        for home in ("lease", "trash"):
            if path.startswith(f"{HOMES[home]}/"):
                self._dated(home, path)

    def _dated(self, home: str, path: str) -> None:
        directory, _, name = path[len(HOMES[home]) + 1 :].partition("/")
        expires = layout.expiry_of(directory)
        if home == "pin" and directory == pins.ALWAYS:
            return
        if expires is None or not name:
            self._add("bad-expiry", path, f"{directory} is no time")
        elif expires <= self._now:
            self._add(f"expired-{home}", path, f"it was to be kept until {expires}")

    def _referrer(self, path: str, name: str) -> None:
        parts = path.split("/")[3:]
        if len(parts) != 2 or not all(_is_digest(part) for part in parts):
            self._add("bad-referrer", path, "a referrer stands at <digest of the subject>/<digest of the artifact>")
        elif name != f"{ContentId.MANIFEST}{parts[1]}":
            self._add("bad-referrer", path, f"it leads to {name}, which is not the artifact of its name")
        elif self._streams.linked_now(f"{ContentId.MANIFEST}{parts[0]}") is None:
            self._add("absent-subject", path, f"its subject {parts[0]} is not in the repository")

    def homes(self) -> None:
        """A name has one home."""
        known: dict[str, str] = {}
        for home in ("shared", "private"):
            top = HOMES[home]
            for path in self._targets:
                if path.startswith(f"{top}/"):
                    name = layout.decode_name(path[len(top) + 1 :])
                    if home == "private" and name in known:
                        self._add("name-in-two-homes", path, f"{known[name]} is a tag of the same name")
                    known.setdefault(name, path)

    def indexes(self) -> None:
        """A kept index has a tag, or one in the trash."""
        names = {tag_of_ref(path) for path in self._targets}
        for path in self._targets:
            kept_with = index_of_ref(path)
            if kept_with is not None and kept_with not in names:
                self._add("orphaned-index", path, "the tag that this index was kept with is gone")

    # -- deployments ---------------------------------------------------------------------------------------------------

    def deployments(self) -> None:
        """The three parts of each deployment ref."""
        ids: dict[str, set[str]] = {}
        for top in (layout.DEPLOYMENTS, layout.CONFIGS, layout.DEPLOYMENT_IMAGES):
            for path in self._targets:
                if path.startswith(f"{top}/"):
                    ids.setdefault(path[len(top) + 1 :], set()).add(top)
        for name, tops in sorted(ids.items()):
            path = f"{layout.DEPLOYMENTS if layout.DEPLOYMENTS in tops else sorted(tops)[0]}/{name}"
            if re.fullmatch(f"[0-9a-f]{{{self._repo.algorithm.hex_length}}}", name, re.ASCII) is None:
                self._add("bad-deployment-ref", path, "its name is no id of a deployment")
            elif tops == {layout.DEPLOYMENT_IMAGES}:
                self._add("image-only-deployment", path, "the image is kept; manifest and config are not known")
            elif len(tops) < 3:
                lacking = [_PARTS[top] for top in _PARTS if top not in tops]
                self._add("partial-deployment-ref", path, f"the ref of the {' and the '.join(lacking)} is missing")
            self._fitting(name)

    def pins(self) -> None:
        """The parts of each pin: its manifest and its config."""
        found: dict[str, set[str]] = {}
        for part, top in pins.PARTS.items():
            for path in self._targets:
                if path.startswith(f"{top}/"):
                    found.setdefault(path[len(top) + 1 :], set()).add(part)
        for name, parts in sorted(found.items()):
            lacking = [part for part in ("manifest", "config") if part not in parts]
            when = name.partition("/")[0]
            if lacking and (when == pins.ALWAYS or (layout.expiry_of(when) or "") > self._now):
                path = f"{pins.PARTS[sorted(parts)[0]]}/{name}"
                self._add("partial-pin", path, f"the ref of the {' and the '.join(lacking)} is missing")

    def _fitting(self, name: str) -> None:
        image = self._good.get(f"{layout.DEPLOYMENT_IMAGES}/{name}")
        if image is not None and image != name:
            self._add("bad-deployment-ref", f"{layout.DEPLOYMENT_IMAGES}/{name}", f"it leads to image {image}")
        manifest = self._good.get(f"{layout.DEPLOYMENTS}/{name}")
        config = self._good.get(f"{layout.CONFIGS}/{name}")
        if manifest is None:
            return
        wanted = self._config_of(manifest)
        if wanted is None:
            self._add("bad-deployment-ref", f"{layout.DEPLOYMENTS}/{name}", f"it leads to {manifest}, which is no manifest")
        elif config is not None and wanted and config != f"{ContentId.CONFIG}{wanted}":
            self._add("bad-deployment-ref", f"{layout.CONFIGS}/{name}", f"it leads to {config}; the manifest's is {wanted}")

    def _config_of(self, manifest: str) -> str | None:
        """Digest of a manifest's config; the empty text where it could not be read, None where it is no manifest."""
        target = self._streams.linked_now(manifest)
        if target is None:
            return ""
        facts = self._streams.facts(target, f"streams/{manifest}", "sha256")
        if facts.kind not in (0, splitstream.CONTENT_TYPE_MANIFEST):
            return None
        return facts.config


_PARTS = {layout.DEPLOYMENTS: "manifest", layout.CONFIGS: "config", layout.DEPLOYMENT_IMAGES: "image"}


def _resolved(path: str, link: str) -> str | None:
    """The path in the repository that a relative link leads to; None outside."""
    place: list[str] = path.split("/")[:-1]
    for part in link.split("/"):
        if part == "..":
            if not place:
                return None
            place.pop()
        elif part not in ("", "."):
            place.append(part)
    return "/".join(place)


def _is_digest(text: str) -> bool:
    return ContentId(f"{ContentId.MANIFEST}{text}").manifest_digest is not None
