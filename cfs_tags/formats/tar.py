"""Tar archives: their headers.  Pure.

There is one reader of headers, :func:`entries`: layers (``tarlayer.py``) and archives of images
(``apps/importing/source/archive.py``) are read by it alike, and as cfsctl reads layers (composefs-rs 0.9.4, ``tar.rs``; its
parser is the crate tar-core 0.1.0):

* a size in a PAX header (``x``) goes before the one in the header, and holds for the next entry only; a global header (``g``)
  changes no size and ends what came before it;
* one block of zeros is passed over, two end the archive.

What cfsctl refuses is taken where its meaning is clear: sparse entries, an archive that ends after one block of zeros, or in
the padding of its last entry; links, devices, pipes and directories that have a size and no content (see
:data:`_WITHOUT_CONTENT`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple, NoReturn, Protocol
from zlib import adler32

from cfs_tags.errors import FormatError

BLOCK = 512
"""Bytes of a header, and of what content is filled up to."""

_MAX_EXTENSION = 1 << 20
"""Bytes of the longest extension header that is read, as with composefs-rs (tar-core, ``Limits``) and Go's archive/tar."""

_ZEROS = bytes(BLOCK)
_USTAR = b"ustar\x0000"
_GNU = b"ustar  \0"
HARD_LINK, SYMBOLIC_LINK = b"1", b"2"
"""Types of links."""
_FILES = b"0\x007"
_DIRECTORY_BY_NAME = b"\0"
"""Type of regular files in archives older than POSIX: with a slash at its end the name is that of a directory."""
_WITHOUT_CONTENT = b"123456"
"""Types of hard links, symbolic links, devices, directories and pipes.  Go's archive/tar (podman, skopeo) and GNU tar take no
content of theirs whatever size is said (``isHeaderOnlyType`` in ``reader.go``; ``read_header`` in ``list.c``); others write
some, as tar-core and POSIX ``pax -o linkdata`` allow.  So it is content unless a header or zeros stand in its place."""
_MAX_DIRECTORY = 256 << 20
"""Bytes that a directory itself may have on a disk; what says more is damaged."""
_MAX_SIZE = (1 << 63) - 1
_OCTAL = re.compile(rb"[ \t\n\v\f\r]*([0-7]*)[ \t\n\v\f\r]*(?:\0.*)?", re.DOTALL)
_DECIMAL = re.compile(rb"\+?[0-9]{1,20}")
_LENGTH = re.compile(rb"\+?([0-9]{1,20}) ")
_ADLER = 65521
_MAX_HEADERS = 100
"""PAX headers before one entry; there is one, mostly."""


# -- headers -----------------------------------------------------------------------------------------------------------


class Archive(Protocol):
    """Where :func:`entries` reads.  Positions only grow."""

    def at(self, position: int, size: int) -> bytes:
        """``size`` bytes from there on; fewer at the end."""

    def reaches(self, position: int) -> bool:
        """Whether the archive has all bytes before that."""


class Entry(NamedTuple):
    """A header, and what extension headers before it say.

    Attributes:
        kind: the type flag, one byte.
        is_file: whether it is a regular file, one stored with holes among them.
        begin: where its content starts, in bytes.
        size: bytes of its content.
        block: the header.
        long_name: of a GNU header ``L``, or empty.
        long_link: of a GNU header ``K``, or empty.
        pax: the contents of PAX headers ``x``.
    """

    kind: bytes
    is_file: bool
    begin: int
    size: int
    block: bytes
    long_name: bytes
    long_link: bytes
    pax: tuple[bytes, ...]

    @property
    def end(self) -> int:
        """Where the content ends, before what fills it up to a block."""
        return self.begin + self.size

    @property
    def name(self) -> bytes:
        """Its path.

        Raises:
            FormatError: a PAX header is malformed.
        """
        found = self.long_name or self._pax(b"path")
        if found:
            return found
        name = _text(self.block[:100])
        if self.block[257:263] == _USTAR[:6] and self.block[345]:
            return _text(self.block[345:500]) + b"/" + name
        return name

    @property
    def link(self) -> bytes:
        """What a link leads to.  Raises as :attr:`name`."""
        return self.long_link or self._pax(b"linkpath") or _text(self.block[157:257])

    @property
    def records(self) -> dict[bytes, bytes]:
        """What PAX headers say, by key.  Raises as :attr:`name`."""
        return _records(self.pax, self.begin - BLOCK) if self.pax else {}

    def _pax(self, key: bytes) -> bytes:
        return self.records.get(key, b"")


def entries(archive: Archive) -> Iterator[Entry]:
    """The entries of an archive.

    Args:
        archive: its bytes.

    Raises:
        FormatError: no tar, or one that is cut short; ``offset`` says where.
    """
    position = 0
    long_name = long_link = b""
    pax: tuple[bytes, ...] = ()
    while (header := _next_header(archive, position)) is not None:
        position, block = header
        kind = block[156:157]
        size = number(block[124:136])
        if size is None:
            wrong(position + 124, "a size", repr(block[124:136]))
        begin, is_file = position + BLOCK, kind in _FILES
        if kind == b"g" or (kind in b"xLK" and block[257:265] in (_USTAR, _GNU)):
            data = _extension(archive, position, size)
            position = begin + size + -size % BLOCK
            if kind == b"L":
                long_name = _text(data)
            elif kind == b"K":
                long_link = _text(data)
            elif kind == b"g":
                long_name, long_link, pax = b"", b"", ()
            elif sum(map(len, pax)) + size > _MAX_EXTENSION or len(pax) > _MAX_HEADERS:
                wrong(begin, f"extension headers of at most {_MAX_EXTENSION} bytes", "more")
            else:
                pax = (*pax, data)
            continue
        if kind == b"S" and block[257:265] == _GNU:
            begin, is_file = _behind_sparse_map(archive, begin, block), True
        if pax and any(b"size=" in data for data in pax):
            size = _pax_size(pax, position, size)
        if size > _MAX_SIZE - BLOCK:
            wrong(position + 124, f"a size below {_MAX_SIZE}", str(size))
        entry = Entry(kind, is_file, begin, size, block, long_name, long_link, pax)
        if size and (kind in _WITHOUT_CONTENT or (kind == _DIRECTORY_BY_NAME and _is_directory(entry))):
            entry = entry._replace(is_file=False)
            if (kind != b"5" or size <= _MAX_DIRECTORY) and _is_boundary(archive.at(begin, BLOCK)):
                entry = entry._replace(size=0)
        long_name, long_link, pax = b"", b"", ()
        yield entry
        if not archive.reaches(entry.end):
            cut_file(entry)
        position = entry.end + -entry.size % BLOCK


def _next_header(archive: Archive, position: int) -> tuple[int, bytes] | None:
    """Position and bytes of the next header; None at the end."""
    while True:
        block = archive.at(position, BLOCK)
        if len(block) < BLOCK:
            if any(block):
                wrong(position, f"a header of {BLOCK} bytes", f"{len(block)} bytes")
            return None
        if block[0] or block != _ZEROS:
            break
        after = archive.at(position + BLOCK, BLOCK)
        if len(after) < BLOCK and any(after):
            wrong(position + BLOCK, "a header", "a part of one")
        if len(after) < BLOCK or after == _ZEROS:
            return None
        position += BLOCK
    if not _checksum_fits(block):
        wrong(position + 148, "a header with its checksum", repr(block[148:156]))
    return position, block


def _extension(archive: Archive, position: int, size: int) -> bytes:
    """The content of an extension header."""
    if size > _MAX_EXTENSION:
        wrong(position + 124, f"an extension header of at most {_MAX_EXTENSION} bytes", f"{size} bytes")
    data = archive.at(position + BLOCK, size)
    if not archive.reaches(position + BLOCK + size + -size % BLOCK):
        _cut(position, BLOCK + size + -size % BLOCK)
    return data


def _behind_sparse_map(archive: Archive, begin: int, block: bytes) -> int:
    """Where the content of an old GNU sparse entry (type S) starts: its map goes on in blocks behind the header."""
    more = block[482]
    while more:
        block = archive.at(begin, BLOCK)
        begin += BLOCK
        if len(block) < BLOCK:
            _cut(begin, BLOCK)
        more = block[504]
    return begin


def _is_directory(entry: Entry) -> bool:
    return (entry.long_name or _text(entry.block[:100])).endswith(b"/")


def _is_boundary(block: bytes) -> bool:
    """Whether this can stand where no content is: a header, zeros, or the end of the archive."""
    return not any(block) or (len(block) == BLOCK and _checksum_fits(block))


def _pax_size(pax: tuple[bytes, ...], position: int, size: int) -> int:
    """The size in PAX headers; ``size`` where they have none."""
    value = _records(pax, position).get(b"size")
    if value is None:
        return size
    if _DECIMAL.fullmatch(value) is None:
        wrong(position, "a size in a PAX header", repr(value[:40]))
    return int(value)


def _records(pax: tuple[bytes, ...], position: int) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for data in pax:
        records = _pax_records(data)
        if records is None:
            wrong(position, "PAX records", repr(data[:40]))
        found.update(records)
    return found


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def cut_file(entry: Entry) -> NoReturn:
    """Refuse an archive that ends within a file."""
    name = (entry.long_name or _text(entry.block[:100])).decode("utf-8", "backslashreplace")
    wrong(entry.begin, f"{entry.size} bytes of {name[-100:]}", "the end of the archive")


def _cut(position: int, missing: int) -> NoReturn:
    wrong(position, f"{missing} more bytes", "the end of the archive")


def wrong(position: int, wanted: str, found: str) -> NoReturn:
    """Refuse what is at a position."""
    raise FormatError(structure="tar", offset=position, wanted=wanted, found=found)


# -- fields ------------------------------------------------------------------------------------------------------------


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


def _checksum_fits(header: bytes) -> bool:
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


def _pax_records(data: bytes) -> dict[bytes, bytes] | None:
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
