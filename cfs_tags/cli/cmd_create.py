"""``cfs-tag create``."""

from __future__ import annotations

from typing import Annotated

import typer

from cfs_tags.cli import complete
from cfs_tags.cli.options import DryRun, Json, LockTimeout, Owners, Reason, duration, excluding, owners, seconds
from cfs_tags.errors import CommandLineError, printable


def command(
    ctx: typer.Context,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", show_default=False, help="Of the tag; none with --deployment.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="TARGET",
            autocompletion=complete.names,
            show_default=False,
            help="What it names: a tag, @sha256:DIGITS, @deployment/ID, @trash/NAME or NAME@{N}.",
        ),
    ] = None,
    deployment: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            autocompletion=complete.deployments,
            show_default=False,
            help="Make the ref of a deployment; without TARGET it is looked up.",
        ),
    ] = None,
    bind: Annotated[bool, typer.Option("--bind", help="With --deployment: its bound app images, too.")] = False,
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
    """Make a tag, or move one; or make the ref of a deployment.

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
      cfs-tag create --deployment 6c19d984f340… @sha256:02aeae
    """
    if deployment is not None:
        excluding(ctx, deployment=deployment, shared=shared)
        excluding(ctx, deployment=deployment, private=private)
        excluding(ctx, deployment=deployment, expires=expires)
        excluding(ctx, deployment=deployment, expect=expect)
        if target is not None:
            raise CommandLineError(command=ctx.command_path, text="--deployment takes a TARGET and no NAME")
        _deployment(ctx, deployment, name, force, bind, dry_run, reason, lock_timeout, as_json)
        return
    if bind:
        raise CommandLineError(command=ctx.command_path, text="--bind goes with --deployment")
    if name is None or target is None:
        raise CommandLineError(command=ctx.command_path, text=f"Missing argument {'NAME' if name is None else 'TARGET'!r}.")
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


def _deployment(
    ctx: typer.Context,
    text: str,
    target: str | None,
    force: bool,
    bind: bool,
    dry_run: bool,
    reason: str | None,
    lock_timeout: float,
    as_json: bool,
) -> None:
    from cfs_tags import deploying, tags
    from cfs_tags.cli import output, sysroots
    from cfs_tags.cli.session import note
    from cfs_tags.values import DeploymentId

    timeout = seconds(lock_timeout)
    session = ctx.obj
    with session.open(write=True) as repo:
        name = DeploymentId.parse(text, repo.algorithm)
        digest = tags.resolve(repo, target) if target is not None else None
        view = None
        if digest is None:
            view = sysroots.view_of(session, repo, None, None, None, None)
        if dry_run:
            made = deploying.plan_create(repo, view, name, digest, force=force, bind=bind)
        else:
            made = deploying.create(repo, name, digest, view=view, force=force, bind=bind, note=note(reason), timeout=timeout)
    if as_json:
        refs = [{"ref": change.path, "old": change.old, "new": change.new} for change in made.changes]
        missing = [row.name for row in made.bound.rows if row.digest is None] if made.bound is not None else []
        output.document("create", {"dry_run": dry_run, "deployment": name, "changes": refs, "not_bound": missing})
        return
    done = "created" if made.changes else "unchanged"
    output.lines([f"{'would be ' if dry_run and made.changes else ''}{done}: @deployment/{name}"])
    for row in made.bound.rows if made.bound is not None else ():
        output.lines([f"{row.done}: {printable(row.name)}{f' ({printable(row.reason)})' if row.reason else ''}"])
