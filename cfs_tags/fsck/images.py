"""What streams mean for each other: manifests, configs, layers, and the links of their content ids."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cfs_tags.formats import splitstream
from cfs_tags.fsck.findings import Finding, finding
from cfs_tags.fsck.links import read_link
from cfs_tags.fsck.streams import StreamFacts
from cfs_tags.repo.contents import EROFS_KEY
from cfs_tags.values import ContentId, ObjectId

if TYPE_CHECKING:
    from collections.abc import Callable

    from cfs_tags.fsck.links import Links
    from cfs_tags.repo.store import ReadRepo

__all__ = ["KINDS", "MissingLink", "Streams", "split_content_id", "wanted_algorithm"]

_MANIFEST = "oci-manifest-"
_CONFIG = "oci-config-"
_LAYER = "oci-layer-"
_BLOB = "oci-blob-"
_CONFIG_KEY = "config:"
KINDS = {
    _MANIFEST: (splitstream.CONTENT_TYPE_MANIFEST,),
    _CONFIG: (splitstream.CONTENT_TYPE_CONFIG,),
    # what is no tar is kept as a blob under either name
    _LAYER: (splitstream.CONTENT_TYPE_LAYER, splitstream.CONTENT_TYPE_BLOB),
    _BLOB: (splitstream.CONTENT_TYPE_BLOB,),
}
"""By the start of a content id, the content types of the streams that may be called so."""
_WORDS = {
    splitstream.CONTENT_TYPE_MANIFEST: "a manifest",
    splitstream.CONTENT_TYPE_CONFIG: "a config",
    splitstream.CONTENT_TYPE_LAYER: "a layer",
    splitstream.CONTENT_TYPE_BLOB: "a blob",
}
_DIGEST_CODES = {_MANIFEST: "wrong-manifest-digest", _CONFIG: "wrong-config-digest"}


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
        if kind == _MANIFEST:
            self._manifest(path, facts)
        elif kind == _CONFIG:
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
        config = self._follow(path, key, named[key], (_CONFIG,), facts.config)
        for other, target in facts.named:
            if other != key and _is_digest(other):
                self._follow(path, other, target, (_LAYER, _BLOB), other)
        if config is None:
            return
        parts = facts.parts
        if facts.container:
            if config.problem and self.once("bad-config", config.object):
                self.findings.append(finding("bad-config", f"streams/{_CONFIG}{facts.config}", config.problem))
            parts = config.parts
            self._config(f"streams/{_CONFIG}{facts.config}", config)
            self._tars(f"streams/{_CONFIG}{facts.config}", facts, config)
        there = dict(config.named) if facts.container else named | dict(config.named)
        for part in parts:
            if part not in there and self.once("part", config.object, part):
                where = f"streams/{_CONFIG}{facts.config}" if facts.container else path
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
                self._follow(path, key, target, (_LAYER, _BLOB), key)

    def _follow(self, path: str, key: str, target: str, prefixes: tuple[str, ...], digest: str) -> StreamFacts | None:
        """Follow a named ref by object, and compare the links of its content.  None where it leads to nothing usable."""
        facts = self.facts(target, f"{key} of {path}", digest.partition(":")[0])
        if facts.kind == 0:
            return None  # missing or unreadable, and said
        kinds = {kind for prefix in prefixes for kind in KINDS[prefix]}
        algorithm = digest.partition(":")[0]
        other = facts.digest and facts.digest.partition(":")[0] == algorithm and facts.digest != digest
        if facts.kind not in kinds or (other and not self.names.get(target)):
            if self.once("wrong", path, key):
                what = facts.digest if facts.kind in kinds else _WORDS.get(facts.kind, "something else")
                self.findings.append(finding("wrong-named-ref", path, f"{key} leads to object {target[:12]}…, which is {what}"))
            return None
        names = [prefix + digest for prefix in prefixes]
        if not set(names) & set(self.names.get(target, ())):
            self._unlinked(path, key, target, names, facts)
        return facts

    def _unlinked(self, path: str, key: str, target: str, names: list[str], facts: StreamFacts) -> None:
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
