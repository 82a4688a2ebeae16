"""``cfs-tag migrate``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cfs_tags.cli import output, sysroots
from cfs_tags.cli.changes import said
from cfs_tags.cli.hints import advice
from cfs_tags.cli.options import Change, excluding
from cfs_tags.cli.progress import Progress
from cfs_tags.cli.session import note
from cfs_tags.cli.view import on_terminal
from cfs_tags.errors import UsageError, printable

if TYPE_CHECKING:
    from cfs_tags.host.sysroot import SysrootView
    from cfs_tags.migrate import MigratePlan, Proof, UndoPlan
    from cfs_tags.values import Algorithm


_ID_IN_PATH = re.compile(r"[0-9a-f]{64}(?:[0-9a-f]{64})?", re.ASCII)


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
    *,
    places: sysroots.Places,
    how: Change,
) -> None:
    """Give every deployment of a host its ref, with a proof that nothing is lost.

    Finds each deployment's manifest, counts what bootc keeps today and what the refs keep (objects, streams and images), and
    refuses to lose anything.  A deployment whose manifest is not known gets the image part alone and stays bootable.
    Running it again changes nothing.

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
        raise UsageError("command-line", command=ctx.command_path, text="--force is for --undo")
    session = ctx.obj
    with session.open(places, write=True, dry_run=how.dry_run) as repo:
        view = repo.deployments.view()
        if undo:
            if how.dry_run:
                undone = migrating.plan_undo(repo, view, force=force)
            else:
                undone = migrating.undo(repo, view, force=force, note=note(how.reason), timeout=how.lock_timeout)
            _show_undo(undone, how)
            return
        given = migrating.manifests_by(view, _given(manifests, repo.algorithm))
        with Progress("Migrating", not how.as_json, of="deployment") as progress:  # gone before anything is printed
            if how.dry_run:
                made = migrating.plan(repo, view, manifests=given, write_origin=write_origin, progress=progress)
            else:
                made = migrating.migrate(
                    repo,
                    view,
                    manifests=given,
                    write_origin=write_origin,
                    note=note(how.reason),
                    timeout=how.lock_timeout,
                    progress=progress,
                )
        _show(made, view, how)


def _given(words: list[str] | None, algorithm: Algorithm) -> dict[str, str]:
    given = {}
    for word in words or ():
        start, separator, digest = word.partition("=")
        if not separator or not start or len(start) > algorithm.hex_length:
            raise UsageError("invalid-argument", argument="--manifest", value=word, reason="is not ID=DIGEST")
        given[start] = digest
    return given


_DONE = {
    "complete": ("unchanged", "unchanged"),
    "migrate": ("migrated", "would be migrated"),
    "image-only": ("image only", "would be image only"),
    "nothing": ("unresolved", "unresolved"),
    "damaged": ("damaged", "damaged"),
    "not-here": ("not here", "not here"),
}
"""What a row comes to: done, and in a dry run."""
_PROOF = ("KEPT BEFORE", "KEPT AFTER", "LOST")


def _show(made: MigratePlan, view: SysrootView, how: Change) -> None:
    if how.as_json:
        output.document("migrate", _facts(made, view, how.dry_run))
    else:
        proof = () if on_terminal() else _PROOF  # a sentence says it
        rows = [(row.id, _DONE[row.done][how.dry_run], row.manifest, row.source, *row.proof[: len(proof)]) for row in made.rows]
        output.table(("DEPLOYMENT", "RESULT", "MANIFEST", "SOURCE", *proof), rows)
        for row in made.rows:
            if row.reason and row.done != "complete":
                output.lines([f"{row.id[:12]}: {printable(advice(row.reason))}"])
        verb = "would be " if how.dry_run else ""
        refs, origins = output.count(len(made.changes), "ref"), output.count(len(made.origins), "origin file")
        output.lines([f"{refs} {verb}written, {origins} {verb}completed", _proven(made.proof, how.dry_run)])
        sysroots.show_findings(view)
    if made.unresolved:
        raise typer.Exit(4)


def _proven(proof: Proof, dry_run: bool) -> str:
    """The proof for all deployments together."""
    things, lost = output.count(proof.before, "thing"), proof.lost or "none"
    if dry_run:
        return f"{things} {_be(proof.before)} kept today, {proof.after} would be kept, {lost} would be lost"
    were = "was" if proof.before == 1 else "were"
    return f"{things} {were} kept before, {proof.after} {_be(proof.after)} kept now, {lost} lost"


def _be(number: int) -> str:
    return "is" if number == 1 else "are"


def _facts(made: MigratePlan, view: SysrootView, dry_run: bool) -> dict[str, Any]:
    return {
        "dry_run": dry_run,
        "deployments": [
            {
                "id": row.id,
                "result": row.done,
                "manifest": row.manifest,
                "source": row.source,
                "reason": advice(row.reason),
                "candidates": row.candidates,
                "kept_before": row.proof.before,
                "kept_after": row.proof.after,
                "lost": row.proof.lost,
            }
            for row in made.rows
        ],
        "kept_before": made.proof.before,
        "kept_after": made.proof.after,
        "lost": made.proof.lost,
        "refs": [{"ref": change.path, "old": change.old, "new": change.new} for change in made.changes],
        "origins": [origin.path for origin in made.origins],
        "places": sysroots.place_facts(view),
    }


def _show_undo(made: UndoPlan, how: Change) -> None:
    if how.as_json:
        rows = [{"path": row.path, "result": row.done, "reason": row.reason} for row in made.rows]
        output.document("migrate", {"dry_run": how.dry_run, "undone": rows})
    elif on_terminal():
        _sum_undo(made, how.dry_run)
    else:
        output.table(("RESULT", "PATH", "REASON"), [(said(row.done, how.dry_run), row.path, row.reason) for row in made.rows])


def _sum_undo(made: UndoPlan, dry_run: bool) -> None:
    """A line for each deployment, or for what is of none, and a total."""
    of: dict[str, dict[tuple[str, str], int]] = {}
    for row in made.rows:
        what = _ID_IN_PATH.search(row.path)
        results = of.setdefault(what[0] if what is not None else row.path, {})
        # what is gone was not kept
        key = ("already gone", "") if row.reason == "already gone" else (said(row.done, dry_run), row.reason)
        results[key] = results.get(key, 0) + 1
    rows = []
    for name, results in of.items():
        done = ", ".join(f"{number} {word}" for (word, _), number in results.items())
        why = "; ".join(dict.fromkeys(reason for _, reason in results if reason))
        rows.append((name, done, why))
    output.table(("DEPLOYMENT", "RESULT", "REASON"), rows, "nothing is left to take back")
    refs, origins = output.count(len(made.changes), "ref"), output.count(len(made.origins), "origin file")
    output.lines([f"{refs} and {origins} {'would be ' if dry_run else ''}taken back"])
