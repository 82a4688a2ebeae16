"""``cfs-tag restore``."""

from __future__ import annotations

from typing import Annotated

import typer

from cfs_tags.cli import complete
from cfs_tags.cli.options import DryRun, Json, LockTimeout, Owners, Reason, owners


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
    must still be there: only the trash keeps it from being collected.

    \b
    Examples:
      cfs-tag restore quay.io/org/app:1.1
      cfs-tag restore 'quay.io/org/app:stable@{2}' --reason "the new one does not start"
    """
    named = owners(owner)

    from cfs_tags import tagging
    from cfs_tags.cli.changes import change

    change(
        ctx,
        lambda repo: tagging.plan_restore(repo, name, owners=named),
        dry_run=dry_run,
        reason=reason,
        lock_timeout=lock_timeout,
        as_json=as_json,
    )
