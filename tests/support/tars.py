"""Tars made by hand, byte for byte: what ``tarfile`` does not write, or not in that way."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping

from support.images import Layer

__all__ = ["END", "RawLayer", "entry", "gnu_long", "header", "pax", "sized"]

END = bytes(1024)
"""Two blocks of zeros: the end of an archive."""

USTAR = b"ustar\x0000"
GNU = b"ustar  \0"


class RawLayer(Layer):
    """A layer with exactly this tar; ``blob`` says what a registry keeps of it, if not the tar compressed."""

    def __init__(self, data: bytes, compression: str = "gzip", blob: bytes | None = None) -> None:
        super().__init__((), compression)
        self.__dict__["tar"] = data
        if blob is not None:
            self.__dict__["blob"] = blob


def header(
    name: bytes,
    size: int = 0,
    kind: bytes = b"0",
    *,
    magic: bytes = USTAR,
    link: bytes = b"",
    length: bytes | None = None,
    tail: bytes = b"",
    signed: bool = False,
    device: tuple[int, int] = (0, 0),
) -> bytes:
    """512 bytes.  ``length`` is the size field where it is no plain octal number; ``tail`` what follows the device numbers."""
    field = length if length is not None else b"%011o\0" % size
    parts = (
        name.ljust(100, b"\0"),
        b"0000644\0" + b"0000000\0" * 2,
        field,
        b"14701463600\0",
        b" " * 8,
        kind,
        link.ljust(100, b"\0"),
        magic,
        bytes(64),
        b"%07o\0%07o\0" % device,
        tail.ljust(167, b"\0"),
    )
    made = b"".join(parts)
    assert len(made) == 512
    total = sum(byte - 256 if signed and byte > 127 else byte for byte in made)
    return made[:148] + b"%06o\0 " % total + made[156:]


def sized(data: bytes) -> bytes:
    """Content with its padding."""
    return data + bytes(-len(data) % 512)


def entry(name: bytes, data: bytes = b"", kind: bytes = b"0", **keywords: object) -> bytes:
    """Header and content."""
    return header(name, len(data), kind, **keywords) + sized(data)  # type: ignore[arg-type]


def pax(records: Mapping[str, str], kind: bytes = b"x") -> bytes:
    """A PAX header (``x``), or a global one (``g``)."""
    data = b""
    for key, value in records.items():
        text = f" {key}={value}\n".encode()
        length = len(text)
        while len(str(length)) + len(text) != length:
            length = len(str(length)) + len(text)
        data += str(length).encode() + text
    return entry(b"pax", data, kind)


def gnu_long(text: bytes, kind: bytes = b"L") -> bytes:
    """GNU's header for a long name (``L``) or a long target of a link (``K``)."""
    return entry(b"././@LongLink", text + b"\0", kind, magic=GNU)


def usr() -> bytes:
    """The directory that cfsctl wants in every image."""
    return entry(b"usr/", kind=b"5")


def with_tarfile(format: int, names: Mapping[str, bytes]) -> bytes:
    """Files as Python's tarfile writes them in that format."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for name, data in names.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()
