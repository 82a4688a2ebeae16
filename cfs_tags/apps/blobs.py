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

_FIRST = 4 << 10
"""Bytes of the first slice that a part of a compressed stream is given."""
_MAX_PARTS = 1000
_LEAST = 64
"""Bytes of content that each part beyond the first :data:`_MAX_PARTS` must have, on the average.  Parts of a tar have 512 or
more; a blob of nothing but tiny parts is there to take time."""
_WINDOW_LOG = 26
"""Windows of zstd are memory: of 64 MiB at most, which level 21 asks for; level 22 asks for twice that."""


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
    while len(first) < len(_ZSTD) and (more := next(chunks, b"")):
        first += more
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
    feed = _Feed(data, chunks)
    member: Any = None
    while True:
        if member is None:
            feed.skip_zeros()
            if feed.ended:
                return
            if feed.next_byte != _GZIP[0]:
                raise _Broken(feed.offset, "the end of the gzip stream", "bytes behind it")
            member = zlib.decompressobj(31)
            feed.begin()
        try:
            piece = member.decompress(member.unconsumed_tail or feed.take(), _OUT)
        except zlib.error as error:
            raise _Broken(feed.offset, "a gzip stream", str(error)) from None
        if piece:
            feed.came_out(len(piece))
            yield piece
        if member.eof:
            feed.end(len(member.unused_data))
            member = None
        elif not member.unconsumed_tail and len(piece) < _OUT and feed.ended:
            raise _Broken(feed.offset, "the end of the gzip stream", "the end of the blob")


def _unzstd(data: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """One frame or several, skippable ones among them."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    options: dict[Any, int] = {zstd.DecompressionParameter.window_log_max: _WINDOW_LOG}
    feed = _Feed(data, chunks)
    frame: Any = None
    while True:
        if frame is None:
            if feed.ended:
                return
            frame = zstd.ZstdDecompressor(options=options)
            feed.begin()
        try:
            piece = frame.decompress(feed.take() if frame.needs_input else b"", _OUT)
        except zstd.ZstdError as error:
            raise _Broken(feed.offset, "a zstd stream", str(error)) from None
        if piece:
            feed.came_out(len(piece))
            yield piece
        if frame.eof:
            feed.end(len(frame.unused_data))
            frame = None
        elif frame.needs_input and feed.ended:
            raise _Broken(feed.offset, "the end of the zstd stream", "the end of the blob")


class _Feed:
    """The bytes of a compressed stream of many parts (gzip members, zstd frames), given out in slices.

    A decompressor hands back what is behind the end of its part as a copy.  So the first slices of a part are short: else a
    blob of nothing but tiny parts would be copied once for each.
    """

    def __init__(self, data: bytes, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._data = data
        self._view = memoryview(data)
        self._position = 0
        self._before = 0
        self._step = _FIRST
        self._parts = 0
        self._content = 0

    @property
    def offset(self) -> int:
        """Bytes that were given out, for messages."""
        return self._before + self._position

    @property
    def ended(self) -> bool:
        """Whether nothing is left."""
        if self._position == len(self._data):
            self._before += self._position
            self._data = next(self._chunks, b"")
            self._view = memoryview(self._data)
            self._position = 0
        return not self._data

    @property
    def next_byte(self) -> int:
        """The first byte that is left."""
        return self._data[self._position]

    def skip_zeros(self) -> None:
        """Pass over zeros."""
        while not self.ended and not self.next_byte:
            self._position = len(self._data) - len(self._data[self._position :].lstrip(b"\0"))

    def begin(self) -> None:
        """A part starts."""
        self._step = _FIRST
        self._parts += 1
        if self._parts > _MAX_PARTS and (self._parts - _MAX_PARTS) * _LEAST > self._content:
            raise _Broken(self.offset, f"at most {_MAX_PARTS} parts without content", "more")

    def came_out(self, size: int) -> None:
        """There is content of ``size`` bytes."""
        self._content += size

    def take(self) -> memoryview:
        """The next bytes; none at the end."""
        if self.ended:
            return self._view
        taken = self._view[self._position : self._position + self._step]
        self._position += len(taken)
        self._step = min(2 * self._step, CHUNK)
        return taken

    def end(self, unused: int) -> None:
        """A part ended, ``unused`` bytes before the end of what was taken last."""
        self._position -= unused
