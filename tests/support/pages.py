"""The examples of a page of the documentation: commands with what they print, and code.

A page is Markdown.  In a block ``console`` a line ``$ COMMAND`` is typed, continued by lines ``> …``, and what stands below is
what a terminal of 110 columns then shows; a line ``…`` stands for any lines.  Words behind ``console`` say more: ``status=N``
the exit status of the last command, ``writable`` that ``/sysroot`` is mounted writable, ``type=WORD`` what is answered to a
question.  Comments before a block say what a reader does not see:

``<!-- host: NAME -->``          the recorded host of the page; the one of ``examples/`` unless said
``<!-- before: COMMAND -->``     is run first, with a writable ``/sysroot``
``<!-- not run: REASON -->``     the block cannot be tried here
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from support.livehost import Step, Typed

__all__ = ["Block", "Page", "stable"]

FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^`]*)$")
COMMENT = re.compile(r"^ *<!-- (?P<kind>host|before|not run): (?P<text>.*) -->$")
TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?=Z)")
CREATED = "2026-01-01T00:00:00"  # of the recorded images
STAMP = re.compile(r"\d{8}T\d{6}(?=Z)")
TRANSACTION = re.compile(r'(?<="transaction":")[0-9a-f]{16}')
SECONDS = re.compile(r"\b\d+(?:\.\d+)? (s|seconds?)(?= |$)")


class Block(NamedTuple):
    """A fenced block: the words behind the fence, its lines with their place in the page, and why it is not run."""

    info: tuple[str, ...]
    first: int
    lines: tuple[str, ...]
    indent: str
    not_run: str | None
    before: tuple[str, ...]

    @property
    def language(self) -> str:
        """The first word behind the fence."""
        return self.info[0] if self.info else ""

    def word(self, name: str, unless: str) -> str:
        """The value of a word ``name=value`` behind the fence."""
        return next((word.partition("=")[2] for word in self.info if word.startswith(f"{name}=")), unless)

    @property
    def commands(self) -> list[tuple[str, list[str]]]:
        """What is typed in a block ``console``, and the lines below it."""
        found: list[tuple[str, list[str]]] = []
        for line in self.lines:
            if line.startswith("$ "):
                found.append((line[2:], []))
            elif line.startswith("> ") and found and not found[-1][1]:
                found[-1] = (f"{found[-1][0]}\n{line[2:]}", [])
            else:
                assert found, f"line {self.first}: output without a command"
                found[-1][1].append(line)
        return found

    def steps(self) -> Iterator[Step]:
        """What is run, the commands that nobody sees first."""
        for command in self.before:
            yield Step(command, writable=True)
        for command, _ in self.commands:
            yield Step(command, self.word("type", "") and self.word("type", "") + "\n", "writable" in self.info)


class Page:
    """A page: its blocks, its host, and its text with new output in the place of the old."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = path.read_text()
        self.host = "example"
        self.blocks = list(self._blocks())

    def _blocks(self) -> Iterator[Block]:
        lines = self.text.splitlines()
        before: list[str] = []
        not_run = None
        number = 0
        while number < len(lines):
            comment, fence = COMMENT.match(lines[number]), FENCE.match(lines[number])
            number += 1
            if comment is not None and comment["kind"] == "host":
                self.host = comment["text"]
            elif comment is not None and comment["kind"] == "before":
                before.append(comment["text"])
            elif comment is not None:
                not_run = comment["text"]
            elif fence is not None:
                indent, first = fence["indent"], number
                while lines[number].strip() != "```":
                    number += 1
                body = tuple(line.removeprefix(indent) for line in lines[first:number])
                yield Block(tuple(fence["info"].split()), first, body, indent, not_run, tuple(before))
                before, not_run = [], None
                number += 1

    def tried(self, language: str) -> list[Block]:
        """The blocks in a language that are run."""
        return [block for block in self.blocks if block.language == language and block.not_run is None]

    def written_anew(self, said: list[list[Typed]]) -> str:
        """The text with this output in its blocks ``console``; a line ``…`` stays where the output still fits."""
        lines = self.text.splitlines()
        for block, outputs in reversed(list(zip(self.tried("console"), said, strict=True))):
            body: list[str] = []
            for (command, shown), typed in zip(block.commands, outputs, strict=True):
                first, *rest = command.split("\n")
                body += [f"$ {first}", *(f"> {line}" for line in rest)]
                now = stable(typed.text).splitlines()
                body += shown if fits(shown, now) else now
            lines[block.first : block.first + len(block.lines)] = [(block.indent + line).rstrip() for line in body]
        return "\n".join(lines) + "\n"


def fits(shown: list[str], now: list[str]) -> bool:
    """Whether output is what a page shows, in which a line ``…`` stands for any lines."""
    pattern = "".join(r"(?:.*\n)*" if line.strip() == "…" else re.escape(line.rstrip()) + r"\n" for line in shown)
    return re.fullmatch(pattern, "".join(f"{line.rstrip()}\n" for line in now)) is not None


def stable(text: str) -> str:
    """Times that are not the content of an image become noon, in as many characters or fewer."""
    text = TIME.sub(lambda found: found[0] if found[0] == CREATED else "2026-07-01T12:00:00", text)
    text = STAMP.sub("20260701T120000", text)
    text = TRANSACTION.sub("0123456789abcdef", text)
    return SECONDS.sub(r"5 \1", text)
