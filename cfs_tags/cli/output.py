"""What is printed: JSON documents, tables and lines; errors and warnings.

Foreign text (names, labels, paths) is escaped wherever it is printed as text, so that it is one line and cannot talk
to the terminal; in JSON everything outside ASCII is an escape."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import typer

from cfs_tags.cli import view
from cfs_tags.errors import CfsTagsError, UsageError, printable

if TYPE_CHECKING:
    import re
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

_SCHEMA = 1

above_bar: Callable[[str], None] | None = None
"""Writes lines above a bar that is shown on standard error; see :mod:`cfs_tags.cli.progress`."""

_words: Sequence[str] = ()
_UNITS = (("year", 31_556_952), ("month", 2_629_746), ("week", 604_800), ("day", 86_400), ("hour", 3600), ("minute", 60))
_json_asked = False
_json_log = False
_watched: list[list[CfsTagsError]] = []
_encode: Callable[[Any], str] | None = None


def start(words: Sequence[str]) -> None:
    """Look whether the words of a command line ask for JSON: then errors are JSON too, those of the words among them."""
    global _json_asked, _words
    _words = words
    view.forget()
    asked = words[: words.index("--")] if "--" in words else words
    _json_asked = "--json" in asked or "--jsonl" in asked
    _fill_gaps()
    for stream in (sys.stdout, sys.stderr):
        # a locale that cannot show a character is no reason to fail
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def want(log_format: str | None) -> None:
    """What ``--log-format`` says.

    Raises:
        UsageError: neither text nor json.
    """
    global _json_log
    if log_format not in (None, "text", "json"):
        raise UsageError("invalid-argument", argument="--log-format", value=log_format, reason="is none of text, json")
    _json_log = log_format == "json"


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
        BrokenPipeError: the reader has closed it.
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


def data(rows: Iterable[str]) -> None:
    """Write lines of text that is safe already, for programs: as they are."""
    emit("".join([f"{row}\n" for row in rows]))


def lines(rows: Iterable[str], indent: int | None = None, first: Mapping[str, str] | None = None) -> None:
    """Write lines of text that is safe already, for people: a terminal gets short digests, and no word is broken.

    Args:
        rows: the lines.
        indent: blanks before what does not fit into the first line of each; two more than before that without it.
        first: the meaning of words that a line begins with, by the word: they have its colour.
    """
    if not view.is_laid_out():  # of a hundred thousand lines, none has to be asked for itself
        data(rows)
        return
    out = sys.stdout
    for row in rows:
        parts = list(view.wrapped(view.short(row, out), out, indent))
        for word, meaning in (first or {}).items():
            if parts[0].startswith(word):
                parts[0] = view.styled(word, meaning, out) + parts[0][len(word) :]
        data(parts)


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        from cfs_tags.errors import OutputFailed

        raise OutputFailed(reason=error.strerror or str(error)) from error


# -- errors ------------------------------------------------------------------------------------------------------------


def fail(error: CfsTagsError) -> int:
    """Report an error where it belongs; returns its exit status."""
    if _json_asked and not sys.stdout.closed:
        emit(to_json({"schema": _SCHEMA, "error": _error_facts(error)}) + "\n")
    else:
        _tell(error, "error")
    return error.status


def warn(warnings: Iterable[CfsTagsError]) -> None:
    """Warnings for people, on standard error; in JSON they are part of the document."""
    if not _json_asked:
        for warning in warnings:
            _tell(warning, "warning")


def watch(warnings: list[CfsTagsError]) -> None:
    """Report warnings that are added to this list: in the document of the command, or on standard error when it ends."""
    _watched.append(warnings)


def warn_of_watched() -> None:
    """Print warnings of the watched lists that are in no document."""
    for warning in _take_watched():
        # what was finished is good news
        _tell(warning, "note" if warning.code == "transaction-finished" else "warning", marked=False)


def _take_watched() -> list[CfsTagsError]:
    taken = [warning for warnings in _watched for warning in warnings]
    _watched.clear()
    return taken


def _error_facts(error: CfsTagsError) -> dict[str, Any]:
    """An error or warning as JSON shows it."""
    return {"code": error.code, "message": str(error), "facts": error.facts(), "hint": _hint(error)}


def _hint(error: CfsTagsError) -> str | None:
    from cfs_tags.cli import hints

    return hints.hint(error, _words)


def note(text: str) -> None:
    """A line for people on standard error, which is no error; a shell that completes a word shows none."""
    if "_CFS_TAG_COMPLETE" not in os.environ:
        if _json_log:
            _log("note", {"message": text})
        else:
            _say(printable(text), None)


def waits(path: str, mode: str, holders: tuple[dict[str, Any], ...]) -> None:
    """Tell people that a lock is waited for, and who has it."""
    from cfs_tags.messages import held_by

    if not _json_asked:
        note(f"waiting for the {mode} lock on {path}, {held_by(holders)}")


def ask(shown: Iterable[str], question: str, *, command: str, unasked: str, declined: str) -> None:
    """Ask a person about what is shown first, and end where the answer is not yes.

    Args:
        shown: lines.
        question: about them.
        command: its path, for the error.
        unasked: what the error says where nobody can be asked.
        declined: what is said where everything stays as it is.

    Raises:
        UsageError: nobody can be asked.
        Exit: everything but a yes is a no.
    """
    if not (sys.stdin.isatty() and sys.stderr.isatty()) or _json_asked:
        raise UsageError("command-line", command=command, text=unasked)
    text = "".join([f"{printable(line)}\n" for line in shown])
    sys.stderr.write(f"{text}{question} [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        lines([declined])
        raise typer.Exit(1)


def give_up() -> None:
    """Close standard output, which cannot be written: the interpreter would try again at its end, and complain."""
    with suppress(OSError, ValueError):
        sys.stdout.close()


_MEANINGS = {"error": "error", "warning": "problem"}


def _tell(error: CfsTagsError, level: str, *, marked: bool = True) -> None:
    """Say an error, warning or good news on standard error."""
    if _json_log:
        _log(level, _error_facts(error))
        return
    said = f"warning: {error}" if level == "warning" else str(error)
    _say(said, _hint(error), _MEANINGS.get(level, "") if marked else "")


def _log(level: str, facts: Mapping[str, Any]) -> None:
    """A line of JSON on standard error, whole or not at all."""
    from cfs_tags.repo.reflog import timestamp

    with suppress(OSError):
        sys.stderr.write(to_json({"schema": _SCHEMA, "time": timestamp(), "level": level, **facts}) + "\n")
        sys.stderr.flush()


def _say(message: str, hint: str | None, meaning: str = "") -> None:
    def marked(word: str, meaning: str) -> str:
        return view.styled(word, meaning, sys.stderr) if above_bar is None else word

    said = [f"cfs-tag: {view.short(message, sys.stderr)}"]
    if above_bar is None and view.on_terminal(sys.stderr):
        said = list(view.wrapped(said[0], sys.stderr, 2))
    text = "\n".join(said).replace("cfs-tag:", marked("cfs-tag:", meaning), 1) + "\n"
    if hint is not None:  # in one line, however long, so that a command in it can be copied
        text += f"{marked('hint:', 'hint')} {view.short(printable(hint), sys.stderr, typed=True)}\n"
    with suppress(OSError):  # standard error is closed: the exit status still tells
        if above_bar is not None:
            above_bar(text)
        else:
            sys.stderr.write(text)
            sys.stderr.flush()


# -- JSON --------------------------------------------------------------------------------------------------------------


def document(command: str, result: Any, warnings: Iterable[CfsTagsError] = ()) -> None:
    """Print the one document of a command."""
    _document(command, [to_json(result)], warnings)


def document_around(command: str, before: Mapping[str, Any], name: str, rows: Iterable[Any], after: Mapping[str, Any]) -> None:
    """Print the one document of a command with a long list in it, of which no two rows are made at once."""

    def pieces() -> Iterator[str]:
        yield f"{to_json(before)[:-1]},{to_json(name)}:["
        for number, row in enumerate(rows):
            yield f"{',' if number else ''}{to_json(row)}"
        yield f"],{to_json(after)[1:]}"

    _document(command, pieces(), ())


def document_of_rows(command: str, rows: Sequence[str], warnings: Iterable[CfsTagsError] = ()) -> None:
    """Print the one document of a command whose result is a list, each row JSON already."""
    _document(command, [f"[{','.join(rows)}]"], warnings)


def _document(command: str, result: Iterable[str], warnings: Iterable[CfsTagsError]) -> None:
    shown = to_json([_error_facts(warning) for warning in (*warnings, *_take_watched())])
    emit(f'{{"schema":{_SCHEMA},"command":{to_json(command)},"result":')
    for piece in result:
        emit(piece)
    emit(f',"warnings":{shown}}}\n')


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
    """Bytes as people read them; in a pipe after the exact number."""
    return rounded(count) if count < 1024 or view.on_terminal() else f"{count} bytes ({rounded(count)})"


def rounded(count: int) -> str:
    """Bytes as people read them."""
    if count < 1024:
        return f"{count} bytes"
    power = min((count.bit_length() - 1) // 10, 4)
    return f"{count / 1024**power:.1f} {'KMGT'[power - 1]}iB"


def compact(count: int) -> str:
    """Bytes as a table has them."""
    if view.on_terminal():
        return rounded(count).replace("bytes", "B")
    amount = float(count)
    for unit in ("B", "K", "M", "G", "T"):
        if amount < 1024 or unit == "T":
            break
        amount /= 1024
    return f"{amount:.0f}{unit}" if unit == "B" else f"{amount:.1f}{unit}"


def age(instant: str | None) -> str:
    """How long ago an instant (RFC 3339) was, in its largest unit; empty where there is none that can be read."""
    import time

    from cfs_tags.values import instant_of

    then = instant_of(instant)
    if then is None:
        return ""
    seconds = time.time() - then.timestamp()
    if seconds < 0:
        return "in future"
    return _length(seconds) if seconds >= 60 else "now"


def _length(seconds: float) -> str:
    """A length of time in its largest unit."""
    for unit, length in _UNITS:
        if seconds >= length:
            return count(int(seconds // length), unit)
    return count(int(seconds), "second")


def when(instant: str | None) -> str | None:
    """An instant (RFC 3339) as a fact; on a terminal with how long ago it was."""
    said = age(instant) if view.on_terminal() else ""
    return f"{instant} ({said} ago)" if said not in ("", "now", "in future") else instant


def ends(expiry: str) -> str:
    """When a lease or what is in the trash ends, as ``YYYYMMDDThhmmssZ``: on a terminal in how long."""
    if not view.on_terminal():
        return f"until {instant(expiry)}"
    import time
    from datetime import datetime

    try:
        left = datetime.fromisoformat(expiry).timestamp() - time.time()
    except ValueError:
        return f"until {instant(expiry)}"
    return f"ends in {_near_length(left)}" if left > 0 else "ended"


_NEAR = 0.05


def _near_length(seconds: float) -> str:
    """A length of time in the largest unit of which a whole number is near it: 36 hours, 30 days, 3 months."""
    for unit, length in _UNITS:
        number = round(seconds / length)
        # one month may be 28 days or 31
        if number and abs(number * length - seconds) <= _NEAR * seconds and (unit, number) != ("month", 1):
            return count(number, unit)
    return count(max(1, round(seconds)), "second")


def count(number: int, noun: str) -> str:
    """A number of things."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def fields(pairs: Iterable[tuple[str, object]]) -> None:
    """Facts, one a line, their values below each other; those that are None are left out."""
    shown = [(label, value) for label, value in pairs if value is not None]
    width = max([len(label) for label, _ in shown], default=0) + 2
    lines([f"{label + ':':<{width}}{printable(value)}".rstrip() for label, value in shown], width)


def table(headings: Sequence[str], rows: Sequence[Sequence[object]], nothing: str | None = None) -> None:
    """Rows below headings: a table for a terminal (see :mod:`cfs_tags.cli.screen`), else aligned text with everything in full.

    Args:
        headings: one for each column.
        rows: their cells; empty and None are shown as nothing.
        nothing: what is said in place of a table without rows.
    """
    if nothing is not None and not rows:
        lines([nothing])
        return
    shown = [[printable("" if cell is None else cell) for cell in row] for row in rows]
    if view.is_laid_out():
        from cfs_tags.cli import screen

        with _writing():
            screen.table(headings, shown)
        return
    widths = [max([len(row[index]) for row in shown] + [len(name)]) for index, name in enumerate(headings)]
    pattern = "  ".join([f"%-{width}s" for width in widths])
    data([(pattern % tuple(row)).rstrip() for row in [list(headings), *shown]])
