"""Changes that are asked for, as values and as lines of text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from cfs_tags.errors import UsageError

_LONGEST = 64 << 10
"""Characters of a line: names have 255 bytes, and quoted words are read one character after the other."""


class Instruction(NamedTuple):
    """One change that is asked for.

    ``verb``: ``create`` (the name must be free, or have that value already), ``move`` (it must exist), ``set`` (either),
    ``delete``, ``verify``.  ``target`` is text for :func:`resolve`; ``expected`` a digest, ``absent`` or None.
    ``home`` chooses ``shared`` or ``private``; None applies the rule.  ``expires`` makes a lease (``create``) or trash
    (``delete``).  ``line`` is where it was read, for errors; 0 for none.
    """

    verb: str
    name: str
    target: str | None = None
    expected: str | None = None
    home: str | None = None
    expires: str | None = None
    line: int = 0


def parse_instructions(lines: Iterable[str]) -> Iterator[Instruction]:
    """Instructions from text, one a line; blank lines and those that start with ``#`` are left out.

    ::

        create NAME TARGET
        move NAME TARGET [EXPECTED]
        delete NAME [EXPECTED]
        verify NAME EXPECTED

    Words with blanks in them are quoted as for a shell.  EXPECTED is a digest or ``absent``.

    Raises:
        UsageError: names the line.
    """
    counts = {"create": (3, 3), "move": (3, 4), "delete": (2, 3), "verify": (3, 3)}
    for number, line in enumerate(lines, 1):
        text = line.rstrip("\r\n")
        words = _words(text, number)
        if not words:
            continue
        if words[0] not in counts:
            raise UsageError("invalid-instruction", line=number, text=text, reason=f"no instruction {words[0]!r}")
        least, most = counts[words[0]]
        if not least <= len(words) <= most:
            raise UsageError(
                "invalid-instruction",
                line=number,
                text=text,
                reason=f"{words[0]} takes {least - 1} to {most - 1} words, not {len(words) - 1}",
            )
        verb, name, *rest = words
        if verb in ("create", "move"):
            yield Instruction(verb, name, rest[0], rest[1] if len(rest) > 1 else None, line=number)
        else:
            yield Instruction(verb, name, None, rest[0] if rest else None, line=number)


def _words(text: str, number: int) -> list[str]:
    if "'" not in text and '"' not in text and "\\" not in text:
        words = text.split()
        return [] if not words or words[0].startswith("#") else words
    if len(text) > _LONGEST:
        reason = f"longer than {_LONGEST} characters"
        raise UsageError("invalid-instruction", line=number, text=f"{text[:80]}…", reason=reason)
    import shlex

    try:
        return shlex.split(text, comments=text.lstrip().startswith("#"))
    except ValueError as error:
        raise UsageError("invalid-instruction", line=number, text=text, reason=str(error)) from None
