"""``cfs-tag report``."""

from __future__ import annotations

from typing import Annotated

import typer

from cfs_tags.cli import sysroots
from cfs_tags.cli.options import Json, LockTimeout
from cfs_tags.errors import UsageError, installed


def command(
    ctx: typer.Context,
    file: Annotated[
        str, typer.Argument(metavar="FILE.html", show_default=False, help="The page that is written; - for standard output.")
    ],
    *,
    places: sysroots.Places,
    lock_timeout: LockTimeout = 30.0,
    as_json: Json = False,
) -> None:
    """Write a page about space, sharing and deployments.

    One HTML file with charts, which a browser shows without a network: space by owner, tag and deployment; who shares with
    whom; deployments over time, as the log has them.  A file of that name is replaced at once, or stays as it was.  Needs
    the Python package plotly.

    \b
    Examples:
      cfs-tag report report.html
      cfs-tag --sysroot /mnt/sysroot report report.html --esp none --run none --booted none
    """
    with installed("plotly", extra="report", command="report"):
        from cfs_tags.report.page import page
    from cfs_tags.cli.files import write_page
    from cfs_tags.report.facts import read

    if as_json and file == "-":
        raise UsageError("command-line", command=ctx.command_path, text="--json and - exclude each other")
    session = ctx.obj
    with session.open(places) as repo, repo.locked("shared", lock_timeout):
        host = repo.deployments
        view = host.view() if sysroots.has_sysroot(ctx, repo, **places._asdict()) else None
        changes, unresolved = host.planned_changes()
        facts = read(repo, view, changes)
    data = page(facts._replace(problems=(*unresolved, *facts.problems)))
    write_page("report", data, file, as_json)
