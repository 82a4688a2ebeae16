"""``cfs-tag create``."""

from __future__ import annotations

from typing import Annotated

import typer

from cfs_tags.cli import complete
from cfs_tags.cli.options import DryRun, Json, LockTimeout, Owners, Reason, duration, excluding, owners


def command(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False, help="Of the tag.")],
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            autocompletion=complete.names,
            show_default=False,
            help="What it names: a tag, @sha256:DIGITS, @deployment/ID, @trash/NAME or NAME@{N}.",
        ),
    ],
    force: Annotated[bool, typer.Option("--force", "-f", help="Move a tag that names something else.")] = False,
    expect: Annotated[
        str | None, typer.Option(metavar="DIGEST|absent", help="Only if the tag names this now, or is absent.")
    ] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Make a lease: a tag that ends after 7d, 12h, 30m or 90s.")
    ] = None,
    shared: Annotated[bool, typer.Option("--shared", help="Seen by cfsctl and bootc, whatever the image.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Seen by cfs-tag alone.")] = False,
    owner: Owners = None,
    dry_run: DryRun = False,
    reason: Reason = None,
    lock_timeout: LockTimeout = 30.0,
    as_json: Json = False,
) -> None:
    """Make a tag, or move one.

    A tag keeps the image that it names.  Everything that the image needs must be there.  The same digest again is no
    change.  A tag that names something else is moved only with --force, or with --expect and the digest that it names
    now.

    A new tag is shared, unless bootc could choke on it: in a repository of bootc's, an image without an EROFS image
    gets a private tag.

    \b
    Examples:
      cfs-tag create quay.io/org/app:stable quay.io/org/app:1.2
      cfs-tag create quay.io/org/app:stable @sha256:9e9675 --force --reason "passed its tests"
      cfs-tag create build/4711 quay.io/org/app:1.3 --expires 7d
      cfs-tag create quay.io/org/app:1.3 @sha256:9e9675 --expect absent
    """
    excluding(ctx, shared=shared, private=private, expires=expires)
    named = owners(owner)
    until = None if expires is None else duration(expires, "--expires")

    from cfs_tags import tagging
    from cfs_tags.cli.changes import change

    instruction = tagging.Instruction(
        verb="set" if force else "create",
        name=name,
        target=target,
        expected=expect,
        home="shared" if shared else "private" if private else None,
        expires=None if until is None else tagging.expiry(until),
    )
    change(
        ctx,
        lambda repo: tagging.plan(repo, [instruction], owners=named),
        dry_run=dry_run,
        reason=reason,
        lock_timeout=lock_timeout,
        as_json=as_json,
    )
