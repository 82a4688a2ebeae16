"""``cfs-tag deployments``."""

from __future__ import annotations

import typer

from cfs_tags.cli import output, sysroots, view
from cfs_tags.cli.hints import advice
from cfs_tags.cli.options import Json
from cfs_tags.cli.remedies import Remedies, show
from cfs_tags.errors import printable


def command(
    ctx: typer.Context,
    *,
    places: sysroots.Places,
    as_json: Json = False,
) -> None:
    """List every deployment: state, image, ref and health.

    One that is half there is a row that says what is wrong with it and what to do.

    \b
    Examples:
      cfs-tag deployments
      cfs-tag --sysroot /mnt/sysroot deployments --esp /mnt/efi --json
    """
    from cfs_tags.host.rows import list_deployments

    session = ctx.obj
    with session.open(places) as repo:
        host = repo.deployments.view()
        rows = list_deployments(repo, host)
    if as_json:
        result = {
            "sysroot": host.sysroot.root,
            "deployments": [sysroots.row_facts(row) for row in rows],
            "places": sysroots.place_facts(host),
            "findings": [sysroots.finding_facts(finding) for finding in host.findings],
        }
        output.document("deployments", result)
        return
    sysroots.show_rows(rows)
    if not view.on_terminal():
        for row in rows:
            for finding in row.health:
                output.lines([f"{row.id[:12]}: {printable(finding.message)}: {advice(finding.advice)}"])
    sysroots.show_pins(rows)
    for row in rows:
        for image in row.bound:
            output.lines([f"{row.id[:12]}: keeps {printable(image)}"])
    if view.on_terminal():
        remedies = Remedies(session, places)
        show([*remedies.deployments(rows), *remedies.sysroot(host, rows)])
    else:
        sysroots.show_findings(host)
