"""Making and removing deployment refs: what an updater calls, adopting what bootc deployed, retiring what it removed.

A deployment ref is three links, made in one transaction (``repo/transactions.py``).  A part whose target is not there is not
made: a ref that leads nowhere stops the collectors of cfsctl and bootc.
"""

from __future__ import annotations

import json
import os
import re
import time
from typing import TYPE_CHECKING, NamedTuple

from cfs_tags import binding
from cfs_tags.errors import (
    AmbiguousName,
    CfsTagsError,
    DeploymentMismatch,
    ExpectationFailed,
    IncompleteTarget,
    InvalidArgument,
    SystemFailure,
    TargetNotFound,
    UnresolvedDeployment,
)
from cfs_tags.formats import layout
from cfs_tags.lookup import Index, Lookup, digest_of_link, look_up, ref_paths, ref_state, referred
from cfs_tags.repo import contents, fsops, refs
from cfs_tags.repo.lock import DEFAULT_TIMEOUT
from cfs_tags.repo.refs import NO_NOTE, Note, RefChange
from cfs_tags.repo.store import MAX_JSON_OBJECT
from cfs_tags.sysroot import SysrootView
from cfs_tags.values import ContentId, DeploymentId, Digest, ObjectId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from cfs_tags.binding import BindPlan
    from cfs_tags.repo.store import ReadRepo, WriteRepo

__all__ = [
    "GRACE",
    "DeploymentPlan",
    "RetirePlan",
    "RetireRow",
    "adopt",
    "create",
    "name_configs",
    "plan_adoption",
    "plan_create",
    "plan_parts",
    "plan_retire",
    "retire",
    "unnamed_configs",
]

GRACE = 24 * 3600.0
"""Seconds that a ref is kept for a deployment that was never seen: an updater may make the ref first."""
_SEEN = f"{layout.STATE}/seen.json"
_MAX_SEEN = 16 << 20


class DeploymentPlan(NamedTuple):
    """Changes that make deployment refs, the ids that they are for, and what was bound with them, if that was asked for."""

    changes: tuple[RefChange, ...]
    ids: tuple[DeploymentId, ...]
    bound: BindPlan | None = None


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
        DamagedError: something that is there is not what it should be.
    """
    image = repo.image_object(name)
    if image is None or not repo.has_object(image):
        raise IncompleteTarget(target=f"deployment {name}", missing=(f"EROFS image images/{name} is gone",))
    targets: dict[str, str] = {"image": name}
    if digest is not None:
        missing = contents.missing_parts(repo, digest)
        if missing:
            raise IncompleteTarget(target=digest, missing=missing)
        targets["manifest"] = ContentId.manifest(digest)
        targets["config"] = ContentId.config(contents.load(repo, digest).manifest.config.digest)
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
        top, _, name = path.rpartition("/")
        if top != layout.CONFIGS:
            continue
        config = layout.ref_target(path, link)
        if repo.stream_object(config) is not None:
            continue
        manifest = f"{layout.DEPLOYMENTS}/{name}"
        digest = digest_of_link(made.get(manifest) or repo.read_link(manifest))
        if digest is not None:
            found[config] = contents.load(repo, digest).config_object
    return found


def name_configs(repo: WriteRepo, changes: Iterable[RefChange]) -> None:
    """Give :func:`unnamed_configs` their names again, before the refs to them are made."""
    for config, object_id in unnamed_configs(repo, changes).items():
        repo.add_stream(config, repo.read_object(object_id, MAX_JSON_OBJECT, config))


def plan_create(
    repo: ReadRepo,
    view: SysrootView | None,
    name: DeploymentId,
    digest: Digest | None,
    *,
    force: bool = False,
    bind: bool = False,
) -> DeploymentPlan:
    """The deployment ref of one deployment, as an updater wants it.

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
        DeploymentMismatch: the config names other EROFS images only.
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
    if not force:
        named = contents.load(repo, digest).erofs
        if named and name not in named.values() and digest not in Index(repo).of_image(name):
            raise DeploymentMismatch(deployment=name, manifest=digest, images=tuple(sorted(set(named.values()))))
        for change in changes:
            if change.old is not None:
                raise ExpectationFailed(ref=change.path, wanted="absent", found=change.old.rpartition("/")[2])
    bound = binding.plan_bind(repo, name) if bind else None
    return DeploymentPlan((*changes, *(bound.changes if bound is not None else ())), (name,), bound)


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

    Raises as :func:`plan_create` and :func:`cfs_tags.repo.refs.transact`.
    """
    made, _ = refs.transact(
        repo,
        lambda: plan_create(repo, view, name, digest, force=force, bind=bind),
        note,
        timeout,
        prepare=lambda plan: name_configs(repo, plan.changes),
    )
    return made


# -- adopting ----------------------------------------------------------------------------------------------------------


def plan_adoption(repo: ReadRepo, view: SysrootView, index: Index | None = None) -> DeploymentPlan:
    """Refs for every deployment that has none and whose look-up is exact and complete; the others are left alone."""
    index = index if index is not None else Index(repo)
    changes: list[RefChange] = []
    ids = []
    for name in view.seen:
        if ref_state(repo, name).status == "complete":
            continue
        lookup = look_up(repo, view, name, index)
        if lookup.digest is None:
            continue
        try:
            parts = plan_parts(repo, name, lookup.digest, "adopt")
        except CfsTagsError:
            continue
        if parts:
            changes.extend(parts)
            ids.append(name)
    return DeploymentPlan(tuple(changes), tuple(ids))


def adopt(repo: WriteRepo, view: SysrootView, *, note: Note = NO_NOTE, timeout: float = DEFAULT_TIMEOUT) -> DeploymentPlan:
    """Give deployments that bootc made their refs: :func:`plan_adoption`, carried out."""
    made, _ = refs.transact(
        repo, lambda: plan_adoption(repo, view), note, timeout, prepare=lambda plan: name_configs(repo, plan.changes)
    )
    return made


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

    Kept are refs of deployments that some place has; all of them where a place could not be read; and those made less
    than ``grace`` seconds ago for a deployment that was not seen since.

    Args:
        repo: where.
        view: of the sysroot, read under the same lock as the plan is carried out.
        only: these alone; none means all.
        grace: seconds.
        now: seconds since 1970; None asks the clock.
    """
    moment = time.time() if now is None else now
    known = _seen(repo)
    wanted = set(only)
    changes: list[RefChange] = []
    rows = []
    for name in referred(repo):
        if wanted and name not in wanted:
            continue
        reason = _reason_to_keep(repo, view, name, known, grace, moment)
        if reason is None:
            for path in ref_paths(name).values():
                link = repo.read_link(path)
                if link is not None:
                    changes.append(RefChange(path, link, None, "retire"))
            changes.extend(binding.removal(repo, name))
        rows.append(RetireRow(name, "kept" if reason else "retired", reason or "no place has it"))
    absent = wanted - {row.id for row in rows}
    if absent:
        raise TargetNotFound(kind="deployment ref", name=sorted(absent)[0])
    return RetirePlan(tuple(changes), tuple(rows))


def referred_by(repo: ReadRepo, prefix: str) -> DeploymentId:
    """The deployment with a ref whose id starts so; ``@deployment/`` may stand before it.

    Raises:
        InvalidArgument: that is no id: the empty text, above all, which every id starts with.
        TargetNotFound, AmbiguousName: none, or several.
    """
    prefix = prefix.removeprefix("@deployment/")
    if re.fullmatch("[0-9a-f]+", prefix, re.ASCII) is None:
        raise InvalidArgument(argument="deployment", value=prefix, reason="is neither an id nor the start of one")
    found = [name for name in referred(repo) if name.startswith(prefix)]
    if not found:
        raise TargetNotFound(kind="deployment ref", name=prefix)
    if len(found) > 1:
        raise AmbiguousName(name=prefix, candidates=tuple(found))
    return found[0]


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
        LockTimeout: somebody has the repository open.
    """

    def plan() -> _Retirement:
        view = read_view()
        return _Retirement(plan_retire(repo, view, only, grace=grace), view)

    made, _ = refs.transact(
        repo, plan, note, timeout, exclusive=True, prepare=lambda retirement: _remember(repo, retirement.view)
    )
    return made.plan


def _reason_to_keep(
    repo: ReadRepo, view: SysrootView, name: DeploymentId, known: Mapping[str, int], grace: float, now: float
) -> str | None:
    places = view.seen.get(name)
    if places:
        return f"it is in {', '.join(sorted(places))}"
    unread = view.unread
    if unread:
        return "; ".join(
            f"{place.name}{f' ({place.path})' if place.path else ''} could not be read: {place.reason}" for place in unread
        )
    made = _made(repo, name)
    if made is None or known.get(name) == made:
        return None
    age = now - made / 1e9
    return f"its ref was made {int(age)} s ago and the deployment was not seen since" if age < grace else None


def _made(repo: ReadRepo, name: DeploymentId) -> int | None:
    """When the newest part of a ref was made, in nanoseconds since 1970; None where there is none."""
    times = []
    for path in ref_paths(name).values():
        try:
            times.append(os.stat(path, dir_fd=repo.fd, follow_symlinks=False).st_mtime_ns)
        except OSError:
            continue
    return max(times, default=None)


def _seen(repo: ReadRepo) -> dict[str, int]:
    """Deployments that some place had when we last looked, each with when the ref that it had then was made.

    So a ref that was made again since waits for its deployment like a new one.  Lost: they are kept for the grace time.
    """
    try:
        times = json.loads(repo.read_file(_SEEN, _MAX_SEEN) or b"{}")
    except (ValueError, RecursionError, CfsTagsError):
        return {}
    return {name: made for name, made in times.items() if isinstance(made, int)} if isinstance(times, dict) else {}


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
        fsops.replace_file(repo.fd, _SEEN, data, f"{_SEEN}.new", repo.owner)
    except OSError as error:
        raise SystemFailure.of(error, "write", os.path.join(repo.path, _SEEN)) from error
