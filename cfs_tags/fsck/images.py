"""What streams mean for each other: manifests, configs, layers, and the links of their content ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from cfs_tags.formats import splitstream
from cfs_tags.fsck.findings import Finding, finding
from cfs_tags.fsck.links import Links, read_link
from cfs_tags.fsck.streams import StreamFacts
from cfs_tags.graph import content_ids
from cfs_tags.repo import layout
from cfs_tags.repo.images import EROFS_KEY
from cfs_tags.repo.store import ReadRepo
from cfs_tags.values import ContentId, ObjectId

_CONFIG_KEY = "config:"
KINDS = {
    ContentId.MANIFEST: (splitstream.CONTENT_TYPE_MANIFEST,),
    ContentId.CONFIG: (splitstream.CONTENT_TYPE_CONFIG,),
    # what is no tar is kept as a blob under either name
    ContentId.LAYER: (splitstream.CONTENT_TYPE_LAYER, splitstream.CONTENT_TYPE_BLOB),
    ContentId.BLOB: (splitstream.CONTENT_TYPE_BLOB,),
}
"""By the start of a content id, the content types of the streams that may be called so."""
_WORDS = {
    splitstream.CONTENT_TYPE_MANIFEST: "a manifest",
    splitstream.CONTENT_TYPE_CONFIG: "a config",
    splitstream.CONTENT_TYPE_LAYER: "a layer",
    splitstream.CONTENT_TYPE_BLOB: "a blob",
}
_DIGEST_CODES = {ContentId.MANIFEST: "wrong-manifest-digest", ContentId.CONFIG: "wrong-config-digest"}


class MissingLink(NamedTuple):
    """A stream whose object is there and whose link is not.

    ``name`` is the content id; ``object`` the splitstream's; ``old`` what the link says now, where it leads to nothing.
    """

    name: str
    object: str
    old: str | None = None


class Streams:
    """All streams of the repository, linked or not, with what is known of each.

    Args:
        repo: where.
        links: as they are.
        facts: of every linked stream, by object.
        check: makes the facts of another object: its name, what names it, the algorithm of its digest.

    Attributes:
        missing_images: EROFS images that a config names and that are there, without a name in ``images/`` that leads to them.
    """

    def __init__(
        self,
        repo: ReadRepo,
        links: Links,
        facts: dict[str, StreamFacts],
        check: Callable[[str, str, str], StreamFacts],
    ) -> None:
        self._repo = repo
        self._facts = facts
        self._check = check
        self.links = links
        self.names: dict[str, list[str]] = {}
        for name, target in links.streams.items():
            self.names.setdefault(target, []).append(name)
        self.missing_links: dict[str, MissingLink] = {}
        self.missing_images: list[str] = []
        self.findings: list[Finding] = []
        self.erofs: dict[str, str] = {}
        self._seen: set[str] = set()

    def facts(self, target: str, path: str, algorithm: str) -> StreamFacts:
        """What is known of an object that should be a stream; checked now where it was not yet."""
        found = self._facts.get(target)
        if found is None:
            found = self._facts[target] = self._check(target, path, algorithm)
            self.findings += found.findings
        return found

    def all_facts(self) -> list[StreamFacts]:
        """Those of every stream that was looked at."""
        return list(self._facts.values())

    def linked_now(self, name: str) -> str | None:
        """The object of a content id, looked at again: it may have been made since."""
        target = self.links.streams.get(name)
        if target is None:
            target = read_link(self._repo, f"streams/{name}", [])
            if target is not None and self._repo.has_object(target):
                self.links.streams[name] = target
                self.names.setdefault(target, []).append(name)
            else:
                target = None
        return target

    def once(self, *key: str) -> bool:
        """True the first time that it is asked for a key: several images share a config or layer."""
        text = "\0".join(key)
        new = text not in self._seen
        self._seen.add(text)
        return new

    def adopt(self, name: str, target: str) -> None:
        """Take a stream for linked, as it will be after a repair, and look for links that are missing behind it."""
        self.links.streams[name] = target
        self.names.setdefault(target, []).append(name)
        self._link(name, target)

    def is_whole(self, name: str) -> bool:
        """Whether nothing is missing behind a name in ``streams/``, and every size is right."""
        pending = [self.links.streams.get(name, "")]
        seen = set(pending)
        while pending:
            facts = self._facts.get(pending.pop())
            if facts is not None and not facts.whole:
                return False
            new = {target for _, target in facts.named if target not in seen} if facts is not None else set()
            seen |= new
            pending.extend(new)
        return True

    # -- one stream ----------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Check every link in ``streams/``, and follow every named ref."""
        for name, target in list(self.links.streams.items()):
            if target in self._facts:
                self._link(name, target)

    def _link(self, name: str, target: str) -> None:
        facts = self._facts[target]
        kind, digest = split_content_id(name)
        if kind == "" or facts.kind == 0:
            return
        path = f"streams/{name}"
        if facts.kind not in KINDS[kind]:
            message = f"object {target[:12]}… is {_WORDS.get(facts.kind, 'something else')}"
            self.findings.append(finding("wrong-stream-link", path, message))
            return
        if facts.digest and digest.partition(":")[0] == facts.digest.partition(":")[0] and facts.digest != digest:
            code = _DIGEST_CODES.get(kind, "wrong-layer-digest")
            self.findings.append(finding(code, path, f"its content has the digest {facts.digest}"))
            return
        if kind == ContentId.MANIFEST:
            self._manifest(path, facts)
        elif kind == ContentId.CONFIG:
            self._config(path, facts)

    def _manifest(self, path: str, facts: StreamFacts) -> None:
        if facts.problem:
            self.findings.append(finding("bad-manifest", path, facts.problem))
        if not facts.config:
            return
        named = dict(facts.named)
        key = _CONFIG_KEY + facts.config
        if key not in named:
            self.findings.append(finding("missing-named-ref", path, f"it has no named ref {key}"))
            return
        config = self._follow(path, key, named[key])
        for other, target in facts.named:
            if other != key and _is_digest(other):
                self._follow(path, other, target)
        if config is None:
            return
        parts = facts.parts
        if facts.container:
            if config.problem and self.once("bad-config", config.object):
                self.findings.append(finding("bad-config", f"streams/{ContentId.CONFIG}{facts.config}", config.problem))
            parts = config.parts
            self._config(f"streams/{ContentId.CONFIG}{facts.config}", config)
            self._tars(f"streams/{ContentId.CONFIG}{facts.config}", facts, config)
        there = dict(config.named) if facts.container else named | dict(config.named)
        for part in parts:
            if part not in there and self.once("part", config.object, part):
                where = f"streams/{ContentId.CONFIG}{facts.config}" if facts.container else path
                self.findings.append(finding("missing-named-ref", where, f"it has no named ref {part}"))

    def _tars(self, path: str, manifest: StreamFacts, config: StreamFacts) -> None:
        """The layers of a container image are tars: no program can unpack one that is kept as a blob."""
        there = dict(config.named)
        for part, is_tar in zip(config.parts, manifest.tars, strict=False):
            target = there.get(part)
            if is_tar and target is not None:
                kind = self.facts(target, f"{part} of {path}", part.partition(":")[0]).kind
                if kind == splitstream.CONTENT_TYPE_BLOB and self.once("wrong", path, part):
                    message = f"{part} leads to object {target[:12]}…, which is a blob: the layer of a container image is a tar"
                    self.findings.append(finding("wrong-named-ref", path, message))

    def _config(self, path: str, facts: StreamFacts) -> None:
        if not self.once("config", facts.object):
            return
        for key, target in facts.named:
            if key.startswith(EROFS_KEY):
                self.erofs.setdefault(target, f"{path} ({key})")
            elif _is_digest(key):
                self._follow(path, key, target)

    def _follow(self, path: str, key: str, target: str) -> StreamFacts | None:
        """Follow a named ref by object, and compare the links of its content.  None where it leads to nothing usable."""
        names = content_ids(key)
        digest = split_content_id(names[0])[1]
        algorithm = digest.partition(":")[0]
        facts = self.facts(target, f"{key} of {path}", algorithm)
        if facts.kind == 0:
            return None  # missing or unreadable, and said
        kinds = {kind for name in names for kind in KINDS[split_content_id(name)[0]]}
        other = facts.digest and facts.digest.partition(":")[0] == algorithm and facts.digest != digest
        if facts.kind not in kinds or (other and not self.names.get(target)):
            if self.once("wrong", path, key):
                what = facts.digest if facts.kind in kinds else _WORDS.get(facts.kind, "something else")
                self.findings.append(finding("wrong-named-ref", path, f"{key} leads to object {target[:12]}…, which is {what}"))
            return None
        if not set(names) & set(self.names.get(target, ())):
            self._unlinked(path, key, target, names, facts)
        return facts

    def _unlinked(self, path: str, key: str, target: str, names: Sequence[str], facts: StreamFacts) -> None:
        linked = [name for name in names if self.linked_now(name) is not None]
        if target in map(self.links.streams.get, linked) or ContentId.kept(ObjectId(target)) in self.names.get(target, ()):
            return
        if self.names.get(target):
            if self.once("wrong", path, key):
                message = f"{key} leads to object {target[:12]}…, which is {self.names[target][0]}"
                self.findings.append(finding("wrong-named-ref", path, message))
        elif linked:
            if self._fits(linked[0], facts) and self.once("stale", path, key):
                message = f"{key} leads to object {target[:12]}…; streams/{linked[0]} is another one of the same content"
                self.findings.append(finding("stale-named-ref", path, message))
        elif not any(f"streams/{name}" in self.links.unusable for name in names):
            self.add_missing(names[0], target, f"{key} of {path}")

    def check_image_links(self) -> None:
        """Every EROFS image that a config names has the link by which it is mounted, and a deployment booted."""
        for target, named_by in self.erofs.items():
            path = f"{layout.IMAGES}/{target}"
            if target in self.links.images or not self._repo.has_object(ObjectId.trusted(target)):
                continue
            problems: list[Finding] = []
            if read_link(self._repo, path, problems) == target:
                continue  # made since
            if any(problem.code != "bad-object-link" for problem in problems):
                continue  # what is there instead of a link is said
            self.missing_images.append(target)
            lost = "it leads to nothing" if path in self.links.broken or path in self.links.unusable else "it is gone"
            message = f"{lost}, so the image can be neither mounted nor booted; its object is there, as {named_by}"
            self.findings.append(finding("missing-link", path, message))

    def _fits(self, name: str, facts: StreamFacts) -> bool:
        """Whether a link leads to a sound stream like the one of ``facts``; where it does not, that was said."""
        other = self.facts(self.links.streams[name], f"streams/{name}", wanted_algorithm(name))
        return other.kind == facts.kind and not other.findings and other.digest in ("", split_content_id(name)[1])

    def add_missing(self, name: str, target: str, needed_by: str) -> None:
        """A stream without the link that its content should have."""
        if name in self.missing_links:
            return
        old = self.links.broken.get(f"streams/{name}")
        self.missing_links[name] = MissingLink(name, target, old)
        message = f"it is gone, so collectors take what is behind it; object {target[:12]}… is there, as {needed_by}"
        self.findings.append(finding("missing-link", f"streams/{name}", message))


def split_content_id(name: str) -> tuple[str, str]:
    """Prefix and digest of a content id; two empty texts for one that is not OCI's.

    >>> split_content_id("oci-layer-sha256:00")
    ('oci-layer-', 'sha256:00')
    """
    for prefix in KINDS:
        if name.startswith(prefix):
            return prefix, name[len(prefix) :]
    return "", ""


def _is_digest(key: str) -> bool:
    """Whether a named ref is called by a digest, as those to layers are."""
    algorithm, colon, digits = key.partition(":")
    return bool(colon) and algorithm in ("sha256", "sha384", "sha512") and bool(digits)


def wanted_algorithm(name: str) -> str:
    """The algorithm of the digest in a content id; the empty text where there is none."""
    return split_content_id(name)[1].partition(":")[0]
