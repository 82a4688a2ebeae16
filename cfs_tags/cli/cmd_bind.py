"""``cfs-tag bind``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cfs_tags.cli import complete, output, sysroots
from cfs_tags.cli.changes import said, told
from cfs_tags.cli.options import Change
from cfs_tags.errors import printable

if TYPE_CHECKING:
    from cfs_tags.host.bound import BindPlan


def command(
    ctx: typer.Context,
    deployment: Annotated[
        str | None,
        typer.Argument(
            metavar="[DEPLOYMENT]",
            autocompletion=complete.deployments_and_states,
            help="An id or its prefix, booted, staged or rollback; all without it.",
        ),
    ] = None,
    *,
    places: sysroots.Places,
    how: Change,
) -> None:
    """Keep the app images that a deployment is bound to as long as the deployment.

    Reads usr/lib/bootc/bound-images.d in its EROFS image and makes a ref for every image that the repository holds; what
    is missing is named.

    \b
    Examples:
      cfs-tag bind booted
      cfs-tag bind --dry-run --json
    """
    with ctx.obj.open(places, write=True, dry_run=how.dry_run) as repo:
        made = repo.deployments.bind(deployment, **told(how))
    if how.as_json:
        output.document("bind", {"dry_run": how.dry_run, "deployments": [_facts(plan) for plan in made]})
        return
    shown = [
        (plan.id, printable(row.name), said(row.done, how.dry_run), row.digest or printable(row.reason or ""))
        for plan in made
        for row in plan.rows
    ]
    output.table(("DEPLOYMENT", "IMAGE", "RESULT", "MANIFEST"), shown, "no deployment is bound to an app image")


def _facts(plan: BindPlan) -> dict[str, Any]:
    return {
        "id": plan.id,
        "images": [
            {**output.named(row.name), "result": row.done, "manifest": row.digest, "reason": row.reason} for row in plan.rows
        ],
    }
