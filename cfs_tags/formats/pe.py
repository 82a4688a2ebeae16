"""Sections of a PE file: the command line and os-release inside a unified kernel image (UKI).

What is used of the format (Microsoft "PE Format"; composefs-rs 0.9.4, ``uki.rs``), all integers little-endian::

    offset 60 of the file: u32, where the PE header is

    PE header                          section header, 40 bytes, as many as stated, after the optional header
    offset  size  field                offset  size  field
         0     4  magic, P E 0 0            0     8  name, padded with NUL
         6     2  number of sections        8     4  virtual size: the length of the content
        20     2  size of optional         20     4  where the content is in the file
                  header

An image has 100 MB and more, and these few bytes are all that is read: through a function ``read(offset, length)`` that
gives that many bytes, or fewer at the end of the file.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, NoReturn

from cfs_tags.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Callable

    Read = Callable[[int, int], bytes]

__all__ = ["MAX_SECTION", "sections", "uki_cmdline", "uki_os_release"]

MAX_SECTION = 1 << 20
"""Bytes of the longest section that is read; command lines have a few hundred."""

_STRUCTURE = "UKI"
_PE_OFFSET = Struct("<I")
_PE_HEADER = Struct("<4s2xH12xH2x")
_SECTION = Struct("<8sI8xI16x")


def sections(read: Read, size: int, name: str) -> tuple[bytes, ...]:
    """The contents of all sections of that name, in the order of the file; a UKI with several profiles has several.

    Args:
        read: gives the bytes of the file.
        size: of the file, in bytes.
        name: of at most 8 bytes, such as ``.cmdline``.

    Raises:
        FormatError: no PE file, cut off, or a section of that name is longer than ``MAX_SECTION``.
    """
    wanted = name.encode().ljust(8, b"\0")
    (at,) = _PE_OFFSET.unpack(_exactly(read, size, 60, _PE_OFFSET.size, "the offset of the PE header"))
    magic, count, optional = _PE_HEADER.unpack(_exactly(read, size, at, _PE_HEADER.size, "a PE header"))
    if magic != b"PE\0\0":
        _wrong(at, "PE magic", repr(magic))
    table = at + _PE_HEADER.size + optional
    found = []
    headers = _exactly(read, size, table, count * _SECTION.size, f"{count} section headers")
    for title, length, start in _SECTION.iter_unpack(headers):
        if title == wanted:
            if length > MAX_SECTION:
                _wrong(start, f"a section {name} of at most {MAX_SECTION} bytes", f"{length} bytes")
            found.append(_exactly(read, size, start, length, f"section {name}"))
    return tuple(found)


def uki_cmdline(read: Read, size: int) -> bytes:
    """The kernel command line in a UKI; those of several profiles, a line each.

    Raises:
        FormatError: as :func:`sections`, or there is none.
    """
    return b"\n".join(_stripped(read, size, ".cmdline"))


def uki_os_release(read: Read, size: int) -> bytes:
    """The os-release file in a UKI.

    Raises:
        FormatError: as :func:`sections`, or there is none.
    """
    return _stripped(read, size, ".osrel")[0]


def _stripped(read: Read, size: int, name: str) -> tuple[bytes, ...]:
    found = sections(read, size, name)
    if not found:
        _wrong(0, f"a section {name}", "none")
    return tuple(content.rstrip(b"\0") for content in found)


def _exactly(read: Read, size: int, offset: int, length: int, what: str) -> bytes:
    # before reading: no length in the file makes us ask for what the file does not have
    if offset + length > size:
        _wrong(offset, f"{length} bytes ({what})", f"the end of the file at {size}")
    data = read(offset, length)
    if len(data) != length:
        _wrong(offset, f"{length} bytes ({what})", f"{len(data)} bytes")
    return data


def _wrong(offset: int, wanted: str, found: str) -> NoReturn:
    raise FormatError(structure=_STRUCTURE, offset=offset, wanted=wanted, found=found)
