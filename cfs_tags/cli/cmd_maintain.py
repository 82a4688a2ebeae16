"""``cfs-tag maintain``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cfs_tags.cli import output, sysroots
from cfs_tags.cli.hints import advice
from cfs_tags.cli.options import Change, amount, duration
from cfs_tags.cli.progress import Progress, stoppable
from cfs_tags.cli.session import note
from cfs_tags.errors import printable

if TYPE_CHECKING:
    from cfs_tags.maintain import Maintained

_PATIENT = Change(lock_timeout=300.0)


def command(
    ctx: typer.Context,
    within: Annotated[
        str, typer.Option("--within", metavar="DURATION", help="Delete and check no more after that time.")
    ] = "30m",
    free_bytes: Annotated[
        str | None, typer.Option("--free-bytes", metavar="N", help="Collect no more when so much is freed: 500M, 2G, or bytes.")
    ] = None,
    check_every: Annotated[
        str,
        typer.Option("--check-every", metavar="DURATION", help="Read each object once in that time; 0: read none."),
    ] = "30d",
    no_sysroot: Annotated[
        bool, typer.Option("--no-sysroot", help="Look at no deployments: one without a ref loses its content.")
    ] = False,
    *,
    places: sysroots.Places,
    how: Change = _PATIENT,
) -> None:
    """Adopt, apply the policy, collect and check a part: what a timer does.

    Deployments without a ref get theirs; tags that the policy drops go to the trash; what no ref leads to is collected; and
    the part of the objects whose turn it is is read and compared with its digests.  A step that is refused is told, and the
    others are done.  A repository in which nothing has changed since a collection found nothing to do is not walked again.

    \b
    Examples:
      cfs-tag maintain
      cfs-tag maintain --within 10m --free-bytes 5G --reason timer
      cfs-tag maintain --check-every 0 --dry-run
    """
    from cfs_tags.maintain import Budget, maintain

    budget = Budget(
        float(duration(within, "--within")),
        None if free_bytes is None else amount(free_bytes, "--free-bytes"),
        0.0 if check_every == "0" else float(duration(check_every, "--check-every")),
    )
    with ctx.obj.open(places, write=True, dry_run=how.dry_run) as repo:
        with_sysroot = sysroots.has_sysroot(ctx, repo, ignored=no_sysroot, **places._asdict())

        with stoppable(), Progress("Collecting", not how.as_json) as progress:
            made = maintain(
                repo,
                repo.deployments.view if with_sysroot else None,
                budget,
                note=note(how.reason),
                timeout=how.lock_timeout,
                dry_run=how.dry_run,
                progress=progress,
            )
    if how.as_json:
        output.document("maintain", _facts(made, how.dry_run), [failure.error for failure in made.failures])
    else:
        _show(made, how.dry_run)
    if made.status:
        raise typer.Exit(made.status)


def _facts(made: Maintained, dry_run: bool) -> dict[str, Any]:
    swept = made.collected.swept if made.collected is not None else None
    part = made.checked
    return {
        "dry_run": dry_run,
        "adopted": made.adopted,
        "dropped": [output.named(tag.name) for tag in made.dropped],
        "unchanged": made.unchanged,
        "collected": None
        if swept is None
        else {
            "objects": swept.objects,
            "bytes": swept.allocated,
            "streams": swept.streams,
            "images": swept.images,
            "stopped": getattr(made.collected, "stopped", None),
        },
        "checked": {
            "objects": part.objects,
            "bytes": part.bytes,
            "whole": part.whole,
            "findings": [
                {
                    "code": one.code,
                    "severity": one.severity,
                    **{key.replace("name", "path"): value for key, value in output.named(one.path).items()},
                    "message": one.message,
                    "advice": advice(one.advice),
                }
                for one in part.findings
            ],
        },
        "failed": [failure.step for failure in made.failures],
    }


_STEPS = {"adopt": "adopted nothing", "policy": "applied no policy", "collect": "collected nothing", "check": "checked nothing"}


def _show(made: Maintained, dry_run: bool) -> None:
    would = "would be " if dry_run else ""
    output.lines([f"{would}adopted: @deployment/{name}" for name in made.adopted])
    output.lines([f"{would}deleted: {printable(tag.name)}" for tag in made.dropped])
    if made.unchanged:
        output.lines(["nothing to collect: nothing has changed since the last time"])
    if made.collected is not None:
        swept = made.collected.swept
        output.lines([f"{output.count(swept.objects, 'object')} {would}collected, {output.size(swept.allocated)} {would}freed"])
        stopped = getattr(made.collected, "stopped", None)
        if stopped is not None:
            output.lines([f"stopped early: {stopped}"])
    part = made.checked
    if part.objects or part.findings:
        short = "" if part.whole else ", then the time was over"
        output.lines([f"{output.count(part.objects, 'object')} checked, {output.size(part.bytes)}{short}"])
    for one in part.findings:
        output.lines(
            [f"{one.severity}: {one.code}: {printable(one.path)}: {printable(one.message)}", f"  {advice(one.advice)}"]
        )
    for failure in made.failures:
        output.lines([_STEPS[failure.step]])
    output.warn(failure.error for failure in made.failures)
