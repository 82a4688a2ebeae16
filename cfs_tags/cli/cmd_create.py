"""``cfs-tag create``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cfs_tags.cli import complete, sysroots
from cfs_tags.cli.options import Change, Owners, duration, excluding, owners
from cfs_tags.errors import CfsTagsError, UsageError, printable

if TYPE_CHECKING:
    from cfs_tags import WriteRepository
    from cfs_tags.cli.session import Session


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
            help="What it names: a tag, @sha256:DIGITS, @deployment/ID, @booted, @staged, @rollback, @trash/NAME, NAME@{N} or "
            "NAME@{TIME}.",
        ),
    ] = None,
    deployment: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            autocompletion=complete.deployments_and_states,
            show_default=False,
            help="Make the ref of a deployment: its whole id, or, of one that is there, the start of it, booted, staged or "
            "rollback. Without TARGET it is looked up.",
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
    *,
    places: sysroots.Places,
    how: Change,
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
      cfs-tag create --deployment staged --bind
    """
    if deployment is not None:
        excluding(ctx, deployment=deployment, shared=shared)
        excluding(ctx, deployment=deployment, private=private)
        excluding(ctx, deployment=deployment, expires=expires)
        excluding(ctx, deployment=deployment, expect=expect)
        if target is not None:
            raise UsageError("command-line", command=ctx.command_path, text="--deployment takes a TARGET and no NAME")
        _deployment(ctx.obj, places, deployment, name, force, bind, how)
        return
    for option, value in places._asdict().items():
        if value is not None:
            raise UsageError("command-line", command=ctx.command_path, text=f"--{option} goes with --deployment")
    if bind:
        raise UsageError("command-line", command=ctx.command_path, text="--bind goes with --deployment")
    if name is None or target is None:
        raise UsageError(
            "command-line", command=ctx.command_path, text=f"Missing argument {'NAME' if name is None else 'TARGET'!r}."
        )
    excluding(ctx, shared=shared, private=private, expires=expires)
    named = owners(owner)
    until = None if expires is None else duration(expires, "--expires")

    from cfs_tags.cli import output
    from cfs_tags.cli.changes import change, not_pullable
    from cfs_tags.tags import edit, instructions, rows

    instruction = instructions.Instruction(
        verb="set" if force else "create",
        name=name,
        target=target,
        expected=expect,
        home="shared" if shared else "private" if private else None,
    )
    warnings: list[CfsTagsError] = []
    output.watch(warnings)

    def planned(repo: WriteRepository) -> edit.TagPlan:
        expires = None if until is None else rows.expiry_here(repo, until)
        wanted = instruction._replace(target=repo.deployments.meant(target), expires=expires)
        plan = edit.plan(repo, [wanted], owners=named)
        warnings[:] = [warning for tag in plan.results if tag.done == "created" for warning in not_pullable(tag.name)]
        return plan

    change(ctx, planned, edit.asked_instructions([instruction._replace(expires=expires)]), how)


def _deployment(
    session: Session, places: sysroots.Places, text: str, target: str | None, force: bool, bind: bool, how: Change
) -> None:
    from cfs_tags.cli import output
    from cfs_tags.cli.changes import told

    with session.open(places, write=True, dry_run=how.dry_run) as repo:
        made = repo.deployments.create(text, target, force=force, bind=bind, **told(how))
    (name,) = made.ids
    if how.as_json:
        changes = [{"ref": change.path, "old": change.old, "new": change.new} for change in made.changes]
        missing = [row.name for row in made.bound.rows if row.digest is None] if made.bound is not None else []
        output.document("create", {"dry_run": how.dry_run, "deployment": name, "changes": changes, "not_bound": missing})
        return
    done = "created" if made.changes else "unchanged"
    output.lines([f"{'would be ' if how.dry_run and made.changes else ''}{done}: @deployment/{name}"])
    for row in made.bound.rows if made.bound is not None else ():
        output.lines([f"{row.done}: {printable(row.name)}{f' ({printable(row.reason)})' if row.reason else ''}"])
