"""The record of every move of a ref: what this program made, and what it found that others had made.

``cfs-tags/reflog/XX`` are 256 files; ``XX`` is the low byte of the CRC-32 of the ref's path, so that no name of a ref is a
file name and one transaction over thousands of refs writes few files.  Each line stands for itself::

    <CRC-32 of the rest, 8 hex digits> <one JSON object, its first key "ref"> <newline>

A line that is torn or flipped is skipped and counted (``fsck`` reports it); it takes no other entry with it.  The log is
history, never needed for safety.
"""

from __future__ import annotations

import json
import json.encoder
import time
from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

from cfs_tags.formats import layout
from cfs_tags.repo import fsops

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cfs_tags.repo.store import ReadRepo, WriteRepo

__all__ = [
    "DIRECTORY",
    "FOUND",
    "Entry",
    "History",
    "all_entries",
    "append",
    "history",
    "last_value",
    "timestamp",
    "with_found",
]

DIRECTORY = f"{layout.STATE}/reflog"
FOUND = "found"
"""Action of an entry that records what somebody else did."""

_MAX_FILE = 256 << 20
_encode = json.JSONEncoder(ensure_ascii=True, separators=(",", ":")).encode


class Entry(NamedTuple):
    """One move.

    ``ref`` is the path of the ref; ``old`` and ``new`` are link texts, None for absent; ``action`` is what was done
    (``create``, ``move``, ``delete``, ``rename``, ``restore``, ``found``, ``transaction-abandoned``, …); ``time`` is UTC in
    ISO 8601; ``transaction`` groups what was done at once; ``reason`` and ``by`` are the user's words and name.
    """

    ref: str
    old: str | None
    new: str | None
    action: str
    time: str
    transaction: str
    reason: str | None = None
    by: str | None = None


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
    data = repo.read_file(_file(ref), _MAX_FILE) or b""
    key = _key(ref)
    entries = []
    damaged = 0
    for line in data.splitlines():
        if key not in line:
            damaged += _body(line) is None and bool(line)
            continue
        entry = _parse(line)
        if entry is None:
            damaged += 1
        elif entry.ref == ref:
            entries.append(entry)
    return History(tuple(entries), damaged)


def all_entries(repo: ReadRepo) -> History:
    """The entries of all refs, oldest first.  Takes no lock."""
    entries = []
    damaged = 0
    for number in range(256):
        for line in (repo.read_file(f"{DIRECTORY}/{number:02x}", _MAX_FILE) or b"").splitlines():
            entry = _parse(line)
            if entry is not None:
                entries.append(entry)
            else:
                damaged += bool(line)
    return History(tuple(sorted(entries, key=lambda entry: entry.time)), damaged)


def last_value(repo: ReadRepo, ref: str) -> Entry | None:
    """The newest entry of a ref, or None."""
    return _last(repo.read_file(_file(ref), _MAX_FILE) or b"", ref)


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
    for entry in entries:
        files.setdefault(_file(entry.ref), []).append(entry)
    sizes: list[tuple[str, int]] = []
    try:
        for path, group in files.items():
            data = repo.read_file(path, _MAX_FILE) or b""
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
                sizes.append((path, len(data)))
                fsops.append(repo.fd, path, b"\n".join([*lines, b""]), repo.owner)
    except BaseException:
        for path, size in sizes:
            try:
                fsops.truncate(repo.fd, path, size)
            except OSError:
                continue  # then the next writer records what it finds
        raise


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
    data = f"{line}}}".encode("ascii")
    return b"%08x %s" % (crc32(data), data)


def _body(line: bytes) -> bytes | None:
    checksum, _, body = line.partition(b" ")
    return body if checksum == b"%08x" % crc32(body) else None


def _parse(line: bytes) -> Entry | None:
    body = _body(line)
    if body is None:
        return None
    try:
        entry = Entry(**json.loads(body))
    except (ValueError, TypeError, RecursionError):
        return None
    return entry if all(isinstance(value, str) or value is None for value in entry) else None


def _last(data: bytes, ref: str) -> Entry | None:
    # by search from the end, not by parsing: one transaction asks this for thousands of refs
    key = _key(ref)
    end = len(data)
    while (at := data.rfind(key, 0, end)) >= 0:
        start = data.rfind(b"\n", 0, at) + 1
        stop = data.find(b"\n", at)
        entry = _parse(data[start : stop if stop >= 0 else len(data)])
        if entry is not None and entry.ref == ref:
            return entry
        end = start
    return None
