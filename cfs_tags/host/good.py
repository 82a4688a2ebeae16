"""Deployments that were booted successfully, as a unit of the system says after each boot.

``cfs-tags/good.json`` has them in the order of their last good boot, the newest last: the clock of a host may be wrong before
the network is up, and an order is right all the same.  Lost, no image counts as good until the next boot; damaged, no policy
deletes anything before it.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import Any, NamedTuple

from cfs_tags.errors import FormatError, InvalidDigest, SystemFailure, about
from cfs_tags.formats import json_fields
from cfs_tags.host.lookup import Index, look_up
from cfs_tags.host.sysroot import SysrootView
from cfs_tags.repo import fsops, layout, reflog
from cfs_tags.repo.lock import DEFAULT_TIMEOUT
from cfs_tags.repo.store import ReadRepo, WriteRepo
from cfs_tags.repo.transaction import run
from cfs_tags.repo.transaction.change import NO_NOTE, Note, RefChange
from cfs_tags.values import DeploymentId, Digest

ACTION = "good-boot"
"""What the log calls it."""
_GOOD = f"{layout.STATE}/good.json"
_STRUCTURE = "record of good boots"
_MAX_FILE = 1 << 20
_MOST = 1000
"""Deployments that are remembered."""


class GoodBoot(NamedTuple):
    """A deployment that was booted successfully.

    Attributes:
        id: the deployment.
        manifest: what it was made from; None where that was not known.
        first: when it was booted well first (ISO 8601), by the clock of that time.
        last: when it was booted well last.
        boots: how often.
    """

    id: DeploymentId
    manifest: Digest | None
    first: str
    last: str
    boots: int


class GoodPlan(NamedTuple):
    """What the record would be; no ref changes with it."""

    good: tuple[GoodBoot, ...]
    changes: tuple[RefChange, ...] = ()

    @property
    def newest(self) -> GoodBoot:
        """The boot that is recorded."""
        return self.good[-1]


def good_boots(repo: ReadRepo) -> tuple[GoodBoot, ...]:
    """Deployments that were booted successfully, the one that was so last at the end.

    Raises:
        FormatError: the record is damaged.
        SystemFailure: the system would not give it.
    """
    data = repo.read_file(_GOOD, _MAX_FILE)
    if data is None:
        return ()
    with about(os.path.join(repo.path, _GOOD)):
        document = json_fields.load(data, _STRUCTURE, _MAX_FILE)
        try:
            return tuple(_parsed(json_fields.struct(row, GoodBoot._fields)) for row in json_fields.items(document, "boots"))
        except json_fields.Wrong as wrong:
            raise wrong.as_error(_STRUCTURE) from None


def _parsed(row: dict[str, Any]) -> GoodBoot:
    name, manifest = json_fields.text(row, "id"), json_fields.optional_text(row, "manifest")
    try:
        known = DeploymentId.parse(name), None if manifest is None else Digest.parse(manifest)
    except InvalidDigest as error:
        raise json_fields.Wrong(error.wanted, json_fields.shown(error.text), "id") from None
    first, last = json_fields.text(row, "first"), json_fields.text(row, "last")
    return GoodBoot(*known, first, last, json_fields.number(row, "boots", 1 << 53))


def images_of(good: GoodBoot, index: Index) -> set[Digest]:
    """The manifests that a deployment may have been made from: that of the record, and those whose config names its image."""
    found = set(index.of_image(good.id))
    return found if good.manifest is None else found | {good.manifest}


def plan(repo: ReadRepo, view: SysrootView, name: DeploymentId) -> GoodPlan:
    """The record with one more boot of a deployment; one that is damaged begins anew."""
    known: dict[DeploymentId, GoodBoot] = {}
    with suppress(FormatError):
        known = {each.id: each for each in good_boots(repo)}
    before = known.pop(name, None)
    now = reflog.timestamp()
    manifest = look_up(repo, view, name).digest or (before.manifest if before is not None else None)
    boot = GoodBoot(name, manifest, before.first if before else now, now, before.boots + 1 if before else 1)
    return GoodPlan((*known.values(), boot)[-_MOST:])


def record(
    repo: WriteRepo, view: SysrootView, name: DeploymentId, *, note: Note = NO_NOTE, timeout: float = DEFAULT_TIMEOUT
) -> GoodPlan:
    """Write down that a deployment was booted successfully, and log it.

    Raises:
        SystemFailure: it could not be written; the record is as it was.
        LockTimeout: another process holds a lock.
    """
    made = run.transact(repo, lambda: plan(repo, view, name), note, timeout, prepare=lambda planned: _write(repo, planned.good))
    boot = made.newest
    run.record(repo, ACTION, {"deployment": boot.id, "manifest": boot.manifest, "boots": boot.boots}, note, timeout)
    return made


def _write(repo: WriteRepo, good: tuple[GoodBoot, ...]) -> None:
    data = json.dumps({"boots": [each._asdict() for each in good]}).encode("ascii")
    try:
        fsops.replace_file(repo.fd, _GOOD, data, f"{_GOOD}.new")
        fsops.sync(repo.fd, layout.STATE)
    except OSError as error:
        raise SystemFailure.of(error, "write", os.path.join(repo.path, _GOOD)) from error
