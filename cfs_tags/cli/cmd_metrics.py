"""``cfs-tag metrics``."""

from __future__ import annotations

from typing import Annotated

import typer

from cfs_tags.cli import output, sysroots
from cfs_tags.cli.options import LockTimeout


def command(
    ctx: typer.Context,
    file: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            show_default=False,
            help="Write them to a file, whole or not at all; else to standard output.",
        ),
    ] = None,
    no_space: Annotated[
        bool, typer.Option("--no-space", help="Measure no space: no object is looked at, no lock taken.")
    ] = False,
    *,
    places: sysroots.Places,
    lock_timeout: LockTimeout = 30.0,
) -> None:
    """Print figures for Prometheus: refs, space, deployments, the last collection and check.

    With --output for the textfile collector of node_exporter, which reads files whose names end in .prom.  Every object is
    looked at for figures about space, under the shared lock.  Needs the Python package
    prometheus-client.

    \b
    Examples:
      cfs-tag metrics
      cfs-tag metrics --output /var/lib/prometheus/node-exporter/cfs-tags.prom
      cfs-tag metrics --no-space
    """
    from cfs_tags import metrics
    from cfs_tags.cli.files import write_whole
    from cfs_tags.df import measure

    with ctx.obj.open(places) as repo:
        host = repo.deployments
        view = host.view() if sysroots.has_sysroot(ctx, repo, **places._asdict()) else None
        usage = None
        if not no_space:
            with repo.locked("shared", lock_timeout):
                usage = measure(repo, (), host.planned_changes()[0])
        data = metrics.text(repo, view, usage)
    if file is None:
        output.emit(data.decode())
    else:
        write_whole(file, data)
