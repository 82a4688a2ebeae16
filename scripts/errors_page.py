"""Prints docs/errors.md, made from the catalogue of errors and the advice of the command line.

usage: python scripts/errors_page.py > docs/errors.md
"""

from __future__ import annotations

import re

from cfs_tags import errors
from cfs_tags.catalogue import CATALOGUE, Entry
from cfs_tags.cli.hints import ADVICE
from cfs_tags.messages import Text

HEAD = """\
# Errors

Made from `cfs_tags/catalogue.py` by `scripts/errors_page.py`; do not edit it here.

Every error has a code, which never changes its meaning, and an exit status. On the command line it is one line on standard
error, with a line `hint:` where there is something to do; with `--json` it is an object `error` with `code`, `message`,
`facts` and `hint`. In Python it is a type of `cfs_tags.errors`, with the facts as attributes.
"""

TITLES = {
    2: "What was asked makes no sense",
    3: "What was named is not there",
    4: "Refused",
    5: "A lock is held by another process",
    6: "The repository is damaged",
    7: "Made by or for a newer program",
    1: "Failed",
    130: "Stopped",
}


def status(entry: Entry) -> int:
    """The exit status of a code."""
    return int(getattr(errors, entry.family).status)


def shown(text: Text) -> str:
    """A template, or the docstring of a function, as a sentence: facts in braces become italics."""
    plain = text if isinstance(text, str) else text.__doc__ or ""
    plain = re.sub(r"\{(\w+)(:[^}]*)?\}", r"*\1*", plain.replace("*", "\\*"))
    return plain[:1].upper() + plain[1:] + "."


def section(code: str, entry: Entry) -> str:
    """What stands under a code."""
    lines = [f"### `{code}`", "", entry.cause, ""]
    lines += [f"- Way out: {shown(entry.way_out)}"]
    advice = ADVICE.get(code)
    if advice is not None:
        lines += [f"- On the command line: {shown(advice)}"]
    facts = ", ".join(f"`{name}`" for name in entry.names) or "none"
    lines += [f"- In Python: `{entry.family}`; facts: {facts}."]
    return "\n".join(lines)


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for number, title in TITLES.items():
        parts.append(f"## {title} (exit status {number})\n")
        parts += [section(code, entry) + "\n" for code, entry in CATALOGUE.items() if status(entry) == number]
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
