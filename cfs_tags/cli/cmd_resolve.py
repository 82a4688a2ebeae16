"""``cfs-tag resolve``."""

from __future__ import annotations

from typing import Annotated

import typer

from cfs_tags.cli import output
from cfs_tags.cli.options import Json, NameArgument


def command(
    ctx: typer.Context,
    name: NameArgument,
    verity: Annotated[
        bool, typer.Option("--verity", help="Print the object of the manifest's stream, its fs-verity digest.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Print the digest that a name stands for.

    NAME is a tag, @sha256:DIGITS (six or more), @deployment/ID, @trash/NAME, NAME@{N} for entry N of a
    tag's log, or NAME@{yesterday}, NAME@{2026-01-31} for a time.
    For scripts: one line, nothing else.

    \b
    Examples:
      cfs-tag resolve quay.io/org/app:stable
      cfs-tag resolve 'quay.io/org/app:stable@{1}'
      cfs-tag resolve --verity @sha256:9e9675
    """
    from cfs_tags.tags import names
    from cfs_tags.values import ContentId

    with ctx.obj.open() as repo:
        digest = names.resolve(repo, repo.deployments.meant(name))
        stream = repo.stream_object(ContentId.manifest(digest)) if verity or as_json else None
    if verity and stream is None:
        from cfs_tags.errors import TargetNotFound

        raise TargetNotFound(kind="manifest", name=digest)
    if as_json:
        output.document("resolve", {**output.named(name), "digest": digest, "object": stream})
    else:
        output.emit(f"{stream if verity else digest}\n")
