"""Writes the man pages, made from the same texts as --help: cfs-tag.1 and cfs-tag-COMMAND.1.

usage: python scripts/man_pages.py DIRECTORY
"""

from __future__ import annotations

import os
import re
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import typer

from cfs_tags import __version__
from cfs_tags.cli.main import COMMANDS, app

PROGRAM = "cfs-tag"
WIDTH = 1000
"""A record of help that is wider than any is one line."""


def escaped(text: str) -> str:
    """Text for troff: a hyphen is one that can be copied, and no line is a request."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga").replace("^", "\\(ha")
    text = text.replace("~", "\\(ti").replace("…", "...")
    return re.sub(r"^([.])", r"\\&\1", text, flags=re.MULTILINE)


def filled(text: str) -> list[str]:
    """Words as lines that are not too long for those who read the source."""
    return [escaped(line) for line in textwrap.wrap(" ".join(text.split()), 66, break_long_words=False, break_on_hyphens=False)]


def paragraphs(text: str) -> list[str]:
    """The body of a help text: paragraphs are filled, blocks behind ``\\b`` stay as they are, examples have a heading."""
    lines: list[str] = []
    for part in re.split(r"\n\s*\n", text.strip()):
        if lines and not part.startswith("\b\nExamples:"):
            lines.append(".PP")
        if not part.startswith("\b"):
            lines += filled(part)
            continue
        body = part.splitlines()[1:]
        if body[0] == "Examples:":
            lines.append(".SH EXAMPLES")
            body = body[1:]
        lines += [".nf", *map(escaped, body), ".fi"]
    return lines


def page(name: str, short: str, command: Any, context: Any) -> str:
    """One page."""
    day = time.strftime("%Y-%m-%d", time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))))
    lines = [f'.TH {name.upper()} 1 {day} "{PROGRAM} {__version__}" "User Commands"', ".SH NAME"]
    first, *rest = filled(f"{name} @ {short.rstrip('.')}")
    lines += [first.replace(" @ ", " \\- ", 1), *rest, ".SH SYNOPSIS"]
    pieces = [*name.replace(f"{PROGRAM}-", f"{PROGRAM} ").split(), *command.collect_usage_pieces(context)]
    lines += [f".B {escaped(' '.join(pieces[:2] if name != PROGRAM else pieces[:1]))}"]
    lines += [escaped(" ".join(pieces[2 if name != PROGRAM else 1 :])), ".SH DESCRIPTION"]
    lines += paragraphs(command.help or "")
    records = [param.get_help_record(context) for param in command.params]
    lines.append(".SH OPTIONS")
    for option, text in [*filter(None, records)]:
        lines += [".TP", f".B {escaped(option)}", *filled(text)]
    if name == PROGRAM:
        lines.append(".SH COMMANDS")
        for one, line in COMMANDS.items():
            lines += [".TP", f".BR {escaped(f'{PROGRAM}-{one}')} (1)", *filled(line.help)]
    lines += [".SH EXIT STATUS", *filled((command.epilog or "").removeprefix("Exit status: ")), ".SH SEE ALSO"]
    lines.append(f".BR {escaped(PROGRAM)} (1)" if name != PROGRAM else ".BR bootc (8)")
    return "\n".join(lines) + "\n"


def pages() -> dict[str, str]:
    """All pages by the name of their file."""
    group: Any = typer.main.get_command(app)
    with group.make_context(PROGRAM, [], resilient_parsing=True, max_content_width=WIDTH, terminal_width=WIDTH) as context:
        made = {f"{PROGRAM}.1": page(PROGRAM, "named refs for composefs repositories", group, context)}
        for name, line in COMMANDS.items():
            command = group.get_command(context, name)
            inner = type(context)(command, info_name=name, parent=context, resilient_parsing=True)
            made[f"{PROGRAM}-{name}.1"] = page(f"{PROGRAM}-{name}", line.help, command, inner)
    return made


def main(directory: str) -> None:
    """Write them."""
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (target / name).write_text(text)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
