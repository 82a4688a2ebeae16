"""How output looks: in colour or not, how wide it is, whether digests are short.

Every stream is asked for itself: standard output may be a pipe while standard error is a terminal.  A terminal gets short
digests and ages; a pipe everything in full, laid out in a width only where one is asked for."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

_DIGITS = 12
_LEAST, _MOST = 20, 10_000
"""Columns that a width may have."""
# texts, not patterns: they are compiled when something is shown, and most commands show nothing that they are for
_CELL = r"((?:oci-[a-z]+-)?sha(?:256|512):|@deployment/|)([0-9a-f]{64}|[0-9a-f]{128})"
_INSTANT = r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\.\d+Z"
_ALONE = (
    r"(?<![\w./%=:@-])(@?(?:oci-[a-z]+-)?sha(?:256|512):|@deployment/|)([0-9a-f]{12})(?:[0-9a-f]{52}|[0-9a-f]{116})"
    r"(?![\w/%=-]|[.:]\w)"
)
"""A digest or an id as a word of its own: a command takes its first digits, too."""
_WITHIN = r"(?<![0-9a-f])([0-9a-f]{12})(?:[0-9a-f]{50}|[0-9a-f]{52}|[0-9a-f]{114}|[0-9a-f]{116})(?![0-9a-f])"
"""One in a path or a name, or the rest of an object's."""

_REPEATED = r"(\\x[0-9a-f]{2})\1{3,}"
"""What is left of a file after a power cut: the same byte again and again."""
_MEANINGS = {
    "booted": "1;32",
    "staged": "36",
    "rollback": "33",
    "gone": "2",
    "ok": "32",
    "problem": "33",
    "error": "1;31",
    "hint": "36",
    "heading": "1",
}
options: Sequence[str] = ()
"""The words that say which repository is meant, for commands that are proposed."""
_colour = "auto"
_width: int | None = None
_whole = False


def forget() -> None:
    """Reset to the defaults, as before a command line is read."""
    global options, _colour, _width, _whole
    options, _colour, _width, _whole = (), "auto", None, False


def want(colour: str | None, width: int | None, whole: bool) -> None:
    """What ``--color``, ``--width`` (in columns) and ``--no-trunc`` say.

    Raises:
        UsageError: a colour other than auto, always and never, or a width out of bounds.
    """
    global _colour, _width, _whole
    from cfs_tags.errors import UsageError

    if colour not in (None, "auto", "always", "never"):
        raise UsageError("invalid-argument", argument="--color", value=colour, reason="is none of auto, always, never")
    if width is not None and not _LEAST <= width <= _MOST:
        reason = f"is not between {_LEAST} and {_MOST} columns"
        raise UsageError("invalid-argument", argument="--width", value=str(width), reason=reason)
    _colour, _width, _whole = colour or "auto", width, whole


def is_whole() -> bool:
    """Whether everything is wanted in full, on a terminal as well."""
    return _whole


def on_terminal(stream: TextIO | None = None) -> bool:
    """Whether a stream (default: standard output) is shown as on a terminal: it is one, or that was asked for."""
    return _colour == "always" or (stream or sys.stdout).isatty()


def in_colour(stream: TextIO) -> bool:
    """Whether what is written there has colours and bold letters."""
    if _colour != "auto":
        return _colour == "always"
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def painter(stream: TextIO) -> Callable[[str, str], str]:
    """What gives a text the colour of a number of ECMA-48 (``32`` is green, ``2`` faint), where the stream has colours."""
    if not in_colour(stream):
        return lambda text, _: text
    return lambda text, colour: f"\x1b[{colour}m{text}\x1b[0m" if text else text


def columns(stream: TextIO) -> int | None:
    """How wide a stream is: ``--width``, else ``COLUMNS``, else the terminal's width or 80; None for a pipe without any."""
    if _width is not None:
        return _width
    given = os.environ.get("COLUMNS", "")
    if given.isascii() and given.isdigit() and int(given[:6]) > 0:
        return min(int(given[:6]), _MOST)
    if not on_terminal(stream):
        return None
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def is_laid_out() -> bool:
    """Whether standard output is laid out in a width."""
    return columns(sys.stdout) is not None


def in_unicode(stream: TextIO) -> bool:
    """Whether a stream can show lines and blocks."""
    return (stream.encoding or "").lower().startswith("utf")


def _ellipsis(stream: TextIO) -> str:
    """What stands where something is left out, in characters that the stream can show."""
    return "…" if in_unicode(stream) else "..."


def short(text: str, stream: TextIO, *, typed: bool = False) -> str:
    """Text in which digests and ids are as short as commands take them, where the stream is a terminal.

    Args:
        text: of any kind.
        stream: where it is written.
        typed: whether it is copied into a command line: then digits in paths and names stay.
    """
    if _whole or not on_terminal(stream):
        return text
    text = re.sub(_REPEATED, rf"\1{_ellipsis(stream)}", re.sub(_ALONE, r"\1\2", text))
    return text if typed else re.sub(_WITHIN, rf"\1{_ellipsis(stream)}", text)


def short_cell(text: str) -> str:
    """A cell of a table on standard output: a digest or an id is short, an instant ends with its seconds."""
    if not on_terminal():
        return text
    found = None if _whole else re.fullmatch(_CELL, text)
    if found is not None:
        return f"{found[1]}{found[2][:_DIGITS]}"
    return re.sub(_INSTANT, r"\1Z", text)


def wrapped(text: str, stream: TextIO, indent: int | None = None) -> Iterator[str]:
    """A line as lines that end between words, where the stream has a width.

    Args:
        text: one line.
        stream: where it is written.
        indent: blanks before the lines after the first; two more than before the first without it.
    """
    width = columns(stream)
    if width is None or len(text) <= width or (indent is not None and " " not in text[indent:]):
        yield text
        return
    from textwrap import wrap

    before = len(text) - len(text.lstrip())
    after = " " * (before + 2 if indent is None or indent > width // 2 else indent)
    yield from wrap(
        text.lstrip(),
        width,
        initial_indent=" " * before,
        subsequent_indent=after,
        break_long_words=False,
        break_on_hyphens=False,
    )


def styled(text: str, meaning: str, stream: TextIO) -> str:
    """Text in the colour of what it means, where the stream has colours."""
    code = _MEANINGS.get(meaning)
    return f"\x1b[{code}m{text}\x1b[0m" if code and text and in_colour(stream) else text
