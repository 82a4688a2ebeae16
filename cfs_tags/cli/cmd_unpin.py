"""``cfs-tag unpin``."""

from __future__ import annotations

from typing import Annotated

import typer

from cfs_tags.cli import complete, sysroots
from cfs_tags.cli.options import Change


def command(
    ctx: typer.Context,
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME...",
            autocompletion=complete.pins,
            show_default=False,
            help="Of a pin; or a deployment that one pin keeps, by its id or prefix, booted, staged or rollback.",
        ),
    ],
    *,
    places: sysroots.Places,
    how: Change,
) -> None:
    """Remove pins.

    All or none.  What nothing else keeps goes at the next collection; of a deployment that is gone, its refs at the next
    'cfs-tag retire' or 'cfs-tag gc'.

    \b
    Examples:
      cfs-tag unpin before-upgrade
      cfs-tag unpin 6c19d984
    """
    from cfs_tags.cli.changes import told
    from cfs_tags.cli.cmd_pin import show

    with ctx.obj.open(places, write=True, dry_run=how.dry_run) as repo:
        made = repo.pins.unpin(
            *names,
            **told(how),
        )
    show("unpin", made, how)
