"""``cfs-tag bind``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cfs_tags.cli import complete, output, sysroots
from cfs_tags.cli.options import DryRun, Json, LockTimeout, Reason, seconds
from cfs_tags.cli.session import note
from cfs_tags.errors import printable

if TYPE_CHECKING:
    from cfs_tags.binding import BindPlan


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
    boot: sysroots.Boot = None,
    esp: sysroots.Esp = None,
    run: sysroots.Run = None,
    booted: sysroots.Booted = None,
    dry_run: DryRun = False,
    reason: Reason = None,
    lock_timeout: LockTimeout = 30.0,
    as_json: Json = False,
) -> None:
    """Keep the app images that a deployment is bound to as long as the deployment.

    Reads usr/lib/bootc/bound-images.d in its EROFS image and makes a ref for every image that the repository holds; what
    is missing is named.

    \b
    Examples:
      cfs-tag bind booted
      cfs-tag bind --dry-run --json
    """
    from cfs_tags import binding
    from cfs_tags.deployments import list_deployments, select

    timeout = seconds(lock_timeout)
    session = ctx.obj
    made: list[BindPlan] = []
    with session.open(write=True) as repo:
        rows = list_deployments(repo, sysroots.view_of(session, repo, boot, esp, run, booted))
        chosen = [select(rows, deployment)] if deployment is not None else [row for row in rows if row.state != "gone"]
        for row in chosen:
            if deployment is None and repo.image_object(row.id) is None:
                continue
            if dry_run:
                made.append(binding.plan_bind(repo, row.id))
            else:
                made.append(binding.bind(repo, row.id, note=note(reason), timeout=timeout))
    if as_json:
        output.document("bind", {"dry_run": dry_run, "deployments": [_facts(plan) for plan in made]})
        return
    shown = [
        (plan.id, printable(row.name), row.done, row.digest or printable(row.reason or ""))
        for plan in made
        for row in plan.rows
    ]
    output.table(("DEPLOYMENT", "IMAGE", "RESULT", "MANIFEST"), shown)


def _facts(plan: BindPlan) -> dict[str, Any]:
    return {
        "id": plan.id,
        "images": [
            {**output.named(row.name), "result": row.done, "manifest": row.digest, "reason": row.reason} for row in plan.rows
        ],
    }
