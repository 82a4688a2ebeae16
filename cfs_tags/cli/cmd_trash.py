"""``cfs-tag trash``."""

from __future__ import annotations

import typer

from cfs_tags.cli import output
from cfs_tags.cli.options import Json


def command(ctx: typer.Context, as_json: Json = False) -> None:
    """List deleted tags that are being kept.

    They came here by 'cfs-tag delete --keep-for', and are kept until the time that is shown.

    \b
    Examples:
      cfs-tag trash
      cfs-tag restore quay.io/org/app:1.1
    """
    from cfs_tags import tags
    from cfs_tags.cli.rows import notes, row

    with ctx.obj.open() as repo:
        found = tags.trash(repo)
    if as_json:
        output.document("trash", [row(tag) for tag in found])
    else:
        output.table(("NAME", "DIGEST", "NOTES"), [(tag.name, tag.digest or tag.link, notes(tag)) for tag in found])
