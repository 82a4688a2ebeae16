"""``cfs-tag fsck``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cfs_tags.cli import complete, output
from cfs_tags.cli.options import DryRun, Json, LockTimeout, Reason, owners, seconds
from cfs_tags.cli.progress import Progress
from cfs_tags.cli.session import note
from cfs_tags.errors import CommandLineError, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cfs_tags.fsck.check import Report
    from cfs_tags.fsck.findings import Finding
    from cfs_tags.fsck.repair import RepairPlan

_DAMAGED = 6


def command(
    ctx: typer.Context,
    content: Annotated[
        bool, typer.Option("--content", help="Read every byte: measure every object, hash every layer.")
    ] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Repair what can be repaired without losing anything.")] = False,
    owner: Annotated[
        list[str] | None,
        typer.Option(
            "--owner",
            metavar="OWNER",
            autocompletion=complete.one_of("bootc", "deployment", "foreign"),
            help="With --repair: take out refs of that owner, too: bootc, deployment, foreign.",
            show_default=False,
        ),
    ] = None,
    dry_run: DryRun = False,
    reason: Reason = None,
    lock_timeout: LockTimeout = 30.0,
    as_json: Json = False,
) -> None:
    """Check refs, links, streams, images and digests; repair what loses nothing.

    Metadata alone without --content.  --repair finishes an interrupted change, makes links again whose object is there
    and whole, and takes refs at which collectors stop out into quarantine, from where 'cfs-tag restore' brings them
    back.  Notes alone are no failure.

    \b
    Examples:
      cfs-tag fsck
      cfs-tag fsck --content --json
      cfs-tag fsck --repair --dry-run
      cfs-tag fsck --repair --owner bootc --reason "bootc's collector stops"
    """
    timeout = seconds(lock_timeout)
    named = owners(owner)
    for given, option in ((dry_run, "--dry-run"), (bool(named), "--owner"), (reason is not None, "--reason")):
        if given and not repair:
            raise CommandLineError(command=ctx.command_path, text=f"{option} is for --repair")
    plan = None
    with Progress("Checking", not as_json) as progress:
        if repair:
            from cfs_tags.fsck.repair import repair as mend

            with ctx.obj.open(write=True) as repo:
                done = mend(
                    repo,
                    content=content,
                    owners=named,
                    dry_run=dry_run,
                    note=note(reason),
                    progress=progress,
                    timeout=timeout,
                )
            report, plan, findings = done.report, done.plan, done.findings
        else:
            from cfs_tags.fsck.check import fsck

            with ctx.obj.open() as repo:
                report = fsck(repo, content=content, progress=progress, timeout=timeout)
            findings = report.findings
    if as_json:
        output.document("fsck", _facts(report, findings, plan, content, dry_run))
    else:
        _show(report, findings, plan, dry_run)
    if any(one.fails for one in findings):
        raise typer.Exit(_DAMAGED)


def _facts(
    report: Report, findings: Sequence[Finding], plan: RepairPlan | None, content: bool, dry_run: bool
) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "content": content,
        "checked": report.checked._asdict(),
        "ok": not any(one.fails for one in findings),
        "counts": _counts(findings),
        "findings": [
            {
                "code": one.code,
                "severity": one.severity,
                **{key.replace("name", "path"): value for key, value in output.named(one.path).items()},
                "message": one.message,
                "advice": one.advice,
                "repaired": one.repaired,
            }
            for one in findings
        ],
    }
    if plan is not None:
        facts["repair"] = {
            "dry_run": dry_run,
            "recovered": plan.recovers,
            "links": [{"path": link.path, "object": link.object, "old": link.old} for link in plan.links],
            "quarantined": [{"ref": ref.path, "link": ref.link, "owner": ref.owner, "reason": ref.reason} for ref in plan.refs],
        }
    return facts


def _counts(findings: Sequence[Finding]) -> dict[str, int]:
    from cfs_tags.fsck.findings import SEVERITIES

    return {severity: sum(one.severity == severity and not one.repaired for one in findings) for severity in SEVERITIES}


def _show(report: Report, findings: Sequence[Finding], plan: RepairPlan | None, dry_run: bool) -> None:
    for one in findings:
        word = ("would repair" if dry_run else "repaired") if one.repaired else one.severity
        output.lines([f"{word}: {one.code}: {printable(one.path)}: {printable(one.message)}"])
        if not one.repaired and one.severity != "note":
            output.lines([f"  {one.advice}"])
    if plan is not None:
        would = "would be " if dry_run else ""
        for link in plan.links:
            output.lines([f"{would}linked: {printable(link.path)} -> object {link.object[:12]}"])
        for ref in plan.refs:
            output.lines([f"{would}taken out: {printable(ref.path)} -> {printable(ref.link)}"])
        for ref in report.roots.broken:
            if ref not in plan.refs and ref.owner != "app" and any(ref.path == one.path and one.fails for one in findings):
                output.lines([f"left: {printable(ref.path)}: it belongs to {ref.owner}; --owner {ref.owner} takes it out"])
    checked = report.checked
    whole = f" ({checked.content} read whole)" if checked.content else ""
    counts = ", ".join(output.count(number, severity) for severity, number in _counts(findings).items())
    output.lines(
        [
            f"{output.count(checked.objects, 'object')}{whole}, {output.count(checked.streams, 'stream')}, "
            f"{output.count(checked.images, 'image')}, {output.count(checked.refs, 'ref')}: {counts}"
        ]
    )
