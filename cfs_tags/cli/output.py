"""What is printed: JSON documents, tables and lines; errors and warnings.

Foreign text (names, labels, paths) is escaped wherever it is printed as text, so that it is one line and cannot talk
to the terminal; in JSON everything outside ASCII is an escape."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from cfs_tags.errors import CfsTagsError, printable

if TYPE_CHECKING:
    import re
    from collections.abc import Callable, Iterable, Iterator, Sequence

__all__ = [
    "count",
    "document",
    "document_of_rows",
    "emit",
    "emit_bytes",
    "fail",
    "fields",
    "finish",
    "give_up",
    "instant",
    "lines",
    "named",
    "on_terminal",
    "rounded",
    "size",
    "start",
    "table",
    "to_json",
    "warn",
]

SCHEMA = 1

_json_asked = False
_encode: Callable[[Any], str] | None = None


def start(words: Sequence[str]) -> None:
    """Look whether the words of a command line ask for JSON: then errors are JSON too, those of the words among them."""
    global _json_asked
    options = words[: words.index("--")] if "--" in words else words
    _json_asked = "--json" in options or "--jsonl" in options
    _fill_gaps()
    for stream in (sys.stdout, sys.stderr):
        # a locale that cannot show a character is no reason to fail
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _fill_gaps() -> None:
    """Put something in the place of a standard stream that is closed: else the next file that is opened takes its number.

    It can be read, and is empty, and cannot be written, so that lost output is an error.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDONLY)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115


def emit(text: str) -> None:
    """Write text that is safe already to standard output, at once.

    Raises:
        OutputFailed: it cannot be written.
        BrokenPipeError: nobody reads it any more.
    """
    with _writing():
        sys.stdout.write(text)


def emit_bytes(data: bytes) -> None:
    """Write bytes as they are, after what was written before.  Raises as :func:`emit`."""
    with _writing():
        sys.stdout.flush()
        sys.stdout.buffer.write(data)


def finish() -> None:
    """Have everything written.  Raises as :func:`emit`."""
    if not sys.stdout.closed:
        with _writing():
            sys.stdout.flush()


def lines(rows: Iterable[str]) -> None:
    """Write lines of text that is safe already."""
    emit("".join([f"{row}\n" for row in rows]))


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        from cfs_tags.errors import OutputFailed

        raise OutputFailed(reason=error.strerror or str(error)) from error


def on_terminal() -> bool:
    """Whether somebody looks at standard output."""
    return sys.stdout.isatty()


# -- errors ------------------------------------------------------------------------------------------------------------


def fail(error: CfsTagsError) -> int:
    """Report an error where it belongs; returns its exit status."""
    if _json_asked and not sys.stdout.closed:
        emit(to_json({"schema": SCHEMA, "error": error_facts(error)}) + "\n")
    else:
        _say(str(error), error.hint)
    return error.status


def warn(warnings: Iterable[CfsTagsError]) -> None:
    """Warnings for people, on standard error; in JSON they are part of the document."""
    if not _json_asked:
        for warning in warnings:
            _say(f"warning: {warning}", warning.hint)


def error_facts(error: CfsTagsError) -> dict[str, Any]:
    """An error or warning as JSON shows it."""
    return {"code": error.code, "message": str(error), "facts": error.facts(), "hint": error.hint}


def give_up() -> None:
    """Close standard output, which cannot be written: the interpreter would try again at its end, and complain."""
    with suppress(OSError, ValueError):
        sys.stdout.close()


def _say(message: str, hint: str | None) -> None:
    text = f"cfs-tag: {message}\n"
    if hint is not None:
        text += f"hint: {printable(hint)}\n"
    with suppress(OSError):  # nobody listens: the exit status still tells
        sys.stderr.write(text)
        sys.stderr.flush()


# -- JSON --------------------------------------------------------------------------------------------------------------


def document(command: str, result: Any, warnings: Iterable[CfsTagsError] = ()) -> None:
    """Print the one document of a command."""
    _document(command, to_json(result), warnings)


def document_of_rows(command: str, rows: Sequence[str], warnings: Iterable[CfsTagsError] = ()) -> None:
    """Print the one document of a command whose result is a list, each row JSON already."""
    _document(command, f"[{','.join(rows)}]", warnings)


def _document(command: str, result: str, warnings: Iterable[CfsTagsError]) -> None:
    shown = to_json([error_facts(warning) for warning in warnings])
    emit(f'{{"schema":{SCHEMA},"command":{to_json(command)},"result":{result},"warnings":{shown}}}\n')


def to_json(value: Any) -> str:
    """JSON in one line of printable ASCII.

    A byte of a name that is not UTF-8 comes out as the six characters ``\\udcXX``, as in text, because many parsers
    refuse half a surrogate pair: see :func:`named`.
    """
    text = _encoder()(value)
    if not (text.isascii() and text.isprintable()):
        import re

        text = re.sub(r"[^\x20-\x7e]", _escape, text)
    return text


def _encoder() -> Callable[[Any], str]:
    global _encode
    if _encode is None:
        from json import JSONEncoder

        _encode = JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=str).encode
    return _encode


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xD800 <= code <= 0xDFFF:
        return f"\\\\u{code:04x}"
    if code > 0xFFFF:
        code -= 0x10000
        return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"
    return f"\\u{code:04x}"


def named(name: str) -> dict[str, str]:
    """A name as members of a JSON object: ``name``, and where it is not UTF-8 ``name_bytes``, its bytes in base64."""
    if name.isascii():
        return {"name": name}
    try:
        name.encode()
    except UnicodeEncodeError:
        from binascii import b2a_base64

        data = name.encode("utf-8", "surrogateescape")
        return {"name": name, "name_bytes": b2a_base64(data, newline=False).decode("ascii")}
    return {"name": name}


def instant(expiry: str | None) -> str | None:
    """``YYYYMMDDThhmmssZ`` with the separators that people and most parsers want."""
    if expiry is None or len(expiry) != 16:
        return expiry
    return f"{expiry[:4]}-{expiry[4:6]}-{expiry[6:11]}:{expiry[11:13]}:{expiry[13:]}"


# -- text --------------------------------------------------------------------------------------------------------------


def size(count: int) -> str:
    """Bytes as people read them, after the exact number."""
    return f"{count} bytes ({rounded(count)})" if count >= 1024 else rounded(count)


def rounded(count: int) -> str:
    """Bytes as people read them."""
    if count < 1024:
        return f"{count} bytes"
    power = min((count.bit_length() - 1) // 10, 4)
    return f"{count / 1024**power:.1f} {'KMGT'[power - 1]}iB"


def count(number: int, noun: str) -> str:
    """A number of things."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def fields(pairs: Iterable[tuple[str, object]]) -> None:
    """Facts, one a line, their values below each other; those that are None are left out."""
    shown = [(label, value) for label, value in pairs if value is not None]
    width = max([len(label) for label, _ in shown], default=0) + 2
    lines([f"{label + ':':<{width}}{printable(value)}".rstrip() for label, value in shown])


def table(headings: Sequence[str], rows: Sequence[Sequence[object]], *, indent: str = "") -> None:
    """Rows below headings: a table for a terminal (see :mod:`cfs_tags.cli.screen`), else aligned text with everything in full.

    Empty and None are shown as nothing.
    """
    shown = [[printable("" if cell is None else cell) for cell in row] for row in rows]
    if on_terminal():
        from cfs_tags.cli.screen import layout

        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        lines(layout(headings, shown, _columns(), bold=not plain))
        return
    widths = [max([len(row[index]) for row in shown] + [len(name)]) for index, name in enumerate(headings)]
    pattern = indent + "  ".join([f"%-{width}s" for width in widths])
    lines([(pattern % tuple(row)).rstrip() for row in [list(headings), *shown]])


def _columns() -> int:
    """How wide the terminal is: what ``COLUMNS`` says, else the terminal, else 80."""
    given = os.environ.get("COLUMNS", "")
    if given.isascii() and given.isdigit() and int(given) > 0:
        return int(given)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
