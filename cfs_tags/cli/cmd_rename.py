"""``cfs-tag rename``."""

from __future__ import annotations

from typing import Annotated

import typer

from cfs_tags.cli import complete
from cfs_tags.cli.options import DryRun, Json, LockTimeout, Owners, Reason, owners


def command(
    ctx: typer.Context,
    old: Annotated[
        str, typer.Argument(metavar="OLD", autocompletion=complete.names, show_default=False, help="What it is called.")
    ],
    new: Annotated[
        str, typer.Argument(metavar="NEW", autocompletion=complete.names, show_default=False, help="What it shall be.")
    ],
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace a tag that has the new name.")] = False,
    owner: Owners = None,
    dry_run: DryRun = False,
    reason: Reason = None,
    lock_timeout: LockTimeout = 30.0,
    as_json: Json = False,
) -> None:
    """Give a tag another name.

    It stays where it is, shared or private, and keeps what it names: at no instant is the image without a tag.

    \b
    Examples:
      cfs-tag rename quay.io/org/app:next quay.io/org/app:1.3
      cfs-tag rename quay.io/org/app:next quay.io/org/app:stable --force
    """
    named = owners(owner)

    from cfs_tags import tagging
    from cfs_tags.cli.changes import change

    change(
        ctx,
        lambda repo: tagging.plan_rename(repo, old, new, owners=named, force=force),
        dry_run=dry_run,
        reason=reason,
        lock_timeout=lock_timeout,
        as_json=as_json,
    )
