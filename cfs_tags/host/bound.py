"""App images that are bound to a deployment: refs of their own, which live and go with it.

The deployment's EROFS image says which (``formats/boot/quadlet.py``); those that the repository holds under that name get a ref
below ``streams/refs/cfs-tags/bound/<id>/``.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from cfs_tags.errors import BadRefLink, CfsTagsError, SystemFailure, TargetNotFound
from cfs_tags.formats import erofstree
from cfs_tags.formats.boot import quadlet
from cfs_tags.repo import images, layout, refs
from cfs_tags.repo.lock import DEFAULT_TIMEOUT
from cfs_tags.repo.transaction import run
from cfs_tags.repo.transaction.change import NO_NOTE, Note, RefChange
from cfs_tags.tags import indexes
from cfs_tags.tags.rows import Health, find
from cfs_tags.values import ContentId, DeploymentId, Digest, TagName

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from mmap import mmap

    from cfs_tags.repo.store import ReadRepo, WriteRepo

_DIGEST = re.compile(r".*@(sha256:[0-9a-f]{64})", re.ASCII)


class BoundRow(NamedTuple):
    """A bound image: what names it, the manifest that the repository has for it (None: none), and what becomes of its
    ref: ``bound``, ``moved``, ``unchanged``, ``missing`` or ``unreadable``, with the reason for the last two."""

    name: str
    digest: Digest | None
    done: str
    reason: str | None = None


class BindPlan(NamedTuple):
    """Changes to the bound refs of one deployment, and a row for each bound image."""

    id: DeploymentId
    changes: tuple[RefChange, ...]
    rows: tuple[BoundRow, ...]

    @property
    def settled(self) -> tuple[str, ...]:
        """The directory of its refs: it is to be on disk also where nothing changes."""
        return (f"{layout.BOUND}/{self.id}",)


def plan_bind(repo: ReadRepo, name: DeploymentId) -> BindPlan:
    """The plan of binding the app images of a deployment.

    Raises:
        TargetNotFound: its EROFS image is not there.
        FormatError: the image cannot be read.
        SystemFailure: the system would not read something.
    """
    changes = []
    rows = []
    for file, read in _quadlets(repo, name):
        try:
            image = TagName.parse(quadlet.bound_image(file, read()))
        except SystemFailure:
            raise
        except CfsTagsError as error:
            rows.append(BoundRow(file, None, "unreadable", error.message))
            continue
        path = f"{layout.BOUND}/{name}/{layout.encode_name(image)}"
        found = repo.read_link(path)
        digest, missing = _whole(repo, _held(repo, image))
        if digest is None:
            digest, _ = _whole(repo, _named(path, found))  # its tag went, and what the ref keeps is here
        if digest is None:
            rows.append(BoundRow(image, None, "missing", missing))
            continue
        link = layout.ref_link(path, ContentId.manifest(digest))
        if found != link:
            changes.append(RefChange(path, found, link, "bind"))
        done = "unchanged" if found == link else "bound" if found is None else "moved"
        rows.append(BoundRow(image, digest, done))
    unique = {change.path: change for change in changes}  # two files may name one image
    return BindPlan(name, tuple(unique.values()), tuple(rows))


def bind(repo: WriteRepo, name: DeploymentId, *, note: Note = NO_NOTE, timeout: float = DEFAULT_TIMEOUT) -> BindPlan:
    """Make the bound refs of a deployment, all or none: :func:`plan_bind`, carried out."""
    return run.transact(repo, lambda: plan_bind(repo, name), note, timeout)


def bound_images(repo: ReadRepo, name: DeploymentId | str) -> Iterator[tuple[str, Digest | None]]:
    """Name and manifest of each app image that is bound to this deployment, by name; None where the ref leads elsewhere."""
    for path, link in sorted(refs.walk(repo, f"{layout.BOUND}/{name}")):
        yield layout.decode_name(path.rpartition("/")[2]), _named(path, link)


def deployments_of(repo: ReadRepo, digest: Digest) -> Iterator[tuple[str, str, str]]:
    """Deployment, path and link of each bound ref to a manifest."""
    for path, link in refs.walk(repo, layout.BOUND):
        if link is not None and _named(path, link) == digest:
            yield path[len(layout.BOUND) + 1 :].partition("/")[0], path, link


def bound_names(repo: ReadRepo, name: DeploymentId) -> tuple[str, ...]:
    """The app images that have a bound ref with this deployment, by name."""
    return tuple(sorted(layout.decode_name(one) for one in repo.names(f"{layout.BOUND}/{name}") or ()))


def removal(repo: ReadRepo, name: DeploymentId) -> Iterator[RefChange]:
    """The changes that take the bound refs of a deployment away with it."""
    for path, link in refs.walk(repo, f"{layout.BOUND}/{name}"):
        if link is not None:
            yield RefChange(path, link, None, "retire")


def _whole(repo: ReadRepo, digest: Digest | None) -> tuple[Digest | None, str]:
    """A manifest that is there and complete; else None, and why not."""
    if digest is None:
        return None, "the repository does not hold it"
    try:
        missing = images.missing_lines(repo, digest)
    except SystemFailure:
        raise
    except CfsTagsError as error:
        return None, error.message
    return (None, missing[0]) if missing else (digest, "")


def _named(path: str, link: str | None) -> Digest | None:
    try:
        return layout.ref_target(path, link).manifest_digest if link is not None else None
    except BadRefLink:
        return None


def _quadlets(repo: ReadRepo, name: DeploymentId) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Each file in the directory of bound images: its name, and what reads it while the next is not asked for."""
    object_id = repo.image_object(name)
    if object_id is None:
        raise TargetNotFound(kind="EROFS image", name=name)
    with repo.map(object_id, f"images/{name}") as data:
        for file in erofstree.listdir(data, quadlet.BOUND_DIRECTORY) or ():
            if not file.endswith((".image", ".container")):
                continue
            yield file, partial(_quadlet, repo, data, file, f"{file} of deployment {name[:12]}…")


def _quadlet(repo: ReadRepo, image: mmap | bytes, file: str, needed_by: str) -> bytes:
    node = erofstree.read_path(image, f"{quadlet.BOUND_DIRECTORY}/{file}")
    if node is None:
        return b""  # the link leads nowhere: said to be unreadable
    if node.object is not None:
        return repo.read_object(node.object, quadlet.MAX_QUADLET, needed_by)
    return bytes(node.content or b"")


def _held(repo: ReadRepo, image: str) -> Digest | None:
    """The manifest that the repository holds for an image reference: by digest, else by the tag of that name."""
    match = _DIGEST.fullmatch(image)
    if match is not None:
        digest = Digest.trusted(match[1])
        return digest if repo.stream_object(ContentId.manifest(digest)) is not None else _of_index(repo, digest)
    named = image if ":" in image.rpartition("/")[2] else f"{image}:latest"
    health = Health(repo)
    for name in dict.fromkeys((image, named, f"docker://{image}", f"docker://{named}")):
        tag = find(repo, name, health)
        if health.failure is not None:
            raise health.failure
        if tag is not None and tag.digest is not None and tag.problem is None:
            return tag.digest
    return None


def _of_index(repo: ReadRepo, digest: Digest) -> Digest | None:
    """The image that stands for an index: the one of the tag with which the index is kept, if it is one of it."""
    content_id = ContentId.blob(digest)
    health = Health(repo)
    for name, _, link in indexes.kept_indexes(repo):
        if link is None or link.rpartition("/")[2] != content_id:
            continue
        tag = find(repo, name, health)
        if health.failure is not None:
            raise health.failure
        index = indexes.kept_index(repo, content_id)
        if tag is not None and tag.problem is None and index is not None:
            found = next((entry.digest for entry in index.manifests if entry.digest == tag.digest), None)
            if found is not None:
                return found
    return None
