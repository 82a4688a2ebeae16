"""Refs that come before a collection: deployments get the ref that they lack, the refs of deployments that are gone are
retired; leases, pins and trash whose time is over go."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import NamedTuple

from cfs_tags.errors import IncompleteTarget, NoDeployments, PlaceUnread, SystemFailure, UnresolvedDeployment
from cfs_tags.formats.boot.paths import STATE_DEPLOY
from cfs_tags.gc.values import RefsPlan
from cfs_tags.host.lookup import ref_state
from cfs_tags.host.pins import tidy
from cfs_tags.host.refs import GRACE, DeploymentPlan, plan_adoption, plan_parts, plan_retire
from cfs_tags.host.sightings import BOOTING
from cfs_tags.host.sysroot import SysrootView
from cfs_tags.repo import clock, fsops, layout, reflog, refs
from cfs_tags.repo.store import ReadRepo, WriteRepo
from cfs_tags.repo.transaction import run
from cfs_tags.repo.transaction.change import Note, RefChange
from cfs_tags.tags import indexes, pins, rows
from cfs_tags.values import DeploymentId


@refs.at_once
def plan_refs(
    repo: ReadRepo,
    view: SysrootView | None,
    *,
    image_only: bool = False,
    retire_grace: float = GRACE,
    trust_clock: bool = False,
) -> RefsPlan:
    """The refs that a collection would make and remove first.

    Raises:
        UnresolvedDeployment: as :func:`plan_deployments`.
    """
    now = clock.read(repo, trusted=trust_clock).earliest
    expired = _with_indexes(repo, tuple(plan_expiry(repo, now)))
    if view is None:
        return RefsPlan(expired, (), None)
    adoption = plan_deployments(repo, view, image_only=image_only)
    retired = plan_retire(repo, view, grace=retire_grace, now=now)
    return RefsPlan((*expired, *adoption.changes, *retired.changes), adoption.ids, retired)


_EXPIRING = (layout.LEASES, layout.TRASH, *pins.PARTS.values())
"""Where refs stand that end."""


class Changes(NamedTuple):
    """Changes of refs, as a plan."""

    changes: tuple[RefChange, ...]


def plan_expiry(repo: ReadRepo, now: float | None = None) -> Iterator[RefChange]:
    """Removal of leases, pins and trash whose time is over."""
    moment = rows.moment(clock.read(repo).earliest if now is None else now)
    for top in _EXPIRING:
        for path, link in refs.walk(repo, top):
            directory, _, name = path[len(top) + 1 :].partition("/")
            expires = layout.expiry_of(directory)
            if expires is not None and name and "/" not in name and link is not None and expires <= moment:
                yield RefChange(path, link, None, "expire")


def _with_indexes(repo: ReadRepo, expired: tuple[RefChange, ...]) -> tuple[RefChange, ...]:
    """Expiry, and removal of indexes that were kept for tags that are gone, or will be."""
    alone = indexes.orphaned_indexes(repo, {change.path for change in expired})
    return (*expired, *(RefChange(path, link, None, "expire") for path, link in alone))


def expire(repo: WriteRepo, note: Note, timeout: float) -> tuple[RefChange, ...]:
    """Remove leases, pins and trash whose time is over, and what they leave."""

    logged: set[str] = set()

    def planned() -> Changes:
        _clear_directories(repo, note, logged)
        tidy(repo)
        changes = _with_indexes(repo, tuple(plan_expiry(repo)))
        logged.update(_directory(change) for change in changes)
        return Changes(changes)

    made = run.transact(repo, planned, note, timeout)
    if made.changes:
        run.transact(repo, planned, note, timeout)  # the directories that are empty now
    return made.changes


def _clear_directories(repo: WriteRepo, note: Note, logged: Collection[str]) -> None:
    """Remove directories of leases and trash whose time is over and that are empty; the refs lock is held.

    What was in them went without a log entry where there was no room for one.  So it comes now, before the directory goes
    that tells of it; those that are ``logged`` need none.
    """
    moment = rows.moment(clock.read(repo).earliest)
    empty = []
    for top in _EXPIRING:
        for name in repo.names(top) or ():
            expires, path = layout.expiry_of(name), f"{top}/{name}"
            if expires is not None and expires <= moment and repo.is_directory(path) and not repo.names(path):
                empty.append(path)
    gone = reflog.standing(repo, {path for path in empty if path not in logged})
    time, transaction = reflog.timestamp(), os.urandom(8).hex()
    entries = [reflog.Entry(ref, new, None, "expire", time, transaction, *note) for ref, _, new, *_ in gone]
    try:
        reflog.append(repo, entries)
    except OSError as error:
        raise SystemFailure.of(error, "write", os.path.join(repo.path, reflog.DIRECTORY)) from error
    for path in empty:
        with suppress(OSError):  # not empty any more
            fsops.remove_directory(repo.fd, path)


def _directory(change: RefChange) -> str:
    return change.path.rpartition("/")[0]


def expire_unlogged(repo: WriteRepo) -> Iterator[RefChange]:
    """The same without a journal and a log, for which there is no room: a path that has run out is never used again.

    The directories stay, empty: the next :func:`expire` writes the log.
    """
    for change in list(plan_expiry(repo)):
        try:
            fsops.remove(repo.fd, change.path)
            fsops.sync(repo.fd, _directory(change))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise SystemFailure.of(error, "delete", os.path.join(repo.path, change.path)) from error
        yield change


# -- deployments -------------------------------------------------------------------------------------------------------

_OF_OTHERS = BOOTING - {"aboot"}
"""Places where deployments of other systems on the same machine are seen, too."""


def plan_deployments(repo: ReadRepo, view: SysrootView, *, image_only: bool = False) -> DeploymentPlan:
    """Adoption, and for what cannot be adopted the image part alone.

    A deployment whose ref has the manifest is resolved, and one with the image alone was decided about before.

    Raises:
        UnresolvedDeployment: there are others, and ``image_only`` is not set, or their images have lost their links; names
            all of them.
        SystemFailure: as :func:`plan_adoption`.
        PlaceUnread: the state directories could not be read, so that it is not known which deployments there are.
        NoDeployments: there are none, and tags that bootc made for some.
    """
    for place in view.unread:
        if place.name == "state":
            raise PlaceUnread(place=place.name, path=place.path, reason=str(place.reason))
    if repo.has_bootc_tags and not any("state" in places for places in view.seen.values()):
        # hosts that boot ostree commits and keep their images here are like this: no place tells what is live
        raise NoDeployments(path=os.path.join(view.sysroot.root, STATE_DEPLOY))
    adoption = plan_adoption(repo, view)
    changes = list(adoption.changes)
    ids = list(adoption.ids)
    unresolved = []
    unlinked = []
    for name, here in _undecided(repo, view, adoption):
        if not image_only:
            unresolved.append(name)
            continue
        try:
            parts = plan_parts(repo, name, None, "adopt")
        except IncompleteTarget:
            if here:  # no ref can be made to its image, which has lost its link, and yet it is content
                unlinked.append(name)
            continue  # without an EROFS image there is nothing that a ref could keep
        if parts:
            changes.extend(parts)
            ids.append(name)
    if unresolved:
        others = [f"so it is with {name}" for name in unresolved[1:]]
        notes = ("it has no ref and none can be made, so that its content would be collected", *others)
        raise UnresolvedDeployment(deployment=unresolved[0], notes=notes)
    if unlinked:
        lost = [f"images/{name} is gone, and its object is there: make the link again" for name in unlinked]
        raise UnresolvedDeployment(deployment=unlinked[0], notes=tuple(lost))
    return adoption._replace(changes=tuple(changes), ids=tuple(ids))


def _undecided(repo: ReadRepo, view: SysrootView, adoption: DeploymentPlan) -> Iterator[tuple[DeploymentId, bool]]:
    """Deployments of this system that have no ref and get none by adoption, and whether their EROFS images are here."""
    for name in view.seen:
        if name in adoption.ids:
            continue
        state = ref_state(repo, name)
        if state.failure is not None:
            raise state.failure
        if state.manifest is not None or state.status == "image-only":
            continue  # where a part of it leads nowhere, marking says so
        here = repo.image_object(name) is not None or repo.has_object(name)
        if here or not view.seen[name] <= _OF_OTHERS:
            yield name, here
