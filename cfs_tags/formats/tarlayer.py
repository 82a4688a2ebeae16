"""The tar of a layer: cut into the parts that a splitstream has, and read from such parts.  Pure.

A layer is cut where ``cfsctl oci pull`` cuts it (composefs-rs 0.9.4, ``tar.rs``), so that it becomes the same splitstream in
cfsctl and here: the content of an entry of type ``0``, NUL or ``7`` with more than 64 bytes is an object; headers, extension
headers, padding, the content of all other entries, the end of the archive and whatever follows it are inline.  What is stored
of a sparse entry is an object like any other content.  The bytes are the same in any case: a layer is put together again
from its stream bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from cfs_tags.formats.tar import Entry, cut_file, entries, wrong

T = TypeVar("T", bound=str)

_INLINE_MAX = 64
"""Bytes of the longest file that stays inline (composefs-rs 0.9.4, INLINE_CONTENT_MAX_V0)."""
_WHOLE_MAX = 1 << 20
"""Bytes of the longest file that is given out in one piece."""


class Sink(Protocol):
    """What the parts are given to, in order.  Views are valid during the call only."""

    def inline(self, data: memoryview) -> None:
        """Bytes that stay in the stream; neighbours belong together."""

    def external(self, data: memoryview) -> None:
        """A whole file."""

    def begin(self, size: int) -> None:
        """A file of ``size`` bytes starts, more than :data:`_WHOLE_MAX`."""

    def piece(self, data: memoryview) -> None:
        """The next bytes of that file."""

    def end(self) -> None:
        """That file is complete."""


# -- cutting -----------------------------------------------------------------------------------------------------------


def split(chunks: Iterator[bytes], sink: Sink) -> None:
    """Cut a tar.

    Args:
        chunks: its bytes, in pieces of any size.
        sink: takes the parts.

    Raises:
        FormatError: no tar, or one that is cut short; ``offset`` says where.
    """
    window = _Window(chunks, sink)
    for entry in entries(window):
        if entry.is_file and entry.size > _INLINE_MAX:
            window.give_file(entry)
    window.give_rest()


class _Window:
    """The part of an archive that is looked at, moved on and on; what it passes over is given to the sink as inline bytes."""

    def __init__(self, chunks: Iterator[bytes], sink: Sink) -> None:
        self._chunks = chunks
        self._sink = sink
        self._buffer = b""
        self._view = memoryview(b"")
        self._before = 0  # bytes of the archive before the buffer
        self._given = 0  # bytes of the buffer that the sink has
        self._position = 0  # in the buffer

    def at(self, position: int, size: int) -> bytes:
        start = position - self._before
        if start + size > len(self._buffer):
            self.reaches(position)
            self._need(size)
            start = self._position
        self._position = start
        return self._buffer[start : start + size]

    def reaches(self, position: int) -> bool:
        target = position - self._before
        while target > len(self._buffer):
            self._position = len(self._buffer)
            if not self._need(1):
                return False
            target = position - self._before
        self._position = target
        return True

    def give_file(self, entry: Entry) -> None:
        """Give out the content of a file."""
        size = entry.size
        if not self.reaches(entry.begin):
            cut_file(entry)
        here = len(self._buffer) - self._position
        if here < size <= _WHOLE_MAX:
            if not self._need(size):
                cut_file(entry)
            here = size
        self._flush()
        if size <= _WHOLE_MAX:
            end = self._position + size
            self._sink.external(self._view[self._position : end])
            self._position = self._given = end
            return
        self._sink.begin(size)
        left = size
        while left:
            if self._position == len(self._buffer) and not self._need(1):
                cut_file(entry)
            end = min(self._position + left, len(self._buffer))
            self._sink.piece(self._view[self._position : end])
            left -= end - self._position
            self._position = self._given = end
        self._sink.end()

    def give_rest(self) -> None:
        """Everything that is left is inline."""
        self._position = len(self._buffer)
        self._flush()
        for chunk in self._chunks:
            self._sink.inline(memoryview(chunk))

    def _need(self, size: int) -> bool:
        """Have ``size`` bytes from the position on in the buffer; False where the archive has no more."""
        if len(self._buffer) - self._position >= size:
            return True
        self._flush()
        parts = [self._buffer[self._position :]]
        here = len(parts[0])
        while here < size:
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            parts.append(chunk)
            here += len(chunk)
        self._before += self._position
        self._buffer = b"".join(parts)
        self._view = memoryview(self._buffer)
        self._given = self._position = 0
        return here >= size

    def _flush(self) -> None:
        if self._given < self._position:
            self._sink.inline(self._view[self._given : self._position])
            self._given = self._position


# -- what was cut ------------------------------------------------------------------------------------------------------


def stored_files(parts: Iterator[bytes | T]) -> Iterator[tuple[bytes, T]]:
    """The files of a layer that was cut: path and object of each that is stored outside of the stream.

    The content of these files is not needed.

    Args:
        parts: of the layer, in order: inline bytes, and what stands for each stored file.

    Raises:
        FormatError: the inline bytes are no tar, or do not fit the stored files.
    """
    for entry, content in contents(parts):
        if not isinstance(content, bytes):
            yield entry.name, content


def contents(parts: Iterator[bytes | T]) -> Iterator[tuple[Entry, bytes | T]]:
    """The entries of a layer that was cut, with the content of each regular file: its bytes, or the object that is stored.

    Args:
        parts: of the layer, in order: inline bytes, and what stands for each stored file.

    Raises:
        FormatError: the inline bytes are no tar, or do not fit the stored files.
    """
    layer = _CutLayer(parts)
    for entry in entries(layer):
        if not entry.is_file:
            yield entry, b""
        elif entry.size > _INLINE_MAX:
            yield entry, layer.pass_over(entry.begin, entry.size)
        else:
            yield entry, layer.at(entry.begin, entry.size)


class _CutLayer(Generic[T]):
    """The inline bytes of a layer, at the positions that they have in its tar."""

    def __init__(self, parts: Iterator[bytes | T]) -> None:
        self._parts = parts
        self._buffer = b""
        self._before = 0  # bytes of the archive before the buffer
        self._stored: T | None = None  # what comes behind the buffer

    def at(self, position: int, size: int) -> bytes:
        if not self.reaches(position):
            return b""
        start = position - self._before
        while len(self._buffer) - start < size and self._more(start):
            start = position - self._before
        return self._buffer[start : start + size]

    def reaches(self, position: int) -> bool:
        while self._before + len(self._buffer) < position:
            if not self._more(len(self._buffer)):
                return False
        return True

    def pass_over(self, begin: int, size: int) -> T:
        """What is stored of the file at a position."""
        if self.reaches(begin) and begin == self._before + len(self._buffer):
            self._more(len(self._buffer))
        if self._stored is None or begin != self._before + len(self._buffer):
            wrong(begin, f"a stored file of {size} bytes", "something else")
        stored, self._stored = self._stored, None
        self._before, self._buffer = begin + size, b""
        return stored

    def _more(self, used: int) -> bool:
        """Have more bytes in the buffer; the first ``used`` ones may go.  False at the end, or before a stored file."""
        part = next(self._parts, None) if self._stored is None else None
        if not isinstance(part, bytes):
            self._stored = part if part is not None else self._stored
            return False
        self._before += used
        self._buffer = self._buffer[used:] + part
        return True
