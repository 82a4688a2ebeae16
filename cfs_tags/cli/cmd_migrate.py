"""``cfs-tag migrate``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cfs_tags.cli import output, sysroots
from cfs_tags.cli.options import DryRun, Json, LockTimeout, Reason, excluding, seconds
from cfs_tags.cli.session import note
from cfs_tags.errors import CommandLineError, InvalidArgument, printable

if TYPE_CHECKING:
    from cfs_tags.migrate import MigratePlan, UndoPlan
    from cfs_tags.sysroot import SysrootView
    from cfs_tags.values import Algorithm, DeploymentId, Digest


def command(
    ctx: typer.Context,
    undo: Annotated[bool, typer.Option("--undo", help="Take back what the last migration wrote.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="With --undo: leave a tag migrated/ID where content would become garbage.")
    ] = False,
    write_origin: Annotated[
        bool, typer.Option("--write-origin", help="Add the missing manifest_digest to origin files, so that bootc finds it.")
    ] = False,
    manifests: Annotated[
        list[str] | None,
        typer.Option("--manifest", metavar="ID=DIGEST", help="The manifest of a deployment that is not known or ambiguous."),
    ] = None,
    boot: sysroots.Boot = None,
    esp: sysroots.Esp = None,
    run: sysroots.Run = None,
    booted: sysroots.Booted = None,
    dry_run: DryRun = False,
    reason: Reason = None,
    lock_timeout: LockTimeout = 30.0,
    as_json: Json = False,
) -> None:
    """Give every deployment of a host its ref, with a proof that nothing is lost.

    Finds each deployment's manifest, shows what bootc keeps today and what the refs keep, and refuses to lose
    anything.  A deployment whose manifest is not known gets the image part alone and stays bootable.  Running it
    again changes nothing.

    \b
    Examples:
      cfs-tag migrate --dry-run
      cfs-tag migrate --write-origin --reason "refs decide from now on"
      cfs-tag migrate --manifest 6c19d984=sha256:02aeae61ed5ccbe50651a2efc5ef4f5c5054cf9af1c471f8b176d25602a1493a
      cfs-tag migrate --undo
    """
    from cfs_tags import migrate as migrating

    excluding(ctx, undo=undo, write_origin=write_origin)
    excluding(ctx, undo=undo, manifest=manifests)
    if force and not undo:
        raise CommandLineError(command=ctx.command_path, text="--force is for --undo")
    timeout = seconds(lock_timeout)
    session = ctx.obj
    if dry_run:
        with session.open(write=True) as repo:
            view = sysroots.view_of(session, repo, boot, esp, run, booted)
            if undo:
                _show_undo(migrating.plan_undo(repo, view, force=force), as_json, dry_run)
            else:
                given = _given(manifests, view, repo.algorithm)
                made = migrating.plan(repo, view, manifests=given, write_origin=write_origin)
                _show(made, view, as_json, dry_run)
        return
    with session.open(write=True) as repo:
        view = sysroots.view_of(session, repo, boot, esp, run, booted)
        if undo:
            _show_undo(migrating.undo(repo, view, force=force, note=note(reason), timeout=timeout), as_json, dry_run)
        else:
            given = _given(manifests, view, repo.algorithm)
            made = migrating.migrate(repo, view, manifests=given, write_origin=write_origin, note=note(reason), timeout=timeout)
            _show(made, view, as_json, dry_run)


def _given(words: list[str] | None, view: SysrootView, algorithm: Algorithm) -> dict[DeploymentId, Digest]:
    from cfs_tags.errors import AmbiguousName, TargetNotFound
    from cfs_tags.values import Digest

    given = {}
    for word in words or ():
        prefix, separator, digest = word.partition("=")
        if not separator or not prefix or len(prefix) > algorithm.hex_length:
            raise InvalidArgument(argument="--manifest", value=word, reason="is not ID=DIGEST")
        found = [name for name in view.seen if name.startswith(prefix)]
        if not found:
            raise TargetNotFound(kind="deployment", name=prefix)
        if len(found) > 1:
            raise AmbiguousName(name=prefix, candidates=tuple(found))
        given[found[0]] = Digest.parse(digest.removeprefix("@"))
    return given


_DONE = {
    "complete": "unchanged",
    "migrate": "migrated",
    "image-only": "image only",
    "nothing": "unresolved",
    "damaged": "damaged",
    "not-here": "not here",
}


def _show(made: MigratePlan, view: SysrootView, as_json: bool, dry_run: bool) -> None:
    if as_json:
        output.document("migrate", _facts(made, view, dry_run))
    else:
        rows = [
            (row.id, _DONE[row.done], row.manifest, row.source, row.proof.before, row.proof.after, row.proof.lost)
            for row in made.rows
        ]
        output.table(("DEPLOYMENT", "RESULT", "MANIFEST", "SOURCE", "KEPT BEFORE", "KEPT AFTER", "LOST"), rows)
        for row in made.rows:
            if row.reason and row.done != "complete":
                output.lines([f"{row.id[:12]}: {printable(row.reason)}"])
        verb = "would be " if dry_run else ""
        refs, origins = output.count(len(made.changes), "ref"), output.count(len(made.origins), "origin file")
        output.lines([f"{refs} {verb}written, {origins} {verb}completed"])
        sysroots.show_findings(view)
    if made.unresolved:
        raise typer.Exit(4)


def _facts(made: MigratePlan, view: SysrootView, dry_run: bool) -> dict[str, Any]:
    return {
        "dry_run": dry_run,
        "deployments": [
            {
                "id": row.id,
                "result": row.done,
                "manifest": row.manifest,
                "source": row.source,
                "reason": row.reason,
                "candidates": row.candidates,
                "kept_before": row.proof.before,
                "kept_after": row.proof.after,
                "lost": row.proof.lost,
            }
            for row in made.rows
        ],
        "refs": [{"ref": change.path, "old": change.old, "new": change.new} for change in made.changes],
        "origins": [origin.path for origin in made.origins],
        "places": sysroots.place_facts(view),
    }


def _show_undo(made: UndoPlan, as_json: bool, dry_run: bool) -> None:
    if as_json:
        rows = [{"path": row.path, "result": row.done, "reason": row.reason} for row in made.rows]
        output.document("migrate", {"dry_run": dry_run, "undone": rows})
    else:
        output.table(("RESULT", "PATH", "REASON"), [(row.done, row.path, row.reason) for row in made.rows])
