"""Blobs as they come: checked against size and digest while they are read, decompressed, with bounded memory.

Whatever is wrong with a blob, it is its digest that is looked at first: of a damaged gzip stream one wants to know that it
is not what the manifest names, not at which byte the decompressor gave up.
"""

from __future__ import annotations

import sys
import zlib
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from cfs_tags.errors import DigestMismatch, FormatError, LayerTooLarge, UnsupportedFeature

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cfs_tags.formats.oci import Descriptor
    from cfs_tags.values import Digest

__all__ = ["CHUNK", "Reader", "checked", "compression", "decompressed", "hasher", "limited", "read_whole", "uncompressed"]

CHUNK = 256 << 10
"""Bytes that are read at once."""

_OUT = 1 << 20
"""Bytes that a decompressor gives out at once, at most."""

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"


class Reader(Protocol):
    """Bytes of a blob, from the beginning.  It is closed by whoever opened it."""

    def read(self, size: int) -> bytes:
        """At most ``size`` of the next bytes; none at the end."""

    def close(self) -> None:
        """Let go of it."""


def hasher(digest: Digest) -> Any:
    """What computes digests of that kind.

    Raises:
        UnsupportedFeature: there is no such algorithm here.
    """
    import hashlib

    if digest.algorithm not in ("sha256", "sha384", "sha512"):
        raise UnsupportedFeature(structure="image", features=(f"digests by {digest.algorithm}",))
    return hashlib.new(digest.algorithm)


def checked(reader: Reader, digest: Digest, size: int, progress: Callable[[int], None] | None = None) -> Iterator[bytes]:
    """The bytes of a blob; at their end it is known that they are the right ones.

    Args:
        reader: gives the bytes.
        digest: what they must have.
        size: how many there must be.
        progress: is told of every piece, by its length.

    Raises:
        DigestMismatch: other bytes, or more or fewer.
    """
    found = hasher(digest)
    left = size
    while data := reader.read(CHUNK):
        left -= len(data)
        if left < 0:
            raise _wrong_size(digest, size, f"{size - left} or more")
        found.update(data)
        if progress is not None:
            progress(len(data))
        yield data
    if left:
        raise _wrong_size(digest, size, str(size - left))
    text = f"{digest.algorithm}:{found.hexdigest()}"
    if text != digest:
        raise DigestMismatch(path=f"blob {digest}", wanted=digest, found=text)


def read_whole(reader: Reader, descriptor: Descriptor, limit: int, what: str) -> bytes:
    """A small blob, checked.

    Args:
        reader: gives the bytes.
        descriptor: what it must be.
        limit: bytes of the longest that is read.
        what: how errors call it.

    Raises:
        FormatError: longer than ``limit``.
        DigestMismatch: other bytes.
    """
    if descriptor.size > limit:
        raise FormatError(structure=what, offset=0, wanted=f"at most {limit} bytes", found=f"{descriptor.size} bytes")
    return b"".join(checked(reader, descriptor.digest, descriptor.size))


def compression(start: bytes) -> str:
    """How bytes that start like this are compressed: ``gzip``, ``zstd`` or ``none``.  No tar starts like either."""
    if start.startswith(_GZIP):
        return "gzip"
    # a skippable frame is where zstd:chunked keeps its table of contents
    if start.startswith(_ZSTD) or (len(start) >= 4 and start[0] & 0xF0 == 0x50 and start[1:4] == b"\x2a\x4d\x18"):
        return "zstd"
    return "none"


def decompressed(chunks: Iterator[bytes], digest: Digest, limit: int, what: str) -> Iterator[bytes]:
    """The uncompressed content of a layer; at its end it is known that it has the right diff_id.

    Args:
        chunks: the bytes of the blob, as :func:`checked` gives them.
        digest: the diff_id.
        limit: most bytes that come out.
        what: how errors call the layer.

    Raises:
        DigestMismatch: other content, or what ``chunks`` raises.
        FormatError: a damaged compression, or one that is cut short; longer than ``limit``.
    """
    found = hasher(digest)
    for data in uncompressed(chunks, limit, what):
        found.update(data)
        yield data
    text = f"{digest.algorithm}:{found.hexdigest()}"
    if text != digest:
        raise DigestMismatch(path=what, wanted=digest, found=text)


def uncompressed(chunks: Iterator[bytes], limit: int, what: str) -> Iterator[bytes]:
    """What comes out of gzip, zstd or no compression, by how the bytes start.  Raises as :func:`decompressed`."""
    first = next(chunks, b"")
    kind = compression(first)
    return limited(_plain(first, chunks) if kind == "none" else _inflated(kind, first, chunks, what), limit, what)


def limited(chunks: Iterator[bytes], limit: int, what: str) -> Iterator[bytes]:
    """The same bytes, ``limit`` of them at most.

    Raises:
        LayerTooLarge: there are more.
    """
    total = 0
    for data in chunks:
        total += len(data)
        if total > limit:
            raise LayerTooLarge(structure=what, offset=0, wanted=f"at most {limit} bytes uncompressed", found="more")
        yield data


def drained(chunks: Iterator[bytes], error: FormatError) -> NoReturn:
    """Raise ``error``; or, where the rest of the blob shows that it has the wrong digest, that."""
    for _ in chunks:
        pass
    raise error


def _wrong_size(digest: Digest, wanted: int, found: str) -> DigestMismatch:
    return DigestMismatch(path=f"blob {digest}", wanted=f"{wanted} bytes", found=f"{found} bytes")


def _plain(first: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    if first:
        yield first
    yield from chunks


def _inflated(kind: str, first: bytes, chunks: Iterator[bytes], what: str) -> Iterator[bytes]:
    try:
        yield from _gunzip(first, chunks) if kind == "gzip" else _unzstd(first, chunks)
    except _Broken as broken:
        drained(chunks, FormatError(structure=what, offset=broken.offset, wanted=broken.wanted, found=broken.found))


class _Broken(Exception):
    def __init__(self, offset: int, wanted: str, found: str) -> None:
        super().__init__(found)
        self.offset = offset
        self.wanted = wanted
        self.found = found


def _gunzip(data: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """One member or several; zeros may follow the last, as tape archives have them."""
    offset = 0
    member = zlib.decompressobj(31)
    inside = True
    while data:
        if not inside:
            data = data.lstrip(b"\0")
            if data:
                if data[0] != _GZIP[0]:
                    raise _Broken(offset, "the end of the gzip stream", "bytes behind it")
                member = zlib.decompressobj(31)
                inside = True
        while inside:
            try:
                piece = member.decompress(data, _OUT)
            except zlib.error as error:
                raise _Broken(offset, "a gzip stream", str(error)) from None
            if piece:
                yield piece
            data = member.unconsumed_tail
            if member.eof:
                data = member.unused_data
                inside = False
            elif not data and len(piece) < _OUT:
                break
        if not data:
            data = next(chunks, b"")
            offset += len(data)
    if inside:
        raise _Broken(offset, "the end of the gzip stream", "the end of the blob")


def _unzstd(data: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """One frame or several, skippable ones among them."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    offset = 0
    frame: Any = None
    while data:
        if frame is None:
            frame = zstd.ZstdDecompressor()
        try:
            piece = frame.decompress(data, _OUT)
            while True:
                if piece:
                    yield piece
                if frame.eof or frame.needs_input:
                    break
                piece = frame.decompress(b"", _OUT)
        except zstd.ZstdError as error:
            raise _Broken(offset, "a zstd stream", str(error)) from None
        data = b""
        if frame.eof:
            data, frame = frame.unused_data, None
        if not data:
            data = next(chunks, b"")
            offset += len(data)
    if frame is not None:
        raise _Broken(offset, "the end of the zstd stream", "the end of the blob")
