"""``cfs-tag pin``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cfs_tags.cli import complete, output, sysroots
from cfs_tags.cli.options import Change, future

if TYPE_CHECKING:
    from cfs_tags.host.pins import PinPlan


def command(
    ctx: typer.Context,
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            autocompletion=complete.names_and_deployments,
            show_default=False,
            help="A deployment (booted, staged, rollback, an id or its prefix), a tag, or @sha256:DIGITS.",
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", show_default=False, help="Of the pin; else the tag, or the first digits of the id."),
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="WHEN", show_default=False, help="End it then: after 90d, or at 2027-01-31.")
    ] = None,
    *,
    places: sysroots.Places,
    how: Change,
) -> None:
    """Keep a deployment or an image, so that it can be brought back.

    A pin keeps manifest, config, layers and EROFS image by refs of its own, which every collector honours, whatever becomes
    of tags, boot entries and state directories; the deployment's refs are not retired.  Beside them it keeps the origin, the
    text of the boot entry, and the objects of files in /boot.  'cfs-tag revive' brings it back.

    The same again is no change; another --until moves the end, none makes it a pin without one.

    \b
    Examples:
      cfs-tag pin booted --reason "last one before the new kernel"
      cfs-tag pin rollback --until 90d --name before-upgrade
      cfs-tag pin quay.io/org/app:1.2
    """
    from cfs_tags.cli.changes import told

    end = None if until is None else future(until, "--until")
    with ctx.obj.open(places, write=True, dry_run=how.dry_run) as repo:
        made = repo.pins.pin(
            target,
            name=name,
            until=end,
            **told(how),
        )
    show("pin", made, how)


def show(command: str, made: PinPlan, how: Change) -> None:
    """What became, or would become, of pins."""
    from cfs_tags.cli.changes import said
    from cfs_tags.errors import printable

    if how.as_json:
        output.document(
            command,
            {
                "dry_run": how.dry_run,
                "pins": [
                    {
                        **output.named(one.name),
                        "done": one.done,
                        "manifest": one.manifest,
                        "deployment": one.deployment,
                        "expires": output.instant(one.expires),
                    }
                    for one in made.results
                ],
                "changes": [{"ref": change.path, "old": change.old, "new": change.new} for change in made.changes],
            },
        )
        return
    for one in made.results:
        kept = f"deployment {one.deployment}" if one.deployment is not None else one.manifest
        until = f", {output.ends(one.expires)}" if one.expires is not None and one.done != "unpinned" else ""
        output.lines([f"{said(one.done, how.dry_run)}: {printable(one.name)} -> {kept}{until}"])
