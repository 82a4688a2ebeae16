"""The record of every move of a ref: those that this program made, and those of others that it found.

``cfs-tags/reflog/XX`` are 256 files; ``XX`` is the low byte of the CRC-32 of the ref's path, so that no name of a ref is a
file name and one transaction over thousands of refs writes few files.  Each line stands for itself::

    <CRC-32 of the rest, 8 hex digits> <one JSON object, its first key "ref"> <newline>

``order`` has a line for each transaction, ``{"transaction": ID}``, written before its entries: the files alone do not tell
which of two entries came first where the clock was set back.  What was done to the repository as a whole is a line there, too,
an entry whose ref is :data:`WHOLE`, with facts.  At 1 MiB the file becomes ``order.old``, in place of the one before.

A line that is torn, flipped or not what this program writes is skipped and counted (``fsck`` reports it); it takes no
other entry with it.  What is no file, or has more than 256 MiB on disk, counts as one such line, and the next writer sets it
aside.  Holes are not read: memory and time are bounded by what a file has on disk.  The log is history, never needed for
safety.
"""

from __future__ import annotations

import errno
import json
import json.encoder
import os
import re
import time
from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple
from zlib import crc32

from cfs_tags.errors import FormatError, SystemFailure
from cfs_tags.repo import fsops, layout
from cfs_tags.repo.layout import is_ref_path, is_text
from cfs_tags.repo.store import ReadRepo, WriteRepo

DIRECTORY = f"{layout.STATE}/reflog"
WHOLE = f"{layout.OUR_REFS}/repository"
"""In the place of a ref where something was done to the repository as a whole; no ref has that path."""
FOUND = "found"
"""Action of an entry for a change that another program made."""

_ORDER = f"{DIRECTORY}/order"
_OLD_ORDER = f"{_ORDER}.old"
ORDERS = (_OLD_ORDER, _ORDER)
"""The files of the order, the older one first."""
_FULL_ORDER = 1 << 20
"""Bytes at which the order begins a new file."""
_MOST_ORDER = 8 << 20
"""Bytes of such a file that are read, those at its end: enough for a full one with the longest reason as its last line."""
_MOST_FACTS = 64

_MAX_FILE = 256 << 20
_PIECE = 1 << 20
_NAMES = tuple(f"{number:02x}" for number in range(256))
LONGEST_WORDS = 1 << 20
"""Bytes of what a user says."""
_STAMP = re.compile(rb',"time":"([ !#-\[\]-~]*)","transaction":"([ !#-\[\]-~]*)"')
"""Time and transaction of an entry; quotes within a text have a backslash before them."""
_encode = json.JSONEncoder(ensure_ascii=True, separators=(",", ":")).encode


Fact = str | int | list[str] | None
"""What is known of something that was done: a number, a word, or several."""


class Entry(NamedTuple):
    """One move.

    ``ref`` is the path of the ref; ``old`` and ``new`` are link texts, None for absent; ``action`` is what was done
    (``create``, ``move``, ``delete``, ``rename``, ``restore``, ``found``, ``transaction-abandoned``, …); ``time`` is UTC in
    ISO 8601; ``transaction`` groups what was done at once; ``reason`` and ``by`` are the user's words and name.  What was
    done to the repository as a whole (``collect``, ``check``, ``import``, ``migrate``, ``undo``) has :data:`WHOLE` for its
    ref, no links, and ``facts`` about what came of it.
    """

    ref: str
    old: str | None
    new: str | None
    action: str
    time: str
    transaction: str
    reason: str | None = None
    by: str | None = None
    facts: Mapping[str, Fact] | None = None


class History(NamedTuple):
    """Entries, oldest first, and how many lines of the file were unreadable."""

    entries: tuple[Entry, ...]
    damaged: int


def timestamp(seconds: float | None = None) -> str:
    """UTC in ISO 8601 with microseconds: ``2026-01-31T12:00:00.000000Z``.  ``seconds`` since 1970, None for now."""
    moment = time.time() if seconds is None else seconds
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment)) + f".{int(moment % 1 * 1e6):06}Z"


def history(repo: ReadRepo, ref: str) -> History:
    """The entries of one ref, oldest first.  Takes no lock."""
    data, _, damaged = _read(repo, _file(ref))
    key = _key(ref)
    entries = []
    for line in data.splitlines():
        if key not in line:
            damaged += _body(line) is None and bool(line)
            continue
        entry = parse(line)
        if entry is None:
            damaged += 1
        elif entry.ref == ref:
            entries.append(entry)
    return History(tuple(entries), damaged)


def all_entries(repo: ReadRepo) -> History:
    """The entries of all refs and of the repository as a whole, in the order in which they were written.  Takes no lock."""
    files = []
    damaged = 0
    for path in paths(repo):
        data, _, unread = _read(repo, path)
        found = [parse(line) for line in data.splitlines() if line]
        damaged += unread + found.count(None)
        files.append([entry for entry in found if entry is not None])
    order = _Order.read(repo)
    return History(tuple(order.arranged([*files, *([entry] for entry in order.events)])), damaged + order.damaged)


def events(repo: ReadRepo) -> tuple[Entry, ...]:
    """What was done to the repository as a whole, oldest first.  Takes no lock."""
    return _Order.read(repo).events


def arranged(repo: ReadRepo, histories: Sequence[Sequence[Entry]]) -> list[Entry]:
    """Histories of several refs as one, in the order in which they were written.

    Args:
        repo: where.
        histories: entries of a ref each, oldest first.
    """
    filled = [entries for entries in histories if entries]
    return list(filled[0]) if len(filled) == 1 else _Order.read(repo).arranged(filled)


class _Order(NamedTuple):
    """The places of transactions in the order of writing, and what was done to the repository as a whole."""

    places: dict[str, int]
    events: tuple[Entry, ...]
    damaged: int

    @classmethod
    def read(cls, repo: ReadRepo) -> _Order:
        places: dict[str, int] = {}
        events = []
        damaged = 0
        for path in ORDERS:
            data, unread = _read_end(repo, path)
            damaged += unread
            for line in data.splitlines():
                transaction, event = _parse_order(line)
                if transaction is not None:
                    places.setdefault(transaction, len(places))
                if event is not None:
                    events.append(event)
                damaged += transaction is None and bool(line)
        return cls(places, tuple(events), damaged)

    def arranged(self, histories: Sequence[Sequence[Entry]]) -> list[Entry]:
        """Histories as one.

        An entry without a place (of an older version, or of a time that the order has forgotten) stands where its time
        says, but never before one that its own file has earlier: the clock may have been set back.
        """
        times = [""] * len(self.places)
        for entries in histories:
            for entry in entries:
                if (place := self.places.get(entry.transaction)) is not None:
                    times[place] = max(times[place], entry.time)
        times = list(accumulate(times, max))
        keyed = []
        for entries in histories:
            last, latest = (0, 0, ""), ""
            for entry in entries:
                place = self.places.get(entry.transaction)
                latest = max(latest, entry.time)
                last = max(last, (bisect_right(times, latest), 0, latest) if place is None else (place, 1, ""))
                keyed.append((last, entry))
        return [entry for _, entry in sorted(keyed, key=lambda pair: pair[0])]


def damage(repo: ReadRepo) -> dict[str, int]:
    """The files with lines that cannot be read, and how many; one that is no file of ours counts as one line."""
    found = {}
    for path in paths(repo):
        data, _, unread = _read(repo, path)
        found[path] = unread + sum(bool(line) and parse(line) is None for line in data.splitlines())
    for path in ORDERS:
        data, unread = _read_end(repo, path)
        found[path] = unread + sum(bool(line) and _parse_order(line)[0] is None for line in data.splitlines())
    return {path: lines for path, lines in found.items() if lines}


def last_value(repo: ReadRepo, ref: str) -> Entry | None:
    """The newest entry of a ref, or None."""
    return _last(_read(repo, _file(ref)).data, ref)


def last_entries(repo: ReadRepo, refs: Iterable[str]) -> dict[str, Entry | None]:
    """The same for many refs: each file is read once."""
    files: dict[str, list[str]] = {}
    for ref in refs:
        files.setdefault(_file(ref), []).append(ref)
    found = {}
    for path, group in files.items():
        data = _read(repo, path).data
        found.update({ref: _last(data, ref) for ref in group})
    return found


def last_moves(repo: ReadRepo, refs: Iterable[str]) -> dict[str, tuple[str, str | None]]:
    """When each of many refs moved last, and the value that it has had since; refs without an entry are left out.

    A time is never before that of an entry which was written earlier: the clock was behind then.  Each file is read once, and
    of most entries only the time is looked at.
    """
    groups: dict[str, list[str]] = {}
    for ref in refs:
        groups.setdefault(_file(ref), []).append(ref)
    order = _Order.read(repo)
    times = [""] * len(order.places)
    last = {}
    stamps = [(event.time, event.transaction) for event in order.events]
    for path in paths(repo):
        data = _read(repo, path).data
        stamps += {(moment.decode("ascii"), transaction.decode("ascii")) for moment, transaction in _STAMP.findall(data)}
        last.update({ref: _last(data, ref) for ref in groups.get(path, ())})
    for moment, transaction in stamps:
        if (place := order.places.get(transaction)) is not None:
            times[place] = max(times[place], moment)
    times = list(accumulate(times, max))
    found = {}
    for ref, entry in last.items():
        if entry is not None:
            place = order.places.get(entry.transaction)
            found[ref] = (entry.time if place is None else times[place], entry.new)
    return found


def lines_of(repo: ReadRepo, path: str) -> tuple[list[bytes], bool]:
    """The lines of a file, and whether that is all of it: no hole, and nothing that is no file of ours."""
    data, _, unread = _read(repo, path)
    return [line for line in data.split(b"\n") if line], not unread and b"\0" not in data


def standing(repo: ReadRepo, directories: Collection[str]) -> list[Entry]:
    """The newest entry of each ref that is directly in one of some directories, where that entry has a value."""
    starts = tuple(b' {"ref":' + _encode(f"{path}/").encode("ascii")[:-1] for path in directories)
    found = {}
    for path in paths(repo) if directories else ():
        for line in _read(repo, path).data.splitlines():
            entry = parse(line) if line.startswith(starts, 8) else None  # after the checksum
            if entry is not None and entry.ref.rpartition("/")[0] in directories:
                found[entry.ref] = entry
    return [entry for entry in found.values() if entry.new is not None]


def with_found(entries: Sequence[Entry], ref: str, now: str | None, time: str) -> tuple[Entry, ...]:
    """History of a ref completed with what others did since: one more entry where ``now``, its value, is not the last one."""
    last = entries[-1].new if entries else None
    if last == now:
        return tuple(entries)
    return (*entries, Entry(ref, last, now, FOUND, time, ""))


def append(repo: WriteRepo, entries: Iterable[Entry]) -> None:
    """Write entries, each after one that says what others did where its ``old`` is not the last recorded value.

    Entries that are there already (same transaction and ref: a recovery does the same again) are left out.  All or
    none: after an error the files are cut back.

    Raises:
        OSError: the system refused.
    """
    files: dict[str, list[Entry]] = {}
    transactions: dict[str, bytes] = {}
    for entry in entries:
        whole = entry.ref == WHOLE
        transactions[entry.transaction] = _line(entry) if whole else _checked(_encode({"transaction": entry.transaction}))
        if not whole:
            files.setdefault(_file(entry.ref), []).append(entry)
    written: list[tuple[str, int]] = []
    try:
        if transactions:
            _append_order(repo, transactions.values(), written)
        for path, group in files.items():
            data, size, unread = _read(repo, path)
            if unread:
                repo.set_aside(path)
            lines = [] if not data or data.endswith(b"\n") else [b""]  # close a line that a crash tore
            for entry in group:
                last = _last(data, entry.ref)
                if last is not None and last.transaction == entry.transaction and last.new == entry.new:
                    continue
                known = last.new if last is not None else None
                if known != entry.old:
                    lines.append(_line(Entry(entry.ref, known, entry.old, FOUND, entry.time, entry.transaction)))
                lines.append(_line(entry))
            if lines:
                written.append((path, size))
                fsops.append(repo.fd, path, b"\n".join([*lines, b""]))
    except BaseException:
        for path, size in written:
            try:
                fsops.truncate(repo.fd, path, size)
            except OSError:
                continue  # then the next writer logs the values that it finds
        raise


def _append_order(repo: WriteRepo, lines: Iterable[bytes], written: list[tuple[str, int]]) -> None:
    """Before the entries, so that none is without its place; a place without an entry, which a crash leaves, says nothing."""
    size, torn = 0, False
    try:
        fd = repo.open_file(_ORDER)
    except FormatError:
        repo.set_aside(_ORDER)
        fd = None
    if fd is not None:
        try:
            size = os.fstat(fd).st_size
            torn = bool(size) and os.pread(fd, 1, size - 1) != b"\n"
        finally:
            os.close(fd)
    if size >= _FULL_ORDER:
        if repo.is_directory(_OLD_ORDER):
            repo.set_aside(_OLD_ORDER)
        fsops.rename(repo.fd, _ORDER, _OLD_ORDER)
        size, torn = 0, False
    written.append((_ORDER, size))
    fsops.append(repo.fd, _ORDER, b"\n".join([*([b""] if torn else []), *lines, b""]))


def _read_end(repo: ReadRepo, path: str) -> tuple[bytes, int]:
    """The end of a file of the order, from the beginning of a line on; 1 where it is no file and nothing of it is read."""
    try:
        fd = repo.open_file(path)
    except FormatError:
        return b"", 1
    if fd is None:
        return b"", 0
    try:
        start = max(0, os.fstat(fd).st_size - _MOST_ORDER)
        data = os.pread(fd, _MOST_ORDER, start)
    except OSError as error:
        raise SystemFailure.of(error, "read", os.path.join(repo.path, path)) from error
    finally:
        os.close(fd)
    return data if start == 0 else data.partition(b"\n")[2], 0


class _Content(NamedTuple):
    """The bytes of a file, each hole as one NUL; its size in bytes; 1 where it is no file of ours and nothing of it is read."""

    data: bytes
    size: int
    unread: int


def _read(repo: ReadRepo, path: str) -> _Content:
    try:
        fd = repo.open_file(path)
    except FormatError:
        return _Content(b"", 0, 1)
    if fd is None:
        return _Content(b"", 0, 0)
    try:
        size = os.fstat(fd).st_size
        pieces: list[bytes] = []
        end = there = 0
        while end < size:
            at, end = _next_data(fd, begin := end, size)
            there += end - at
            if there > _MAX_FILE:
                return _Content(b"", 0, 1)
            if at > begin:
                pieces.append(b"\0")
            pieces.extend(os.pread(fd, min(_PIECE, end - place), place) for place in range(at, end, _PIECE))
        return _Content(b"".join(pieces), size, 0)
    except OSError as error:
        raise SystemFailure.of(error, "read", os.path.join(repo.path, path)) from error
    finally:
        os.close(fd)


def _next_data(fd: int, begin: int, size: int) -> tuple[int, int]:
    """Where the next bytes that are on disk begin and end, from ``begin`` on; both are ``size`` where only a hole follows."""
    try:
        at = os.lseek(fd, begin, os.SEEK_DATA)
        return at, min(os.lseek(fd, at, os.SEEK_HOLE), size)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size, size
        if error.errno == errno.EINVAL:  # the file system knows of no holes
            return begin, size
        raise


def paths(repo: ReadRepo) -> list[str]:
    """The files of refs that are there; all that may be where the directory is none of ours."""
    there: Sequence[str]
    try:
        there = repo.names(DIRECTORY) or ()
    except FormatError:
        there = _NAMES
    return [f"{DIRECTORY}/{name}" for name in _NAMES if name in there]


def _file(ref: str) -> str:
    return f"{DIRECTORY}/{crc32(ref.encode('utf-8', 'surrogateescape')) & 0xFF:02x}"


def _key(ref: str) -> bytes:
    return b' {"ref":' + _encode(ref).encode("ascii") + b","


def _line(entry: Entry) -> bytes:
    # by hand: one transaction writes thousands, and the encoder takes ten times as long
    text = json.encoder.encode_basestring_ascii
    old = "null" if entry.old is None else text(entry.old)
    new = "null" if entry.new is None else text(entry.new)
    line = f'{{"ref":{text(entry.ref)},"old":{old},"new":{new},"action":{text(entry.action)},"time":{text(entry.time)}'
    line += f',"transaction":{text(entry.transaction)}'
    if entry.reason is not None:
        line += f',"reason":{text(entry.reason)}'
    if entry.by is not None:
        line += f',"by":{text(entry.by)}'
    if entry.facts is not None:
        line += f',"facts":{_encode(dict(entry.facts))}'
    return _checked(f"{line}}}")


def _checked(text: str) -> bytes:
    data = text.encode("ascii")
    return b"%08x %s" % (crc32(data), data)


def _body(line: bytes) -> bytes | None:
    checksum, _, body = line.partition(b" ")
    return body if checksum == b"%08x" % crc32(body) else None


def parse(line: bytes) -> Entry | None:
    """The entry of a line; None where it is none, or cannot be read."""
    body = _body(line)
    if body is None:
        return None
    try:
        entry = Entry(**json.loads(body))
    except (ValueError, TypeError, RecursionError):
        return None
    links = all(link is None or is_text(link) for link in (entry.old, entry.new))
    words = all(map(is_text, (entry.action, entry.time, entry.transaction)))
    said = all(text is None or is_text(text, LONGEST_WORDS) for text in (entry.reason, entry.by))
    known = entry.facts is None or (entry.ref == WHOLE and _are_facts(entry.facts))
    return entry if links and words and said and known and is_ref_path(entry.ref) else None


def _are_facts(value: object) -> bool:
    if not isinstance(value, dict) or len(value) > _MOST_FACTS:
        return False
    words = [word for fact in value.values() for word in (fact if isinstance(fact, list) else [fact])]
    return len(words) <= _MOST_FACTS and all(word is None or isinstance(word, int) or is_text(word) for word in words)


def _parse_order(line: bytes) -> tuple[str | None, Entry | None]:
    """The transaction that a line of the order gives its place, None where it cannot be read; and what it says was done."""
    entry = parse(line)
    if entry is not None:
        return (entry.transaction, entry) if entry.ref == WHOLE else (None, None)
    body = _body(line)
    try:
        found = json.loads(body) if body is not None else None
    except (ValueError, RecursionError):
        found = None
    transaction = found["transaction"] if isinstance(found, dict) and list(found) == ["transaction"] else None
    return transaction if is_text(transaction) else None, None


def _last(data: bytes, ref: str) -> Entry | None:
    # by search from the end, not by parsing: one transaction asks this for thousands of refs
    if not data:
        return None
    key = _key(ref)
    end = len(data)
    while (at := data.rfind(key, 0, end)) >= 0:
        start = data.rfind(b"\n", 0, at) + 1
        stop = data.find(b"\n", at)
        entry = parse(data[start : stop if stop >= 0 else len(data)])
        if entry is not None and entry.ref == ref:
            return entry
        end = start
    return None
