"""``cfs-tag why``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cfs_tags.cli import complete, output, sysroots
from cfs_tags.cli.options import Json, JsonLines, LockTimeout, excluding, seconds
from cfs_tags.errors import printable

if TYPE_CHECKING:
    from cfs_tags.why import Step, Why


def command(
    ctx: typer.Context,
    target: Annotated[
        str,
        typer.Argument(
            metavar="OBJECT|DIGEST|TAG",
            autocompletion=complete.names,
            show_default=False,
            help="An object id or its first digits, a name in streams/, sha256:DIGITS, a tag.",
        ),
    ],
    path: Annotated[
        str | None, typer.Option("--path", metavar="PATH", help="The content of this file in the image that is named.")
    ] = None,
    lock_timeout: LockTimeout = 30.0,
    as_json: Json = False,
    as_json_lines: JsonLines = False,
) -> None:
    """Say why something is kept: every chain from a ref to it.

    Of something dead it says so, and where the log can tell, which ref kept it last.  That is no error.  Refs count as a
    collection finds them: without what has run out, and with a sysroot after deployments were adopted and retired.

    \b
    Examples:
      cfs-tag why 6c19d984f340
      cfs-tag why sha256:02aeae61ed5ccbe50651a2efc5ef4f5c5054cf9af1c471f8b176d25602a1493a
      cfs-tag why quay.io/org/app:1 --path /usr/bin/app --json
    """
    from cfs_tags.why import explain

    excluding(ctx, json=as_json, jsonl=as_json_lines)
    with ctx.obj.open() as repo, repo.locked("shared", seconds(lock_timeout)):
        changes, unresolved = sysroots.planned_changes(ctx.obj, repo)
        answer = explain(repo, target, path, changes)
        answer = answer._replace(problems=(*unresolved, *answer.problems))
    if as_json:
        output.document("why", {**_facts(answer), "chains": [[_step(step) for step in chain] for chain in answer.chains]})
    elif as_json_lines:
        output.lines([output.to_json([_step(step) for step in chain]) for chain in answer.chains])
    else:
        _show(answer)


def _facts(answer: Why) -> dict[str, Any]:
    last = answer.last
    return {
        "target": answer.target,
        "objects": answer.objects,
        "present": answer.present,
        "live": answer.live,
        "last_kept_by": None
        if last is None
        else {"ref": last.ref, "manifest": last.manifest, "time": last.time, "action": last.action, "by": last.by},
        "problems": answer.problems,
    }


def _step(step: Step) -> dict[str, str | None]:
    return {"kind": step.kind, "name": step.name, "object": step.object}


def _show(answer: Why) -> None:
    if answer.live:
        steps = [[f"{step.kind} {printable(step.name)}" for step in chain] for chain in answer.chains]
        if output.on_terminal():
            from cfs_tags.cli.screen import shortened

            for chain in steps:
                output.lines([f"{'  ' * depth}{shortened(step)}" for depth, step in enumerate(chain)])
        else:
            output.lines([" -> ".join(chain) for chain in steps])
        output.lines([f"live: {output.count(len(answer.chains), 'chain')}"])
    else:
        there = "" if answer.present else ", and not in the repository"
        output.lines([f"dead: no ref leads to {printable(answer.target)}{there}"])
        if answer.last is not None:
            last = answer.last
            output.lines([f"last kept by {printable(last.ref)} -> {last.manifest}, until {last.action} at {last.time}"])
    for problem in answer.problems:
        output.lines([f"not followed: {printable(problem)}"])
