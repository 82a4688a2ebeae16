"""Refs that come before a collection: of deployments that have none, and of those that are gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cfs_tags.deploying import GRACE, plan_adoption, plan_parts, plan_retire
from cfs_tags.errors import IncompleteTarget, PlaceUnread, UnresolvedDeployment
from cfs_tags.gc.expiring import plan_expiry, with_indexes
from cfs_tags.gc.values import RefsPlan
from cfs_tags.lookup import ref_state

if TYPE_CHECKING:
    from cfs_tags.deploying import DeploymentPlan
    from cfs_tags.repo.store import ReadRepo
    from cfs_tags.sysroot import SysrootView

__all__ = ["plan_deployments", "plan_refs"]


def plan_refs(repo: ReadRepo, view: SysrootView | None, *, image_only: bool = False, retire_grace: float = GRACE) -> RefsPlan:
    """The refs that a collection would make and remove first.

    Raises:
        UnresolvedDeployment: as :func:`plan_deployments`.
    """
    expired = with_indexes(repo, tuple(plan_expiry(repo)))
    if view is None:
        return RefsPlan(expired, (), None)
    adoption = plan_deployments(repo, view, image_only=image_only)
    retired = plan_retire(repo, view, grace=retire_grace)
    return RefsPlan((*expired, *adoption.changes, *retired.changes), adoption.ids, retired)


_OF_OTHERS = frozenset({"boot-entry", "staged-entry", "uki"})
"""Places where deployments of other systems on the same machine are seen, too."""


def plan_deployments(repo: ReadRepo, view: SysrootView, *, image_only: bool = False) -> DeploymentPlan:
    """Adoption, and for what cannot be adopted the image part alone.

    A deployment whose ref has the manifest is resolved, and one with the image alone was decided about before.

    Raises:
        UnresolvedDeployment: there are others, and ``image_only`` is not set, or their images have lost their links; names
            all of them.
        PlaceUnread: the state directories could not be read, so that nobody knows which deployments there are.
    """
    for place in view.unread:
        if place.name == "state":
            raise PlaceUnread(place=place.name, path=place.path, reason=str(place.reason))
    adoption = plan_adoption(repo, view)
    changes = list(adoption.changes)
    ids = list(adoption.ids)
    unresolved = []
    unlinked = []
    for name in view.seen:
        if name in adoption.ids:
            continue
        state = ref_state(repo, name)
        if state.manifest is not None or state.status == "image-only":
            continue  # where a part of it leads nowhere, marking says so
        here = repo.image_object(name) is not None or repo.has_object(name)
        if not here and view.seen[name] <= _OF_OTHERS:
            continue  # another system's boot entry
        if not image_only:
            unresolved.append(name)
            continue
        try:
            parts = plan_parts(repo, name, None, "adopt")
        except IncompleteTarget:
            if here:  # its image has lost its link, so that no ref can be made to it, and is content all the same
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
