"""The refs of an import: its tags, what leads to referrers, and the index that is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cfs_tags import tagging
from cfs_tags.apps.importing import mounting
from cfs_tags.formats import layout
from cfs_tags.repo.refs import RefChange
from cfs_tags.tagging import Instruction
from cfs_tags.values import ContentId

if TYPE_CHECKING:
    from cfs_tags.apps.importing.values import Import
    from cfs_tags.repo.store import ReadRepo
    from cfs_tags.tagging import TagPlan

__all__ = ["tag_plan"]


def tag_plan(repo: ReadRepo, wanted: Import) -> TagPlan:
    """The changes to refs that an import comes to, once its content is there.  Raises as :func:`cfs_tags.tagging.plan`."""
    options = wanted.options
    verb = "set" if options.force else "create"
    instructions = [Instruction(verb, name, f"@{digest}", home=options.home) for name, digest in wanted.names]
    made = tagging.plan(repo, instructions, owners=options.owners)
    changes = list(made.changes)
    for subject, artifact in wanted.referrers:
        path = f"{layout.REFERRERS}/{subject}/{artifact}"
        changes += _named(repo, path, ContentId.manifest(artifact), "create")
    if wanted.kept_index is not None:
        _, digest, name = wanted.kept_index
        path = f"{layout.INDEXES}/{layout.encode_name(name)}"
        changes = [change for change in changes if change.path != path]  # of one that was kept before
        changes += _named(repo, path, ContentId.blob(digest), "create")
    changes += mounting.left_overs(repo)
    return made._replace(changes=tuple(changes))


def _named(repo: ReadRepo, path: str, content_id: ContentId, action: str) -> list[RefChange]:
    link = layout.ref_link(path, content_id)
    old = repo.read_link(path)
    return [] if old == link else [RefChange(path, old, link, action)]
