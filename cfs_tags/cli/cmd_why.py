"""``cfs-tag why``."""

from __future__ import annotations

import re
import sys
from collections import Counter
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cfs_tags.cli import complete, output, view
from cfs_tags.cli.options import Json, JsonLines, LockTimeout, NoPager, excluding
from cfs_tags.errors import printable
from cfs_tags.repo import layout
from cfs_tags.tags import rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

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
    no_pager: NoPager = False,
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
    with ctx.obj.open() as repo, repo.locked("shared", lock_timeout):
        changes, unresolved = repo.deployments.planned_changes()
        answer = explain(repo, repo.deployments.meant(target), path, changes)
        answer = answer._replace(problems=(*unresolved, *answer.problems))
    if as_json:
        output.document("why", {**_facts(answer), "chains": [[_step(step) for step in chain] for chain in answer.chains]})
    elif as_json_lines:
        output.data([output.to_json([_step(step) for step in chain]) for chain in answer.chains])
    elif view.on_terminal():
        from cfs_tags.cli.pager import paged

        with paged(not no_pager):
            _show(answer)
    else:
        _print(answer)


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


def _print(answer: Why) -> None:
    """A line for each chain, with everything in full."""
    if answer.live:
        output.data(" -> ".join(printable(f"{step.kind} {step.name}") for step in chain) for chain in answer.chains)
        output.lines([f"live: {output.count(len(answer.chains), 'chain')}"])
    else:
        output.lines([_dead(answer)])
        if answer.last is not None:
            last = answer.last
            output.lines([f"last kept by {printable(last.ref)} -> {last.manifest}, until {last.action} at {last.time}"])
    _print_problems(answer)


def _dead(answer: Why) -> str:
    there = "" if answer.present else ", and it is not there"
    return f"dead: no ref leads to {printable(answer.target)}{there}"


def _print_problems(answer: Why) -> None:
    output.lines([f"not followed: {printable(problem)}" for problem in answer.problems])


# -- on a terminal -----------------------------------------------------------------------------------------------------

Tree = dict[str, "Tree"]
"""What keeps something: names, and what keeps each of them."""


def _show(answer: Why) -> None:
    """What was asked for as the root of one tree: what leads to it, and at the ends the names that keep it."""
    if not answer.live:
        output.lines([_dead(answer)])
        if answer.last is not None:
            last = answer.last
            by = f" by {last.by.removesuffix(' (cfs-tag)')}" if last.by else ""
            when = output.when(last.time) or last.time
            output.lines([f"kept last by {printable(_keeper(last.ref))}, until {last.action}{by}: {when}"])
    else:
        chains = _told(answer.chains)
        keepers = dict.fromkeys(_keeper(chain[0].name) for chain in chains)
        output.lines([f"{printable(answer.target)} is kept by {_counted(keepers)}"])
        output.emit("".join([f"{line}\n" for line in _drawn(_merged(chains), view.columns(sys.stdout) or 80)]))
    _print_problems(answer)


def _told(chains: Sequence[tuple[Step, ...]]) -> list[tuple[Step, ...]]:
    """Chains without those through the config part of a deployment ref or a pin, where its first part is among them."""
    refs = {chain[0].name for chain in chains}
    pairs = ((f"{layout.DEPLOYMENTS}/", f"{layout.CONFIGS}/"), (f"{layout.PINS}/", f"{layout.PIN_CONFIGS}/"))
    return [
        chain
        for chain in chains
        if not any(
            chain[0].name.startswith(config) and first + chain[0].name.removeprefix(config) in refs for first, config in pairs
        )
    ]


def _merged(chains: Sequence[tuple[Step, ...]]) -> Tree:
    """Chains from their ends: what is the same at their ends is there once.  The config is a part of the image."""
    top: Tree = {}
    for chain in chains:
        level = top
        for number, step in enumerate(reversed(chain)):
            if step.kind != "config" or not number:
                level = level.setdefault(_keeper(step.name) if step.kind == "ref" else _part(step), {})
    return top


def _part(step: Step) -> str:
    """A step that is no ref, as people call it."""
    word = {"manifest": "image", "erofs": "EROFS image"}.get(step.kind, step.kind)
    return f"{word} {_OCI.sub('', step.name)}"


def _keeper(path: str) -> str:
    """The name that people know for a ref."""
    deployment = rows.deployment_of_ref(path)
    if deployment is not None:
        return f"deployment {deployment}{', to which it is bound' if path.startswith(f'{layout.BOUND}/') else ''}"
    name, pin = rows.tag_of_ref(path), rows.pin_of_ref(path)
    if name is not None or pin is not None:
        place = path.split("/")[-2]
        until = f" ({output.ends(place.partition('.')[0])})" if layout.expiry_of(place) is not None else ""
        if path.startswith(f"{layout.TRASH}/"):
            return f"deleted tag {name}{until}"
        if pin is not None:
            return f"pin {pin}{until}"
        return f"tag {name}{until}"
    name = rows.index_of_ref(path)
    if name is not None:
        return f"index of tag {name}"
    if path.startswith(f"{layout.REFERRERS}/"):
        return f"signature or the like about image {path.split('/')[-2]}"
    return f"ref {path}"


def _counted(keepers: Iterable[str]) -> str:
    """How many of each kind there are."""
    kinds = Counter(next((kind for kind in _KINDS if label.startswith(kind)), "other ref") for label in keepers)
    counts = [output.count(number, kind) for kind, number in kinds.items()]
    return " and ".join([*([", ".join(counts[:-1])] if counts[1:] else []), counts[-1]])


_OCI = re.compile("oci-[a-z]+-")
_KINDS = ("deployment", "deleted tag", "tag", "pin")


def _drawn(top: Tree, width: int) -> Iterator[str]:
    """The lines of a tree.  A chain can be as long as there are streams, so nothing recurses."""
    branch, last, line, blank = _LINES if view.in_unicode(sys.stdout) else _PLAIN_LINES
    pending = [("", "", *item) for item in reversed(top.items())]
    while pending:
        begin, below, label, children = pending.pop()
        text = view.short(printable(label), sys.stdout)
        go_on = below + (line if children else "  ")
        first, *rest = wrap(text, max(width - len(begin), 10), break_long_words=False, break_on_hyphens=False) or [""]
        yield begin + first
        yield from (f"{go_on}{more}" for more in rest)
        for number, item in enumerate(reversed(children.items())):
            pending.append((below + (branch if number else last), below + (line if number else blank), *item))


_LINES = ("├── ", "└── ", "│   ", "    ")
_PLAIN_LINES = ("|-- ", "`-- ", "|   ", "    ")
