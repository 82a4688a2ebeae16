"""``cfs-tag rename``."""

from __future__ import annotations

from typing import Annotated

import typer

from cfs_tags.cli import complete
from cfs_tags.cli.options import Change, Owners, owners


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
    *,
    how: Change,
) -> None:
    """Give a tag another name.

    It stays where it is, shared or private, and keeps what it names: at no instant is the image without a tag.  OLD may be a
    digest, or six or more of its digits, where one tag alone names that image.

    \b
    Examples:
      cfs-tag rename quay.io/org/app:next quay.io/org/app:1.3
      cfs-tag rename quay.io/org/app:next quay.io/org/app:stable --force
    """
    named = owners(owner)

    from cfs_tags.cli.changes import change
    from cfs_tags.tags import edit
    from cfs_tags.tags.names import tag_of

    change(
        ctx,
        lambda repo: edit.plan_rename(repo, tag_of(repo, old), new, owners=named, force=force),
        edit.asked("rename", old, new, force),
        how,
    )
