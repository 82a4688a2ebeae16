"""EFI programs: the kernel command line inside a unified kernel image (UKI) or an add-on of one.

What is used of the format (Microsoft "PE Format"; composefs-rs 0.9.4, ``uki.rs``; systemd 258, ``pe.c``), all integers
little-endian::

    offset 60 of the file: u32, where the PE header is

    PE header                          section header, 40 bytes, as many as stated, after the optional header
    offset  size  field                offset  size  field
         0     4  magic, P E 0 0            0     8  name, padded with NUL
         6     2  number of sections        8     4  virtual size: the length of the content
        20     2  size of optional         16     4  size in the file
                  header                   20     4  where the content is in the file

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

MAX_SECTION = 1 << 20
"""Bytes of all command lines of one file together; they have a few hundred each, and every profile has one."""

MZ = b"MZ"
"""How an EFI program starts."""

_STRUCTURE = "UKI"
_PE_OFFSET = Struct("<I")
_PE_HEADER = Struct("<4s2xH12xH2x")
_SECTION = Struct("<8sI4xII16x")
_CMDLINE = b".cmdline"
_LINUX = b".linux\0\0"


def uki_cmdline(read: Read, size: int) -> bytes | None:
    """The kernel command lines in an EFI program, a line each: a UKI with several profiles has several.

    None for a program that is no UKI and has none: a boot loader, a firmware tool, an add-on with other things.

    Args:
        read: gives the bytes of the file.
        size: of the file, in bytes.

    Raises:
        FormatError: no PE file, cut off, command lines of more than ``MAX_SECTION`` bytes, or a UKI without one: what
            starts that gives it its command line.
    """
    (at,) = _PE_OFFSET.unpack(_exactly(read, size, 60, _PE_OFFSET.size, "the offset of the PE header"))
    magic, count, optional = _PE_HEADER.unpack(_exactly(read, size, at, _PE_HEADER.size, "a PE header"))
    if magic != b"PE\0\0":
        _wrong(at, "PE magic", repr(magic))
    table = at + _PE_HEADER.size + optional
    headers = _exactly(read, size, table, count * _SECTION.size, f"{count} section headers")
    found = []
    left = min(MAX_SECTION, size)  # sections may overlap; those of an honest file are not longer than the file
    is_uki = False
    for title, virtual, stored, start in _SECTION.iter_unpack(headers):
        is_uki = is_uki or title == _LINUX
        if title == _CMDLINE:
            length = virtual or stored
            if length > left:
                _wrong(start, f"a section .cmdline of at most {left} bytes", f"{length} bytes")
            left -= length
            found.append(_exactly(read, size, start, length, "section .cmdline").rstrip(b"\0"))
    if not found and is_uki:
        _wrong(0, "a section .cmdline", "none")
    return b"\n".join(found) if found else None


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
