"""``cfs-tag deployments``."""

from __future__ import annotations

import typer

from cfs_tags.cli import output, sysroots
from cfs_tags.cli.options import Json
from cfs_tags.errors import printable


def command(
    ctx: typer.Context,
    boot: sysroots.Boot = None,
    esp: sysroots.Esp = None,
    run: sysroots.Run = None,
    booted: sysroots.Booted = None,
    as_json: Json = False,
) -> None:
    """List every deployment: state, image, ref and health.

    One that is half there is a row that says what is wrong with it and what to do.

    \b
    Examples:
      cfs-tag deployments
      cfs-tag --sysroot /mnt/sysroot deployments --esp /mnt/efi --json
    """
    from cfs_tags.deployments import list_deployments

    session = ctx.obj
    with session.open() as repo:
        view = sysroots.view_of(session, repo, boot, esp, run, booted)
        rows = list_deployments(repo, view)
    if as_json:
        result = {
            "sysroot": view.sysroot.root,
            "deployments": [sysroots.row_facts(row) for row in rows],
            "places": sysroots.place_facts(view),
            "findings": [sysroots.finding_facts(finding) for finding in view.findings],
        }
        output.document("deployments", result)
        return
    shown = [
        (row.state, row.id, row.image, row.version, row.manifest, row.ref, ", ".join(f.code for f in row.health) or "ok")
        for row in rows
    ]
    output.table(("STATE", "DEPLOYMENT", "IMAGE", "VERSION", "MANIFEST", "REF", "HEALTH"), shown)
    for row in rows:
        for finding in row.health:
            output.lines([f"{row.id[:12]}: {printable(finding.message)}: {finding.advice}"])
    for row in rows:
        for image in row.bound:
            output.lines([f"{row.id[:12]}: keeps {printable(image)}"])
    sysroots.show_findings(view)
