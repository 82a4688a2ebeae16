"""``cfs-tag restore``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cfs_tags.cli import complete
from cfs_tags.cli.options import DryRun, Json, LockTimeout, Owners, Reason, owners, seconds
from cfs_tags.errors import InvalidDigest, NotFoundError

if TYPE_CHECKING:
    from cfs_tags.repo.store import ReadRepo
    from cfs_tags.tagging import TagPlan


def command(
    ctx: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME[@{N}]",
            autocompletion=complete.tags_and_trash,
            show_default=False,
            help="Of the tag; @{N} is entry N of its log, 0 the newest.",
        ),
    ],
    owner: Owners = None,
    dry_run: DryRun = False,
    reason: Reason = None,
    lock_timeout: LockTimeout = 30.0,
    as_json: Json = False,
) -> None:
    """Bring back a deleted tag, or an earlier value.

    A deleted tag comes out of the trash or, where it is not there, from the log.  A tag that exists goes back to the
    value before the present one.  NAME@{N} is the value that it had after entry N of 'cfs-tag log NAME'.  The image
    must still be there: only the trash keeps it from being collected.  A ref that 'cfs-tag fsck --repair' took out is named
    by its path, or as a tag.

    \b
    Examples:
      cfs-tag restore quay.io/org/app:1.1
      cfs-tag restore 'quay.io/org/app:stable@{2}' --reason "the new one does not start"
      cfs-tag restore streams/refs/ostree/os --owner foreign
    """
    named = owners(owner)

    from cfs_tags.cli.changes import change

    taken_out = False

    def plan(repo: ReadRepo) -> TagPlan:
        from cfs_tags import tagging

        nonlocal taken_out
        try:
            return tagging.plan_restore(repo, name, owners=named)
        except (InvalidDigest, NotFoundError):  # no such tag, nor anything in the log that would be one
            from cfs_tags.fsck.quarantine import plan_unquarantine

            made = plan_unquarantine(repo, name, owners=named)
            if made is None:
                raise
            taken_out = True
            return made

    change(ctx, plan, dry_run=dry_run, reason=reason, lock_timeout=lock_timeout, as_json=as_json)
    if taken_out and not dry_run:
        from cfs_tags.fsck.quarantine import forget

        with ctx.obj.open(write=True) as repo:
            forget(repo, seconds(lock_timeout))
