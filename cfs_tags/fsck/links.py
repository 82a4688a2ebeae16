"""The links in ``streams/`` and ``images/``."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from cfs_tags.errors import FormatError, InvalidDigest, NotALink, SystemFailure
from cfs_tags.fsck.findings import Finding, finding
from cfs_tags.repo import layout
from cfs_tags.repo.store import ReadRepo
from cfs_tags.values import ObjectId


class Links(NamedTuple):
    """Names to objects.

    Attributes:
        streams: of links in ``streams/`` whose object is there.
        images: the same in ``images/``.
        broken: paths of links whose object is not there, with that object.
        unusable: paths of what is no link to an object.
        findings: what is wrong with links.
    """

    streams: dict[str, str]
    images: dict[str, str]
    broken: dict[str, str]
    unusable: set[str]
    findings: list[Finding]

    def of(self, tree: str) -> dict[str, str]:
        """``streams`` or ``images``, by the name of the directory."""
        return self.streams if tree == layout.STREAMS else self.images


def read_links(repo: ReadRepo, objects: Collection[str]) -> Links:
    """Read all links; ``objects`` are those that are there."""
    found = Links({}, {}, {}, set(), [])
    for tree in (layout.STREAMS, layout.IMAGES):
        try:
            names = repo.names(tree) or []
        except FormatError as error:
            found.findings.append(finding("not-a-directory", tree, f"it is {error.found}"))
            continue
        for name in sorted(names):
            if name != "refs":
                _look(repo, tree, name, objects, found)
    return found


def _look(repo: ReadRepo, tree: str, name: str, objects: Collection[str], found: Links) -> None:
    path = f"{tree}/{name}"
    if not is_utf8(name):
        found.findings.append(finding("undecodable-name", path, "its name is not UTF-8"))
    before = len(found.findings)
    target = read_link(repo, path, found.findings)
    if target is None:
        if len(found.findings) > before:
            found.unusable.add(path)
        return
    if target not in objects and not repo.has_object(target):
        found.broken[path] = target
        found.findings.append(finding("broken-link", path, f"its object {target[:12]}… is missing"))
        return
    found.of(tree)[name] = target
    if tree == layout.IMAGES and name != target:
        try:
            ObjectId.parse(name, repo.algorithm)
        except InvalidDigest:
            found.findings.append(finding("bad-image-name", path, "its name is no fs-verity digest"))
        else:
            found.findings.append(finding("wrong-image-link", path, f"it leads to object {target}"))


def read_link(repo: ReadRepo, path: str, findings: list[Finding]) -> ObjectId | None:
    """The object of a link; None where there is no link to one, which is a finding unless nothing is there."""
    try:
        text = repo.read_link(path)
        return None if text is None else layout.object_of_link(text, repo.algorithm, path)
    except NotALink as error:
        findings.append(finding("not-a-link", path, f"it is {error.found}"))
    except FormatError as error:
        findings.append(finding("bad-object-link", path, f"it leads to {error.found}, which is no object"))
    except SystemFailure as error:
        findings.append(finding("unreadable", path, error.reason))
    return None


def is_utf8(name: str) -> bool:
    """Whether a name that was read from a directory is UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
