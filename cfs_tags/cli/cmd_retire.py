"""``cfs-tag retire``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cfs_tags.cli import complete, output, sysroots
from cfs_tags.cli.options import DryRun, Json, LockTimeout, Reason, duration, seconds
from cfs_tags.cli.session import note
from cfs_tags.errors import printable

if TYPE_CHECKING:
    from cfs_tags.sysroot import SysrootView


def command(
    ctx: typer.Context,
    ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID...]", autocompletion=complete.deployments, help="These alone: ids or prefixes."),
    ] = None,
    grace: Annotated[
        str,
        typer.Option("--grace", metavar="DURATION", help="Keep a ref that long for a deployment never seen; 0 for not at all."),
    ] = "24h",
    boot: sysroots.Boot = None,
    esp: sysroots.Esp = None,
    run: sysroots.Run = None,
    booted: sysroots.Booted = None,
    dry_run: DryRun = False,
    reason: Reason = None,
    lock_timeout: LockTimeout = 30.0,
    as_json: Json = False,
) -> None:
    """Remove the refs of deployments that are gone, after adopting those that have none.

    A ref goes only when every place was read and none has the deployment: state directory, boot entries, staged file,
    kernel command line, mounts.  What is kept is shown with the reason.

    \b
    Examples:
      cfs-tag retire --dry-run
      cfs-tag retire 6c19d984
      cfs-tag --sysroot /mnt/sysroot retire --run none --booted none --esp none
    """
    from cfs_tags import deploying

    kept_for = 0.0 if grace == "0" else float(duration(grace, "--grace"))
    timeout = seconds(lock_timeout)
    session = ctx.obj
    with session.open(write=True) as repo:
        only = [deploying.referred_by(repo, text) for text in ids or ()]

        def read() -> SysrootView:
            return sysroots.view_of(session, repo, boot, esp, run, booted)

        if dry_run:
            adopted = deploying.plan_adoption(repo, read())
            made = deploying.plan_retire(repo, read(), only, grace=kept_for)
        else:
            adopted = deploying.adopt(repo, read(), note=note(reason), timeout=timeout)
            made = deploying.retire(repo, read, only, grace=kept_for, note=note(reason), timeout=timeout)
    if as_json:
        output.document(
            "retire",
            {
                "dry_run": dry_run,
                "adopted": adopted.ids,
                "deployments": [{"id": row.id, "result": row.done, "reason": row.reason} for row in made.rows],
            },
        )
        return
    rows = [*((name, "adopted", "its look-up is exact and complete") for name in adopted.ids), *made.rows]
    output.table(("DEPLOYMENT", "RESULT", "REASON"), [(row[0], row[1], printable(row[2])) for row in rows])
