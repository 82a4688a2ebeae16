"""``cfs-tag fsck``."""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cfs_tags.cli import complete, output
from cfs_tags.cli.hints import advice
from cfs_tags.cli.options import Change, owners
from cfs_tags.cli.progress import Progress
from cfs_tags.cli.session import note
from cfs_tags.errors import UsageError, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cfs_tags.apps.mending import Mended
    from cfs_tags.cli.session import Session
    from cfs_tags.fsck.check import Report
    from cfs_tags.fsck.findings import Finding
    from cfs_tags.fsck.repair import Repaired, RepairPlan

_DAMAGED = 6


def command(
    ctx: typer.Context,
    content: Annotated[
        bool, typer.Option("--content", help="Read every byte: measure every object, hash every layer.")
    ] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Repair what can be repaired without losing anything.")] = False,
    sources: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            metavar="SOURCE",
            help="With --repair: fetch what is missing from there, as for import; may be given again.",
            show_default=False,
        ),
    ] = None,
    lan: Annotated[
        bool, typer.Option("--lan", help="With --repair: --from all hosts of the local network that 'serve --announce', first.")
    ] = False,
    owner: Annotated[
        list[str] | None,
        typer.Option(
            "--owner",
            metavar="OWNER",
            autocompletion=complete.one_of("bootc", "deployment", "pin", "foreign"),
            help="With --repair: take out refs of that owner, too: bootc, deployment, foreign.",
            show_default=False,
        ),
    ] = None,
    *,
    how: Change,
) -> None:
    """Check refs, links, streams, images and digests; repair what loses nothing.

    Metadata alone without --content.  --repair finishes an interrupted change, makes links again whose object is there
    and whole, and takes refs at which collectors stop out into quarantine, from where 'cfs-tag restore' brings them
    back.  Notes alone are no failure.

    --from has what is missing behind refs fetched by digest: of each image only the layers that lack something.  SOURCE is
    a layout, an archive or docker://… as for import, or http://HOST:PORT, where another host's 'cfs-tag serve' is.  EROFS
    images are made again by cfsctl, where it is installed.

    \b
    Examples:
      cfs-tag fsck
      cfs-tag fsck --content --json
      cfs-tag fsck --repair --dry-run
      cfs-tag fsck --repair --from docker://quay.io/org/app --from http://192.0.2.7:5000
      cfs-tag fsck --repair --owner bootc --reason "bootc's collector stops"
    """
    named = owners(owner)
    options = [(how.dry_run, "--dry-run"), (bool(named), "--owner"), (how.reason is not None, "--reason")]
    options += [(bool(sources), "--from"), (lan, "--lan")]
    for given, option in options:
        if given and not repair:
            raise UsageError("command-line", command=ctx.command_path, text=f"{option} is for --repair")
    plan = mended = None
    with Progress("Checking", not how.as_json) as progress:
        if sources or lan:
            done, mended = _repair_from(ctx.obj, [*_found(lan), *(sources or ())], content, named, how, progress)
            report, plan, findings = done.report, done.plan, done.findings
        elif repair:
            from cfs_tags.fsck.repair import repair as mend

            with ctx.obj.open(write=True, dry_run=how.dry_run) as repo:
                done = mend(
                    repo,
                    content=content,
                    owners=named,
                    dry_run=how.dry_run,
                    note=note(how.reason),
                    progress=progress,
                    timeout=how.lock_timeout,
                )
            report, plan, findings = done.report, done.plan, done.findings
        else:
            from cfs_tags.fsck.check import fsck

            with ctx.obj.open() as repo:
                report = fsck(repo, content=content, progress=progress, timeout=how.lock_timeout)
            findings = report.findings
    if not how.dry_run:
        _record(ctx.obj, report, findings, content, how)
    if how.as_json:
        problems = mended.problems if mended is not None else ()
        output.document("fsck", _facts(report, findings, plan, content, how.dry_run, mended), problems)
    else:
        if mended is not None:
            _show_mended(mended, how.dry_run)
        _show(report, findings, plan, how.dry_run)
    if any(one.fails for one in findings):
        raise typer.Exit(_DAMAGED)


def _found(lan: bool) -> list[str]:
    if not lan:
        return []
    from cfs_tags.apps.lan import find

    return find("fsck --lan")


def _repair_from(
    session: Session,
    texts: Sequence[str],
    content: bool,
    owners: Sequence[str],
    how: Change,
    progress: Callable[[int, int], None] | None,
) -> tuple[Repaired, Mended]:
    from cfs_tags.apps.importing.choose import DEFAULT_LIMIT
    from cfs_tags.apps.importing.source import open_source
    from cfs_tags.apps.mending import repair_from
    from cfs_tags.cli.progress import stoppable
    from cfs_tags.cli.session import machine

    here = machine()
    with ExitStack() as stack:
        stack.enter_context(stoppable())
        repo = stack.enter_context(session.open(write=True, dry_run=how.dry_run))
        opened = []
        for text in texts:
            opened.append(open_source(text, here, DEFAULT_LIMIT, offers=False))
            stack.callback(opened[-1].close)
        return repair_from(
            repo,
            opened,
            here,
            content=content,
            owners=owners,
            dry_run=how.dry_run,
            note=note(how.reason),
            progress=progress,
            timeout=how.lock_timeout,
        )


def _show_mended(mended: Mended, dry_run: bool) -> None:
    would = "would fetch" if dry_run else "fetched"
    total = sum(size for _, size in mended.layers)
    if mended.images:
        images, layers = output.count(len(mended.images), "image"), output.count(len(mended.layers), "layer")
        output.lines([f"{'would mend' if dry_run else 'mended'}: {images}; {would} {layers}, {output.size(total)}"])
    for address, count in mended.fetched.items():
        output.lines([f"  from {printable(address)}: {output.size(count)}"])
    for one in mended.left:
        output.lines([f"not mended: {one.digest}: {printable(one.reason.message)}"])
    output.warn(mended.problems)


def _record(session: Session, report: Report, findings: Sequence[Finding], content: bool, how: Change) -> None:
    """Have the log say that there was a check; not in a repository that cfs-tag has not written to, or may not."""
    from cfs_tags.errors import CfsTagsError
    from cfs_tags.repo import layout
    from cfs_tags.repo.transaction import run

    facts = {f"{severity}s": count for severity, count in _counts(findings).items()}
    facts |= {"repaired": sum(one.repaired for one in findings), "objects": report.checked.objects}
    facts["content"] = report.checked.content if content else 0
    with suppress(CfsTagsError), session.open(write=True) as repo:
        if repo.is_directory(layout.STATE) and os.access(layout.STATE, os.W_OK, dir_fd=repo.fd):
            run.record(repo, "check", facts, note(how.reason), how.lock_timeout)


def _facts(
    report: Report,
    findings: Sequence[Finding],
    plan: RepairPlan | None,
    content: bool,
    dry_run: bool,
    mended: Mended | None = None,
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
                "advice": advice(one.advice),
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
    if mended is not None:
        facts["mended"] = {
            "images": list(mended.images),
            "left": [
                {"digest": one.digest, "code": one.reason.code, "message": printable(one.reason.message)} for one in mended.left
            ],
            "layers": [{"digest": digest, "size": size} for digest, size in mended.layers],
            "fetched": [{"from": address, "bytes": count} for address, count in mended.fetched.items()],
            "objects_written": mended.objects,
            "bytes_written": mended.object_bytes,
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
            output.lines([f"  {advice(one.advice)}"])
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
