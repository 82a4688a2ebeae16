"""Making and removing deployment refs: what an updater calls, adopting what bootc deployed, retiring what it removed.

A deployment ref is three links, made in one transaction (``repo/transaction/run.py``).  A part whose target is not there is not
made: a ref that leads nowhere stops the collectors of cfsctl and bootc.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from cfs_tags.errors import (
    CfsTagsError,
    ExpectationFailed,
    IncompleteTarget,
    RefusedError,
    SystemFailure,
    TargetNotFound,
    UnresolvedDeployment,
    UsageError,
    about,
)
from cfs_tags.formats import json_fields
from cfs_tags.host import bound
from cfs_tags.host.bound import BindPlan
from cfs_tags.host.lookup import Index, Lookup, digest_of_link, look_up, ref_paths, ref_state, referred
from cfs_tags.host.sysroot import SysrootView
from cfs_tags.repo import clock, fsops, images, layout, refs
from cfs_tags.repo.lock import DEFAULT_TIMEOUT
from cfs_tags.repo.object_store import ObjectStore
from cfs_tags.repo.store import MAX_JSON_OBJECT, ReadRepo, WriteRepo
from cfs_tags.repo.transaction import run
from cfs_tags.repo.transaction.change import NO_NOTE, Note, RefChange
from cfs_tags.tags import names, pins
from cfs_tags.tags.pins import Pin
from cfs_tags.values import ContentId, DeploymentId, Digest, ObjectId

GRACE = 24 * 3600.0
"""Seconds that a ref is kept for a deployment that was never seen: an updater may make the ref first."""
_SEEN = f"{layout.STATE}/seen.json"
_MAX_SEEN = 16 << 20
_WITH_CONFIGS = ((layout.CONFIGS, layout.DEPLOYMENTS), (layout.PIN_CONFIGS, layout.PINS))
"""Where refs to configs stand, and the refs to their manifests."""


class DeploymentPlan(NamedTuple):
    """Changes that make deployment refs, the ids that they are for, and what was bound with them, if that was asked for."""

    changes: tuple[RefChange, ...]
    ids: tuple[DeploymentId, ...]
    bound: BindPlan | None = None

    @property
    def settled(self) -> tuple[str, ...]:
        """The directories of these refs: they are to be on disk also where nothing changes."""
        parts = {path.rpartition("/")[0] for name in self.ids for path in ref_paths(name).values()}
        return (*sorted(parts), *(self.bound.settled if self.bound is not None else ()))


class RetireRow(NamedTuple):
    """What becomes of one deployment ref: ``retired`` or ``kept``, and why."""

    id: DeploymentId
    done: str
    reason: str


class RetirePlan(NamedTuple):
    """Changes that remove deployment refs, and a row for each ref that was looked at."""

    changes: tuple[RefChange, ...]
    rows: tuple[RetireRow, ...]


class _Retirement(NamedTuple):
    plan: RetirePlan
    view: SysrootView

    @property
    def changes(self) -> tuple[RefChange, ...]:
        return self.plan.changes


# -- making ------------------------------------------------------------------------------------------------------------


def plan_parts(repo: ReadRepo, name: DeploymentId, digest: Digest | None, action: str) -> tuple[RefChange, ...]:
    """The changes that give a deployment its ref, or what is missing of it: nothing where it is complete.

    Args:
        repo: where.
        name: the deployment.
        digest: its manifest; None for the image part alone.
        action: for the reflog.

    Raises:
        IncompleteTarget: the EROFS image, or something of the manifest, is not there.
        DamagedError: something is damaged.
    """
    image = repo.image_object(name)
    if image is None or not repo.has_object(image):
        raise IncompleteTarget(target=f"deployment {name}", missing=(f"EROFS image images/{name} is gone",))
    targets: dict[str, str] = {"image": name}
    if digest is not None:
        missing = images.missing_parts(repo, digest)
        if missing:
            raise IncompleteTarget(target=digest, missing=missing)
        targets["manifest"] = ContentId.manifest(digest)
        targets["config"] = ContentId.config(images.load(repo, digest).manifest.config.digest)
    changes = []
    for part, path in ref_paths(name).items():
        if part not in targets:
            continue
        link = layout.ref_link(path, targets[part])
        found = repo.read_link(path)
        if found != link:
            changes.append(RefChange(path, found, link, action))
    return tuple(changes)


def unnamed_configs(repo: ReadRepo, changes: Iterable[RefChange]) -> dict[ContentId, ObjectId]:
    """Configs that refs are to be made to and that have lost their name in ``streams/``: which object each of them is.

    The content is there, the manifest names the splitstream by its object; without a link a ref to it would lead nowhere,
    and collectors that go by links (cfsctl, bootc) would take the config's bytes under the very ref of the manifest.
    """
    found = {}
    made = {change.path: change.new for change in changes if change.new is not None}
    for path, link in made.items():
        manifest = next((f"{first}{path[len(top) :]}" for top, first in _WITH_CONFIGS if path.startswith(f"{top}/")), None)
        if manifest is None:
            continue
        config = layout.ref_target(path, link)
        if repo.stream_object(config) is not None:
            continue
        digest = digest_of_link(made.get(manifest) or repo.read_link(manifest))
        if digest is not None:
            found[config] = images.load(repo, digest).config_object
    return found


def name_configs(repo: WriteRepo, changes: Iterable[RefChange]) -> None:
    """Give :func:`unnamed_configs` their names again, before the refs to them are made."""
    for config, object_id in unnamed_configs(repo, changes).items():
        ObjectStore(repo).add_stream(config, repo.read_object(object_id, MAX_JSON_OBJECT, config))


def plan_create(
    repo: ReadRepo,
    view: SysrootView | None,
    name: DeploymentId,
    digest: Digest | None,
    *,
    force: bool = False,
    bind: bool = False,
) -> DeploymentPlan:
    """Plan the deployment ref of one deployment, for an updater.

    Args:
        repo: where.
        view: the sysroot, for the look-up; None where there is none.
        name: the deployment: the digest of its EROFS image.
        digest: its manifest; None looks it up.
        force: make it also where the manifest's config names other EROFS images and not this one, and move a ref that
            leads to another manifest.
        bind: make the refs of its bound app images, too; those that the repository does not hold are left out.

    Raises:
        UnresolvedDeployment: no manifest was given, and none is found, or several.
        RefusedError (deployment-mismatch): the config names other EROFS images only.
        ExpectationFailed: the deployment has a ref to another manifest.
        IncompleteTarget: something is missing.
    """
    if digest is None:
        lookup = look_up(repo, view, name) if view is not None else Lookup(name, None, "none")
        if lookup.digest is None:
            raise UnresolvedDeployment(
                deployment=name, notes=lookup.notes, candidates=tuple(str(one) for one in lookup.candidates)
            )
        digest = lookup.digest
    changes = plan_parts(repo, name, digest, "create")
    missing = images.missing_lines(repo, digest)
    if missing:
        raise IncompleteTarget(target=digest, missing=missing)
    if not force:
        named = images.load(repo, digest).erofs
        if named and name not in named.values() and digest not in Index(repo).of_image(name):
            raise RefusedError(
                "deployment-mismatch", deployment=name, manifest=digest, images=tuple(sorted(set(named.values())))
            )
        for change in changes:
            if change.old is not None:
                raise ExpectationFailed(ref=change.path, wanted="absent", found=change.old.rpartition("/")[2])
    binding = bound.plan_bind(repo, name) if bind else None
    return DeploymentPlan((*changes, *(binding.changes if binding is not None else ())), (name,), binding)


def create(
    repo: WriteRepo,
    name: DeploymentId,
    digest: Digest | None = None,
    *,
    view: SysrootView | None = None,
    force: bool = False,
    bind: bool = False,
    note: Note = NO_NOTE,
    timeout: float = DEFAULT_TIMEOUT,
) -> DeploymentPlan:
    """Make a deployment ref, all three parts or none; an updater may hold the repository shared meanwhile.

    Raises as :func:`plan_create` and :func:`cfs_tags.repo.transaction.run.transact`.
    """
    made = run.transact(
        repo,
        lambda: plan_create(repo, view, name, digest, force=force, bind=bind),
        note,
        timeout,
        prepare=lambda plan: name_configs(repo, plan.changes),
    )
    _date(repo, made.changes)
    return made


def _date(repo: WriteRepo, changes: Iterable[RefChange]) -> None:
    """Have refs that were made while the clock was behind be of the latest time that it had: the grace time begins with it.

    Where that cannot be written, or is not done because of a kill, the refs are as old as the clock said.
    """
    with suppress(SystemFailure):
        known = clock.read(repo)
        for change in changes if known.latest > known.now else ():
            if change.new is not None:
                with suppress(OSError):
                    fsops.date_link(repo.fd, change.path, known.latest)


# -- adopting ----------------------------------------------------------------------------------------------------------


def plan_adoption(repo: ReadRepo, view: SysrootView, index: Index | None = None) -> DeploymentPlan:
    """Refs for every deployment that has none and whose look-up is exact and complete; the others are left alone.

    Raises:
        SystemFailure: a ref, or what may be the manifest of a deployment without one, could not be read.
    """
    index = index if index is not None else Index(repo)
    changes: list[RefChange] = []
    ids = []
    for name in view.seen:
        state = ref_state(repo, name)
        if state.status == "complete":
            continue
        if state.failure is not None:
            raise state.failure
        lookup = look_up(repo, view, name, index)
        if lookup.digest is None:
            if lookup.unread is not None and state.status != "image-only":
                raise lookup.unread
            continue
        try:
            parts = plan_parts(repo, name, lookup.digest, "adopt")
        except SystemFailure:
            raise
        except CfsTagsError:
            continue
        if parts:
            changes.extend(parts)
            ids.append(name)
    return DeploymentPlan(tuple(changes), tuple(ids))


def adopt(repo: WriteRepo, view: SysrootView, *, note: Note = NO_NOTE, timeout: float = DEFAULT_TIMEOUT) -> DeploymentPlan:
    """Give deployments that bootc made their refs: :func:`plan_adoption`, carried out."""
    return run.transact(
        repo, lambda: plan_adoption(repo, view), note, timeout, prepare=lambda plan: name_configs(repo, plan.changes)
    )


# -- retiring ----------------------------------------------------------------------------------------------------------


def plan_retire(
    repo: ReadRepo,
    view: SysrootView,
    only: Iterable[DeploymentId] = (),
    *,
    grace: float = GRACE,
    now: float | None = None,
) -> RetirePlan:
    """Remove the refs of deployments that no place has any more.

    Kept are refs of deployments that some place has, and of pinned ones; all of them where a place could not be read; and those
    made less than ``grace`` seconds ago for a deployment that was not seen since.

    Args:
        repo: where.
        view: of the sysroot, read under the same lock as the plan is carried out.
        only: these alone; none means all.
        grace: seconds.
        now: seconds since 1970; None asks the clock, as far as that is believed.

    Raises:
        SystemFailure: the system would not give the ref of a pin, or another that was asked for.
    """
    moment = clock.read(repo).earliest if now is None else now
    known = _seen(repo)
    wanted = set(only)
    pinned = pins.of_deployments(repo, exact=True)
    changes: list[RefChange] = []
    rows = []
    for name in referred(repo):
        if wanted and name not in wanted:
            continue
        reason = _pinned(pinned.get(name, ())) if name not in view.seen else None
        reason = reason or _reason_to_keep(repo, view, name, known, grace, moment)
        if reason is None:
            for path in ref_paths(name).values():
                link = repo.read_link(path)
                if link is not None:
                    changes.append(RefChange(path, link, None, "retire"))
            changes.extend(bound.removal(repo, name))
        rows.append(RetireRow(name, "kept" if reason else "retired", reason or "no place has it"))
    absent = wanted - {row.id for row in rows}
    if absent:
        raise TargetNotFound(kind="deployment ref", name=sorted(absent)[0])
    return RetirePlan(tuple(changes), tuple(rows))


def referred_by(repo: ReadRepo, prefix: str) -> DeploymentId:
    """The deployment with a ref whose id starts so; ``@deployment/`` may stand before it.

    Raises:
        UsageError: that is no id: the empty text, above all, which every id starts with.
        TargetNotFound, UsageError: none, or several.
    """
    prefix = prefix.removeprefix("@deployment/")
    if re.fullmatch("[0-9a-f]+", prefix, re.ASCII) is None:
        raise UsageError(
            "invalid-argument", argument="deployment", value=prefix, reason="is neither an id nor the start of one"
        )
    found = [name for name in referred(repo) if name.startswith(prefix)]
    return names.only(found, prefix, "deployment ref")


def retire(
    repo: WriteRepo,
    read_view: Callable[[], SysrootView],
    only: Sequence[DeploymentId] = (),
    *,
    grace: float = GRACE,
    note: Note = NO_NOTE,
    timeout: float = DEFAULT_TIMEOUT,
) -> RetirePlan:
    """Remove the refs of deployments that are gone, under the exclusive repository lock.  :func:`adopt` goes before.

    Args:
        repo: where.
        read_view: reads the sysroot; called with the lock held, so that no updater is at work meanwhile.
        only: these refs alone.
        grace: seconds, see :func:`plan_retire`.
        note: for the reflog.
        timeout: seconds to wait for the locks.

    Raises:
        LockTimeout: another process has the repository open.
    """

    def plan() -> _Retirement:
        view = read_view()
        return _Retirement(plan_retire(repo, view, only, grace=grace), view)

    made = run.transact(repo, plan, note, timeout, exclusive=True, prepare=lambda retirement: _remember(repo, retirement.view))
    return made.plan


def _reason_to_keep(
    repo: ReadRepo, view: SysrootView, name: DeploymentId, known: Mapping[str, int], grace: float, now: float
) -> str | None:
    places = view.seen.get(name)
    if places:
        return f"it is in {', '.join(sorted(places))}"
    unread = view.unread
    if unread:
        shown = [
            f"{place.name}{f' ({place.path})' if place.path else ''} could not be read: {place.reason}" for place in unread[:8]
        ]
        return "; ".join([*shown, *([f"and {len(unread) - 8} more"] if len(unread) > 8 else [])])
    made = _made(repo, name)
    if made is None or known.get(name) == made:
        return None
    age = max(0.0, now - made / 1e9)
    return f"its ref was made {int(age)} s ago and the deployment was not seen since" if age < grace else None


def _pinned(found: Sequence[Pin]) -> str | None:
    return f"it is pinned as {', '.join(pin.name for pin in found)}" if found else None


def _made(repo: ReadRepo, name: DeploymentId) -> int | None:
    """When the newest part of a ref was made, in nanoseconds since 1970, where there is none the newest bound ref; None
    where there is neither."""
    for paths in (ref_paths(name).values(), [path for path, _ in refs.walk(repo, f"{layout.BOUND}/{name}")]):
        times = []
        for path in paths:
            with repo.reading(path), suppress(FileNotFoundError, NotADirectoryError):
                times.append(repo.status(path).st_mtime_ns)
        if times:
            return max(times)
    return None


def seen_before(repo: ReadRepo) -> dict[str, int]:
    """Deployments that some place had when we last looked, each with when the ref that it had then was made.

    So a ref that was made again since waits for its deployment like a new one.

    Raises:
        FormatError: what was written down is damaged.
        SystemFailure: the system would not give it.
    """
    structure = "times of deployments"
    with about(os.path.join(repo.path, _SEEN)):
        data = repo.read_file(_SEEN, _MAX_SEEN)
        times = {} if data is None else json_fields.load(data, structure, _MAX_SEEN)
        try:
            return {name: json_fields.number(times, name, 1 << 63) for name in times}
        except json_fields.Wrong as wrong:
            raise wrong.as_error(structure) from None


def _seen(repo: ReadRepo) -> dict[str, int]:
    """The same; nothing where it is lost: they are kept for the grace time then."""
    try:
        return seen_before(repo)
    except CfsTagsError:
        return {}


def _remember(repo: WriteRepo, view: SysrootView) -> None:
    """Write down which deployments with refs are there now, or were before with the ref that they still have."""
    known = _seen(repo)
    times = {}
    for name in referred(repo):
        made = _made(repo, name)
        if made is not None and (name in view.seen or known.get(name) == made):
            times[str(name)] = made
    if times == known:
        return
    data = json.dumps(times).encode("ascii")
    try:
        fsops.replace_file(repo.fd, _SEEN, data, f"{_SEEN}.new")
    except OSError as error:
        raise SystemFailure.of(error, "write", os.path.join(repo.path, _SEEN)) from error
