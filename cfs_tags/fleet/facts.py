"""What a host uses, as its repository and its boot entries say."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cfs_tags.apps import platforms
from cfs_tags.errors import CfsTagsError
from cfs_tags.fleet.hosts import Host, Use, slot
from cfs_tags.host import bound
from cfs_tags.host.rows import STATES, list_deployments
from cfs_tags.repo import images, layout
from cfs_tags.tags import pins
from cfs_tags.values import ContentId

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cfs_tags.host.rows import Deployment
    from cfs_tags.host.sysroot import SysrootView
    from cfs_tags.repo.store import ReadRepo

_LAYER_DIGITS = 16
_MOST_LAYERS = 8000
_MOST_TEXT = 512


def read(repo: ReadRepo, view: SysrootView, name: str, program: str) -> tuple[Host, tuple[str, ...]]:
    """What there is to publish of a host, and what could not be said, one line each.

    Args:
        repo: its repository.
        view: its places.
        name: of the host.
        program: that publishes, with its version.

    Raises:
        FormatError, SystemFailure: the repository cannot be read.
    """
    every = [row for row in list_deployments(repo, view) if row.state != "gone"]
    rows = [row for row in every if row.state != "kept"]  # what pins alone keep
    problems = [f"no manifest is known for deployment {row.id[:12]}" for row in every if row.manifest is None]
    uses = {use.slot: use for row in rows for use in _uses(repo, row)}
    uses |= {use.slot: use for use in _pinned(repo, every)}
    disk = os.fstatvfs(repo.fd)
    host = Host(
        name,
        "",
        program,
        _platform(repo, rows),
        tuple(uses.values()),
        tuple(sorted(set(_layers(repo))))[:_MOST_LAYERS],
        disk.f_blocks * disk.f_frsize,
        disk.f_bavail * disk.f_frsize,
    )
    return host, tuple(problems)


def _uses(repo: ReadRepo, row: Deployment) -> Iterator[Use]:
    if row.manifest is None:
        return
    name = row.state if row.state in STATES else slot("other", row.manifest)
    health = tuple(dict.fromkeys(finding.code for finding in row.health))
    yield Use(name, row.manifest, _short(row.image), _short(row.version), _short(row.created), health)
    for image, digest in bound.bound_images(repo, row.id):
        if digest is not None:
            yield Use(slot("bound", digest), digest, _short(image))


def _pinned(repo: ReadRepo, rows: Sequence[Deployment]) -> Iterator[Use]:
    """What pins keep."""
    known = {row.manifest: row for row in rows}
    for pin in pins.list_pins(repo, exact=True):
        if pin.manifest is not None and not pin.has_ended:
            row = known.get(pin.manifest)
            image, version = (row.image, row.version) if row is not None else (None, None)
            yield Use(slot("pin", pin.manifest), pin.manifest, _short(image), _short(version))


def _short(text: str | None) -> str | None:
    return text[:_MOST_TEXT].encode("utf-8", "replace").decode() if text is not None else None


def _platform(repo: ReadRepo, rows: list[Deployment]) -> str:
    for row in rows:
        try:
            config = images.load(repo, row.manifest).config if row.manifest is not None else None
        except CfsTagsError:
            continue
        if config is not None:
            return platforms.shown(platforms.of_config(config))
    return platforms.shown(platforms.this_machine())


def _layers(repo: ReadRepo) -> Iterator[str]:
    """The first digits of the digests of layers that are here, as the manifests that are here name them."""
    for name in repo.names(layout.STREAMS) or ():
        digest = ContentId(name).manifest_digest
        if digest is None:
            continue
        try:
            stored = images.load(repo, digest)
        except CfsTagsError:
            continue  # another image's business
        for layer in stored.layers:
            if layer.object is not None and repo.has_object(layer.object):
                yield layer.descriptor.digest.hex[:_LAYER_DIGITS]
