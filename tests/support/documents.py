"""The JSON documents of the golden files: what every command printed over every recorded host."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

RECORDED = Path(__file__).parent.parent / "golden/recorded"
PLACEHOLDERS = {
    '"<time>"': '"2026-07-01T12:00:00.123456Z"',
    '"<transaction>"': '"0123456789abcdef"',
    '"<slices>"': "1",
    "<stamp>": "20260701T120000Z.1",
}
SHORTENED = re.compile(r"([0-9a-f]{12})\[(\d+)\]")


class Document(NamedTuple):
    """What was typed, and what ``--json`` printed."""

    words: tuple[str, ...]
    value: dict[str, Any]
    place: str


def documents() -> Iterator[Document]:
    """All documents; ids that the files have shortened are as long as they were."""
    for path in sorted(RECORDED.rglob("*.txt")):
        words: tuple[str, ...] = ()
        lines: list[str] = []
        for line in [*path.read_text().splitlines(), "$ end"]:
            if line.startswith("$ "):
                yield from _parsed(words, lines, path)
                words, lines = tuple(line[2:].split()), []
            elif line.startswith("j ") and not re.match(r"j exit \d", line):
                lines.append(line[2:])


def _parsed(words: tuple[str, ...], lines: list[str], path: Path) -> Iterator[Document]:
    text = "\n".join(lines)
    if not text or text.startswith("(as it is)"):
        return
    for placeholder, value in PLACEHOLDERS.items():
        text = text.replace(placeholder, value)
    text = SHORTENED.sub(lambda found: found[1].ljust(int(found[2]), "0"), text)
    yield Document(words, json.loads(text), f"{path.relative_to(RECORDED)}: {' '.join(words)}")
