"""``cfs-tag gc``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cfs_tags.cli import output, sysroots, view
from cfs_tags.cli.options import Change, amount, duration
from cfs_tags.cli.progress import Progress, stoppable
from cfs_tags.cli.session import note
from cfs_tags.errors import BrokenRoots, CfsTagsError, DamagedError, RefusedError, TargetNotFound, printable
from cfs_tags.messages import SHOWN_PROBLEMS
from cfs_tags.repo import layout

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cfs_tags import WriteRepository
    from cfs_tags.gc import GcPlan, GcResult
    from cfs_tags.repo.store import ReadRepo

_PATIENT = Change(lock_timeout=300.0)


def command(
    ctx: typer.Context,
    root: Annotated[
        list[str] | None, typer.Option("--root", metavar="NAME", help="Keep this name in streams/ or images/, too.")
    ] = None,
    free_bytes: Annotated[
        str | None, typer.Option("--free-bytes", metavar="N", help="Stop when so much is freed: 500M, 2G, or bytes.")
    ] = None,
    grace: Annotated[str, typer.Option("--grace", metavar="DURATION", help="Keep what is younger: 2h, 1d; 0: nothing.")] = "0",
    prune_referrers: Annotated[
        bool, typer.Option("--prune-referrers", help="Remove signatures and the like of images that are gone.")
    ] = False,
    keep_broken: Annotated[
        bool, typer.Option("--keep-broken", help="Go on where something is broken; what it still leads to stays.")
    ] = False,
    image_only: Annotated[
        bool, typer.Option("--image-only", help="Keep a deployment that cannot be resolved by its EROFS image alone.")
    ] = False,
    no_sysroot: Annotated[
        bool, typer.Option("--no-sysroot", help="Look at no deployments: one without a ref loses its content.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Believe a clock that was set back or far forward.")] = False,
    *,
    places: sysroots.Places,
    how: Change = _PATIENT,
) -> None:
    """Collect what no ref leads to.

    With a sysroot, deployments without a ref are adopted and refs of those that are gone are retired first.  Leases and
    trash whose time is over go.  Others work on while it runs: it holds the repository exclusively for a third of a second
    at a time.  Where a ref leads to something that cannot be read, nothing is deleted.

    \b
    Examples:
      cfs-tag gc --dry-run
      cfs-tag gc --free-bytes 2G
      cfs-tag gc --grace 1d --prune-referrers
    """
    from cfs_tags import gc
    from cfs_tags.policy import files

    options = gc.GcOptions(
        roots=tuple(root or ()),
        free_bytes=None if free_bytes is None else amount(free_bytes, "--free-bytes"),
        grace=0.0 if grace == "0" else float(duration(grace, "--grace")),
        prune_referrers=prune_referrers,
        keep_broken=keep_broken,
        image_only=image_only,
        no_sysroot=no_sysroot,
        trust_clock=force,
    )
    with ctx.obj.open(places, write=True, dry_run=how.dry_run) as repo:
        options = options._replace(keep_log=files.kept_log(repo))
        with_sysroot = sysroots.has_sysroot(ctx, repo, ignored=no_sysroot, image_only=image_only, **places._asdict())
        warnings: list[CfsTagsError] = [
            TargetNotFound(kind="stream or image", name=name) for name in options.roots if not _is_there(repo, name)
        ]
        if not with_sysroot and not no_sysroot and repo.is_bootc:
            warnings.append(RefusedError("sysroot-unseen", path=repo.path))

        try:
            if how.dry_run:
                with repo.locked("shared", how.lock_timeout):
                    made: GcPlan | GcResult = gc.plan(repo, options, repo.deployments.view() if with_sysroot else None)
            else:
                with stoppable(), Progress("Collecting", not how.as_json) as progress:
                    made = gc.collect(
                        repo,
                        options,
                        repo.deployments.view if with_sysroot else None,
                        note=note(how.reason),
                        timeout=how.lock_timeout,
                        progress=progress,
                    )
            # who wonders why so little was freed
            keepers = []
            if view.on_terminal() and not how.as_json:
                keepers = list(_keepers(repo, with_sysroot, nothing=not made.swept.objects))
        except BrokenRoots as error:
            if not how.as_json and len(error.problems) > SHOWN_PROBLEMS:  # the message has the first ones
                _list_problems(error.problems)
            raise
    warnings += [made.doubt] if made.doubt is not None else []
    warnings += [DamagedError("content-missing", what=one.message, refs=one.refs) for one in made.lacking]
    if how.as_json:
        output.document("gc", _facts(made, how.dry_run), warnings)
    else:
        output.warn(warnings)
        _show(made, how.dry_run)
        output.lines(keepers)


def _keepers(repo: WriteRepository, with_sysroot: bool, *, nothing: bool) -> Iterator[str]:
    """What else keeps content: the trash, and where nothing was freed pins and the refs of deployments that are gone."""
    from cfs_tags.cli.hints import typed
    from cfs_tags.host.rows import list_deployments
    from cfs_tags.tags.rows import trash

    def said(many: int, noun: str, where: str, *command: str) -> str:
        return f"{output.count(many, noun)}{where} still {'keeps' if many == 1 else 'keep'} content: {typed(*command)}"

    deleted = len(trash(repo))
    if deleted:
        yield said(deleted, "deleted tag", " in the trash", "trash")
    pinned = len(repo.pins.list()) if nothing else 0
    if pinned:
        yield said(pinned, "pin", "", "pins")
    if nothing and with_sysroot:
        gone = sum(row.state == "gone" for row in list_deployments(repo, repo.deployments.view()))
        if gone:
            yield said(gone, "ref", " of deployments that are gone", "retire", "--dry-run")


def _is_there(repo: ReadRepo, name: str) -> bool:
    return any(name in (repo.names(tree) or ()) for tree in (layout.STREAMS, layout.IMAGES))


def _facts(made: GcPlan | GcResult, dry_run: bool) -> dict[str, Any]:
    swept = made.swept
    return {
        "dry_run": dry_run,
        "objects": swept.objects,
        "bytes": swept.allocated,
        "content_bytes": swept.size,
        "streams": swept.streams,
        "images": swept.images,
        "live_objects": made.live,
        "refs": [
            {"ref": change.path, "old": change.old, "new": change.new, "action": change.action} for change in made.changes
        ],
        "adopted": made.adopted,
        "retired": [row.id for row in made.retired.rows if row.done == "retired"] if made.retired is not None else [],
        "problems": [{"message": problem.message, "refs": problem.refs} for problem in made.problems],
        "slices": getattr(made, "slices", None),
        "stopped": getattr(made, "stopped", None),
        "meta_json": made.meta,
        "log_entries": made.forgotten,
    }


def _show(made: GcPlan | GcResult, dry_run: bool) -> None:
    would = "would be " if dry_run else ""
    for name in made.adopted:
        output.lines([f"{would}adopted: @deployment/{name}"])
    for row in made.retired.rows if made.retired is not None else ():
        if row.done == "retired":
            output.lines([f"{would}retired: @deployment/{row.id}"])
    for change in made.changes:
        if change.action in ("expire", "prune"):
            output.lines([f"{would}removed: {printable(change.path)} ({change.action}d)"])
    _list_problems((problem.message, problem.refs) for problem in made.problems)
    swept = made.swept
    output.lines(
        [
            f"{output.count(swept.objects, 'object')} {would}deleted, {output.size(swept.allocated)} {would}freed; "
            f"{output.count(swept.streams, 'stream')} and {output.count(swept.images, 'image')} {would}forgotten; "
            f"{output.count(made.live, 'object')} {'stays' if made.live == 1 else 'stay'}"
        ]
    )
    if made.forgotten:
        output.lines([f"{made.forgotten} {'entry' if made.forgotten == 1 else 'entries'} of the log {would}forgotten"])
    if made.meta:
        output.lines([f"meta.json {would}written: there was none"])
    stopped = getattr(made, "stopped", None)
    if stopped is not None:
        output.lines([f"stopped early: {stopped}"])


def _list_problems(problems: Iterable[tuple[str, tuple[str, ...]]]) -> None:
    output.lines([f"broken: {printable(what)} (needed by {printable(', '.join(refs))})" for what, refs in problems])
