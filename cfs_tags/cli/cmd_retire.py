"""``cfs-tag retire``."""

from __future__ import annotations

from typing import Annotated

import typer

from cfs_tags.cli import complete, output, sysroots
from cfs_tags.cli.changes import said
from cfs_tags.cli.options import Change, duration
from cfs_tags.cli.session import note
from cfs_tags.errors import printable


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
    force: Annotated[bool, typer.Option("--force", "-f", help="Believe a clock that was set back or far forward.")] = False,
    *,
    places: sysroots.Places,
    how: Change,
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
    from cfs_tags.host import refs
    from cfs_tags.repo import clock

    kept_for = 0.0 if grace == "0" else float(duration(grace, "--grace"))
    session = ctx.obj
    with session.open(places, write=True, dry_run=how.dry_run) as repo:
        only = [refs.referred_by(repo, repo.deployments.meant(text)) for text in ids or ()]

        known = clock.read(repo, trusted=force)
        host = repo.deployments.view()
        read = repo.deployments.view
        if how.dry_run:
            adopted = refs.plan_adoption(repo, read())
            made = refs.plan_retire(repo, read(), only, grace=kept_for, now=known.earliest)
        else:
            if force:
                clock.believe(repo)
            adopted = refs.adopt(repo, read(), note=note(how.reason), timeout=how.lock_timeout)
            made = refs.retire(repo, read, only, grace=kept_for, note=note(how.reason), timeout=how.lock_timeout)
    warnings = [] if known.doubt is None or not kept_for else [known.doubt]
    if how.as_json:
        output.document(
            "retire",
            {
                "dry_run": how.dry_run,
                "adopted": adopted.ids,
                "deployments": [{"id": row.id, "result": row.done, "reason": row.reason} for row in made.rows],
            },
            warnings,
        )
        return
    output.warn(warnings)
    rows = [*((name, "adopted", "its look-up is exact and complete") for name in adopted.ids), *made.rows]
    shown = [(row[0], said(row[1], how.dry_run), printable(row[2])) for row in rows]
    output.table(("DEPLOYMENT", "RESULT", "REASON"), shown, "no deployment has a ref")
    if any(row.done == "kept" and row.id not in host.seen for row in made.rows):
        output.lines([f"{name}: {way}" for name, way in sysroots.ways_out(host).items()])
