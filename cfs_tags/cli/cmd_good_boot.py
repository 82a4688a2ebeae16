"""``cfs-tag good-boot``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cfs_tags.cli import complete, output, sysroots
from cfs_tags.cli.changes import told
from cfs_tags.cli.options import Change, excluding
from cfs_tags.errors import printable

if TYPE_CHECKING:
    from cfs_tags.host.good import GoodBoot


def command(
    ctx: typer.Context,
    deployment: Annotated[
        str,
        typer.Argument(
            metavar="[DEPLOYMENT]",
            autocompletion=complete.deployments_and_states,
            show_default=False,
            help="An id or its prefix, booted, staged or rollback; the booted one without it.",
        ),
    ] = "booted",
    show: Annotated[bool, typer.Option("--list", help="Show what was booted successfully; record nothing.")] = False,
    *,
    places: sysroots.Places,
    how: Change,
) -> None:
    """Record that a deployment was booted successfully.

    A unit of the system calls this after each boot that went well.  What was booted well counts for keep-good in a policy of
    retention, and the tags of the image that was booted well last are dropped by no rule.

    \b
    Examples:
      cfs-tag good-boot
      cfs-tag good-boot --list
    """
    if show:
        excluding(ctx, list=show, dry_run=how.dry_run)
        with ctx.obj.open() as repo:
            boots = repo.deployments.good_boots()
    else:
        with ctx.obj.open(places, write=True, dry_run=how.dry_run) as repo:
            boots = (repo.deployments.record_good_boot(deployment, **told(how)),)
    if how.as_json:
        output.document("good-boot", {"dry_run": how.dry_run, "boots": [_facts(boot) for boot in reversed(boots)]})
        return
    rows = [(boot.id, boot.manifest, boot.last, boot.boots) for boot in reversed(boots)]
    if show:
        output.table(("DEPLOYMENT", "MANIFEST", "LAST", "BOOTS"), rows, "no boot is recorded")
        return
    said = "would be recorded" if how.dry_run else "recorded"
    output.lines(
        [f"{said}: {printable(boot.id)} was booted successfully ({output.count(boot.boots, 'time')})" for boot in boots]
    )


def _facts(boot: GoodBoot) -> dict[str, Any]:
    return boot._asdict()
