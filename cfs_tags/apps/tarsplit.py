"""Where a tar is cut: files of more than 64 bytes become objects, everything else stays in the stream.  Pure.

The cuts are those of ``cfsctl oci pull`` (composefs-rs 0.9.4, ``tar.rs``; its parser is the crate tar-core 0.1.0), so that a
layer becomes the same splitstream whoever stores it:

* the content of an entry of type ``0``, NUL or ``7`` with more than 64 bytes is an object; headers, extension headers, padding,
  the content of all other entries, the end of the archive and whatever follows it are inline;
* a size in a PAX header (``x``) goes before the one in the header, and holds for the next entry only; a global header (``g``)
  changes no size and ends what came before it;
* one block of zeros is passed over, two end the archive.

What cfsctl refuses is taken where its meaning is clear: sparse entries (what is stored of them is an object like any
other content), an archive that ends after one block of zeros, or in the padding of its last entry.  The bytes are the
same in any case: a layer is put together again from its stream bit for bit.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NoReturn, Protocol
from zlib import adler32

from cfs_tags.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["INLINE_MAX", "MAX_EXTENSION", "WHOLE_MAX", "Sink", "checksum_fits", "number", "pax_records", "split"]

INLINE_MAX = 64
"""Bytes of the longest file that stays inline (composefs-rs 0.9.4, INLINE_CONTENT_MAX_V0)."""

MAX_EXTENSION = 1 << 20
"""Bytes of the longest extension header that is read, as with composefs-rs (tar-core, ``Limits``) and Go's archive/tar."""

WHOLE_MAX = 1 << 20
"""Bytes of the longest file that is given out in one piece."""

_BLOCK = 512
_ZEROS = bytes(_BLOCK)
_USTAR = b"ustar\x0000"
_GNU = b"ustar  \0"
_FILES = b"0\x007"
_MAX_SIZE = (1 << 63) - 1
_OCTAL = re.compile(rb"[ \t\n\v\f\r]*([0-7]*)[ \t\n\v\f\r]*(?:\0.*)?", re.DOTALL)
_DECIMAL = re.compile(rb"\+?[0-9]{1,20}")
_LENGTH = re.compile(rb"\+?([0-9]{1,20}) ")
_ADLER = 65521


class Sink(Protocol):
    """What the parts are given to, in order.  Views are valid during the call only."""

    def inline(self, data: memoryview) -> None:
        """Bytes that stay in the stream; neighbours belong together."""

    def external(self, data: memoryview) -> None:
        """A whole file."""

    def begin(self, size: int) -> None:
        """A file of ``size`` bytes starts, more than :data:`WHOLE_MAX`."""

    def piece(self, data: memoryview) -> None:
        """The next bytes of that file."""

    def end(self) -> None:
        """That file is complete."""


def split(chunks: Iterator[bytes], sink: Sink) -> None:
    """Cut a tar.

    Args:
        chunks: its bytes, in pieces of any size.
        sink: takes the parts.

    Raises:
        FormatError: no tar, or one that is cut short; ``offset`` says where.
    """
    _Splitter(chunks, sink).run()


class _Splitter:
    def __init__(self, chunks: Iterator[bytes], sink: Sink) -> None:
        self._chunks = chunks
        self._sink = sink
        self._buffer = b""
        self._view = memoryview(b"")
        self._before = 0  # bytes of the archive before the buffer
        self._start = 0  # of the inline bytes that were not given out yet, in the buffer
        self._position = 0

    def run(self) -> None:
        pax_size: int | None = None
        while True:
            if len(self._buffer) - self._position < _BLOCK and not self._need(_BLOCK):
                self._end_early()
                return
            position = self._position
            header = self._buffer[position : position + _BLOCK]
            if header[0] == 0 and header == _ZEROS:
                if not self._need(2 * _BLOCK):
                    if any(self._buffer[self._position + _BLOCK :]):
                        self._wrong(self._position + _BLOCK, "a header", "a part of one")
                    self._rest()
                    return
                position = self._position
                if self._buffer[position + _BLOCK : position + 2 * _BLOCK] == _ZEROS:
                    self._rest()
                    return
                self._position = position + _BLOCK
                continue
            if not checksum_fits(header):
                self._wrong(position + 148, "a header with its checksum", repr(header[148:156]))
            size = number(header[124:136])
            if size is None:
                self._wrong(position + 124, "a size", repr(header[124:136]))
            kind = header[156:157]
            if kind in b"xLKgS":
                magic = header[257:265]
                if kind == b"g":
                    self._extension(size)
                    pax_size = None
                    continue
                if magic in (_USTAR, _GNU):
                    if kind == b"S":
                        if magic == _GNU:
                            self._sparse_map(header)
                            kind = b"0"
                    else:
                        data = self._extension(size)
                        if kind == b"x" and b"size=" in data:
                            pax_size = self._pax_size(data)
                        continue
            if pax_size is not None:
                size, pax_size = pax_size, None
            if size > _MAX_SIZE - _BLOCK:
                self._wrong(self._position + 124, f"a size below {_MAX_SIZE}", str(size))
            self._position += _BLOCK
            if size > INLINE_MAX and kind in _FILES:
                self._file(size)
                self._skip(-size % _BLOCK, padding=True)
            elif size:
                self._skip(size)
                self._skip(-size % _BLOCK, padding=True)

    # -- parts ---------------------------------------------------------------------------------------------------------

    def _file(self, size: int) -> None:
        """Give out the content of a file that starts at the position."""
        here = len(self._buffer) - self._position
        if here < size <= WHOLE_MAX:
            if not self._need(size):
                self._cut(size)
            here = size
        self._flush()
        if here >= size:
            end = self._position + size
            if size <= WHOLE_MAX:
                self._sink.external(self._view[self._position : end])
                self._position = self._start = end
                return
        self._sink.begin(size)
        left = size
        while left:
            if self._position == len(self._buffer) and not self._need(1):
                self._cut(left)
            end = min(self._position + left, len(self._buffer))
            self._sink.piece(self._view[self._position : end])
            left -= end - self._position
            self._position = self._start = end
        self._sink.end()

    def _skip(self, size: int, *, padding: bool = False) -> None:
        """Pass over inline bytes.  Padding may be missing at the end of the archive."""
        while size:
            here = len(self._buffer) - self._position
            if not here:
                if self._need(1):
                    continue
                if padding:
                    return
                self._cut(size)
            step = min(here, size)
            self._position += step
            size -= step

    def _extension(self, size: int) -> bytes:
        """Pass over an extension header; returns its content."""
        if size > MAX_EXTENSION:
            self._wrong(self._position + 124, f"an extension header of at most {MAX_EXTENSION} bytes", f"{size} bytes")
        whole = _BLOCK + size + -size % _BLOCK
        if not self._need(whole):
            self._cut(whole)
        start = self._position + _BLOCK
        self._position += whole
        return self._buffer[start : start + size]

    def _sparse_map(self, header: bytes) -> None:
        """Pass over the blocks that go on with the map of an old GNU sparse entry (type S); the position stays before its
        last block, as with any header."""
        more = header[482]
        while more:
            self._position += _BLOCK
            if not self._need(_BLOCK):
                self._cut(_BLOCK)
            more = self._buffer[self._position + 504]

    def _rest(self) -> None:
        """Everything that is left is inline."""
        self._position = len(self._buffer)
        self._flush()
        for chunk in self._chunks:
            self._sink.inline(memoryview(chunk))

    def _end_early(self) -> None:
        """The end, where a header could be."""
        if any(self._buffer[self._position :]):
            self._wrong(self._position, f"a header of {_BLOCK} bytes", f"{len(self._buffer) - self._position} bytes")
        self._rest()

    # -- reading -------------------------------------------------------------------------------------------------------

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
        self._start = self._position = 0
        return here >= size

    def _flush(self) -> None:
        if self._start < self._position:
            self._sink.inline(self._view[self._start : self._position])
            self._start = self._position

    def _pax_size(self, data: bytes) -> int | None:
        """The size in a PAX header; None where it has none."""
        records = pax_records(data)
        if records is None:
            self._wrong(self._position, "PAX records", repr(data[:40]))
        value = records.get(b"size")
        if value is not None and _DECIMAL.fullmatch(value) is None:
            self._wrong(self._position, "a size in a PAX header", repr(value[:40]))
        return None if value is None else int(value)

    def _cut(self, missing: int) -> NoReturn:
        self._wrong(len(self._buffer), f"{missing} more bytes", "the end of the archive")

    def _wrong(self, position: int, wanted: str, found: str) -> NoReturn:
        raise FormatError(structure="tar", offset=self._before + position, wanted=wanted, found=found)


def number(field: bytes) -> int | None:
    """A number of a header: octal digits, or GNU's base 256 where the first bit is set; None for anything else."""
    digits = field.rstrip(b"\0 ")
    if digits.isdigit():
        try:
            return int(digits, 8)
        except ValueError:
            return None
    if field[0] & 0x80:
        value = int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
        return value if value <= _MAX_SIZE else None
    match = _OCTAL.fullmatch(field)
    return int(match[1] or b"0", 8) if match is not None else None


def checksum_fits(header: bytes) -> bool:
    """Whether 512 bytes are a header, by its checksum: the sum of the bytes, its own field counted as blanks.

    Some old programs took the bytes as signed.
    """
    wanted = number(header[148:156])
    if wanted is None:
        return False
    # the low half of Adler-32 is 1 + the sum, modulo 65521: the sum at the speed of C
    found = (adler32(header) & 0xFFFF) - 1 - sum(header[148:156]) + 8 * 32
    if (found - wanted) % _ADLER == 0 and wanted < 2 * _ADLER:
        return True
    return wanted == sum([byte - 256 if byte > 127 else byte for byte in header[:148] + b" " * 8 + header[156:]])


def pax_records(data: bytes) -> dict[bytes, bytes] | None:
    """Keys and values of a PAX header, the last of equal keys; None where a record is malformed.

    What does not start like a record ends them, as with tar-core.
    """
    found = {}
    at = 0
    while at < len(data):
        match = _LENGTH.match(data, at)
        if match is None:
            break
        end = at + int(match[1])
        if end > len(data) or end <= match.end() or data[end - 1] != 0x0A:
            return None
        key, equals, value = data[match.end() : end - 1].partition(b"=")
        if not equals:
            return None
        found[key] = value
        at = end
    return found
