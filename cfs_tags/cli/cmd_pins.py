"""``cfs-tag pins``."""

from __future__ import annotations

from typing import Annotated

import typer

from cfs_tags.cli import complete, output, sysroots, view
from cfs_tags.cli.options import Json
from cfs_tags.errors import printable


def command(
    ctx: typer.Context,
    patterns: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PATTERN...]", autocompletion=complete.pins, help="Only these names; * and ? as in a shell."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List pins: what each keeps, until when and why.

    \b
    Examples:
      cfs-tag pins
      cfs-tag pins 'before-*' --json
    """
    from fnmatch import fnmatchcase

    with ctx.obj.open() as repo:
        found = repo.pins.list()
    if patterns:
        found = [row for row in found if any(fnmatchcase(row.pin.name, pattern) for pattern in patterns)]
    if as_json:
        output.document("pins", [sysroots.pin_facts(*row) for row in found])
        return
    if not found and view.on_terminal():
        output.lines([f"no pins match {' or '.join(repr(printable(one)) for one in patterns)}" if patterns else "no pins"])
        return
    rows = [
        (
            pin.name,
            "deployment" if pin.deployment is not None else "image",
            pin.deployment or pin.manifest,
            "ended" if pin.has_ended else output.instant(pin.expires) or "always",
            record.made,
            record.by,
            record.reason,
        )
        for pin, record in found
    ]
    output.table(("NAME", "KEEPS", "ID", "UNTIL", "MADE", "BY", "REASON"), rows)
