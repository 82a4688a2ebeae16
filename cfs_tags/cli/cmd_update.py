"""``cfs-tag update``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cfs_tags.cli.options import Change, Owners, excluding, owners
from cfs_tags.errors import UsageError
from cfs_tags.tags.instructions import Instruction

if TYPE_CHECKING:
    from cfs_tags import Repository

_MEMBERS = frozenset({"verb", "name", "name_bytes", "target", "expected", "home"})
_VERBS = ("create", "move", "delete", "verify")
_HOMES = ("shared", "private", None)


def command(
    ctx: typer.Context,
    stdin: Annotated[bool, typer.Option("--stdin", help="Read lines of text from standard input.")] = False,
    json_lines: Annotated[
        bool, typer.Option("--json-lines", help="Read JSON objects from standard input, one a line.")
    ] = False,
    owner: Owners = None,
    *,
    how: Change,
) -> None:
    """Make, move and delete many tags: all or nothing.

    Each line is one of the following.  EXPECTED is a digest or the word absent; where the tag has another value,
    nothing at all is changed.  Words with blanks in them are quoted as for a shell; blank lines and lines that start
    with # are left out.

    \b
      create NAME TARGET
      move NAME TARGET [EXPECTED]
      delete NAME [EXPECTED]
      verify NAME EXPECTED

    With --json-lines each line is an object with the members verb, name, target, expected and home (shared or
    private).

    \b
    Examples:
      printf 'move app:stable app:2\\ndelete app:1\\n' | cfs-tag update --stdin
      cfs-tag list --jsonl | jq -c '{verb: "verify", name, expected: .digest}' | cfs-tag update --json-lines
    """
    excluding(ctx, stdin=stdin, json_lines=json_lines)
    if not stdin and not json_lines:
        raise UsageError(
            "command-line", command=ctx.command_path, text="where to read from is missing: --stdin or --json-lines"
        )
    named = owners(owner)

    from cfs_tags.cli.changes import change
    from cfs_tags.tags import edit
    from cfs_tags.tags.instructions import parse_instructions

    # bytes, so that a name that is not UTF-8 means the same here as on a command line
    lines = os.fsdecode(sys.stdin.buffer.read()).split("\n")
    instructions = list(_from_json(lines) if json_lines else parse_instructions(lines))

    def meant(repo: Repository, one: Instruction) -> Instruction:
        target = one.target and repo.deployments.meant(one.target)
        return one if target == one.target else one._replace(target=target)

    change(
        ctx,
        lambda repo: edit.plan(repo, [meant(repo, one) for one in instructions], owners=named),
        edit.asked_instructions(instructions),
        how,
    )


def _from_json(lines: Iterable[str]) -> Iterator[Instruction]:
    import json

    from cfs_tags.tags.instructions import Instruction

    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError):
            raise UsageError("invalid-instruction", line=number, text=line, reason="no JSON") from None
        wrong = _wrong(fields)
        if wrong is not None:
            raise UsageError("invalid-instruction", line=number, text=line, reason=wrong)
        name = _decoded(fields.get("name_bytes"), number, line) if "name_bytes" in fields else fields["name"]
        yield Instruction(fields["verb"], name, fields.get("target"), fields.get("expected"), fields.get("home"), line=number)


def _wrong(fields: Any) -> str | None:
    """Why this is no instruction, or None."""
    if not isinstance(fields, dict):
        return "an object is wanted"
    unknown = sorted(set(fields) - _MEMBERS)
    if unknown:
        return f"no member {unknown[0]!r} is known"
    if any(value is not None and not isinstance(value, str) for value in fields.values()):
        return "every member is text"
    verb = fields.get("verb")
    if verb not in _VERBS:
        return f"verb is one of {', '.join(_VERBS)}"
    if fields.get("home") not in _HOMES:
        return "home is shared or private"
    if fields.get("name") is None and fields.get("name_bytes") is None:
        return "the name is missing"
    if (fields.get("target") is not None) != (verb in ("create", "move")):
        return f"{verb} takes {'a' if verb in ('create', 'move') else 'no'} target"
    if verb == "verify" and fields.get("expected") is None:
        return "verify takes an expected value"
    return None


def _decoded(text: str | None, number: int, line: str) -> str:
    from binascii import Error, a2b_base64

    try:
        return a2b_base64((text or "").encode("ascii"), strict_mode=True).decode("utf-8", "surrogateescape")
    except (Error, UnicodeEncodeError):
        raise UsageError("invalid-instruction", line=number, text=line, reason="name_bytes is no base64") from None
