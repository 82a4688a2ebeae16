"""Blobs as they come: checked against size and digest while they are read, decompressed, with bounded memory.

The digest is judged before any other fault of a blob: of a damaged gzip stream one wants to know that it
is not what the manifest names, not at which byte the decompressor gave up.
"""

from __future__ import annotations

import re
import sys
import zlib
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from cfs_tags.errors import DamagedError, FormatError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from _typeshed import ReadableBuffer as Buffer

    from cfs_tags.formats.oci import Descriptor
    from cfs_tags.values import Digest

CHUNK = 256 << 10
"""Bytes that are read at once."""

_OUT = 1 << 20
"""Bytes that a decompressor gives out at once, at most."""

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_XZ = b"\xfd7zXZ\0"
_BZIP2 = re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)", re.DOTALL)  # the first block, or the end of an empty stream
MAGIC = 10
"""Bytes that tell how something is compressed."""
_OTHERS = {
    b"PK\x03\x04": "zip",
    b"\x5d\0\0": "lzma",
    b"LZIP": "lzip",
    b"\x1f\x9d": "compress",
    b"\x04\x22\x4d\x18": "lz4",
    b"7z\xbc\xaf": "7z",
    b"!<arch>": "ar",
    b"070701": "cpio",
    b"hsqs": "squashfs",
    _GZIP: "gzip once more",
    _ZSTD: "zstd once more",
    _XZ: "xz once more",
    b"BZh": "bzip2 once more",
}
"""What people take for an archive that can be read, by how it starts."""

_FIRST = 4 << 10
"""Bytes of the first slice that a part of a compressed stream is given."""
_MAX_PARTS = 1000
_LEAST = 64
"""Bytes of content that each part beyond the first :data:`_MAX_PARTS` must have, on the average.  Parts of a tar have 512 or
more; a blob of nothing but tiny parts is there to take time."""
_XZ_MEMORY = 128 << 20
"""Bytes that unpacking xz may take: level 9 takes 65 MiB."""
_WINDOW_LOG = 26
"""Windows of zstd are memory: of 64 MiB at most, which level 21 asks for; level 22 asks for twice that."""


class Reader(Protocol):
    """Bytes of a blob, from the beginning.  The caller that opened it closes it."""

    def read(self, size: int) -> bytes:
        """At most ``size`` of the next bytes; none at the end."""

    def close(self) -> None:
        """Let go of it."""


def hasher(digest: Digest) -> Any:
    """What computes digests of that kind.

    Raises:
        UnsupportedError: there is no such algorithm here.
    """
    import hashlib

    if digest.algorithm not in ("sha256", "sha384", "sha512"):
        raise UnsupportedError("unsupported-feature", structure="image", features=(f"digests by {digest.algorithm}",))
    return hashlib.new(digest.algorithm)


def checked(reader: Reader, digest: Digest, size: int | None, progress: Callable[[int], None] | None = None) -> Iterator[bytes]:
    """The bytes of a blob; at their end it is known that they are the right ones.

    Args:
        reader: gives the bytes.
        digest: what they must have.
        size: how many there must be; None where that is not known: the caller bounds them.
        progress: is called with the length of every piece.

    Raises:
        DamagedError: other bytes, or more or fewer.
    """
    found = hasher(digest)
    left = 0 if size is None else size
    while data := reader.read(CHUNK):
        if size is not None:
            left -= len(data)
            if left < 0:
                raise _wrong_size(digest, size, f"{size - left} or more")
        found.update(data)
        if progress is not None:
            progress(len(data))
        yield data
    if size is not None and left:
        raise _wrong_size(digest, size, str(size - left))
    text = f"{digest.algorithm}:{found.hexdigest()}"
    if text != digest:
        raise DamagedError("digest-mismatch", path=f"blob {digest}", wanted=digest, found=text)


def read_whole(reader: Reader, descriptor: Descriptor, limit: int, what: str) -> bytes:
    """A small blob, checked.

    Args:
        reader: gives the bytes.
        descriptor: what it must be.
        limit: bytes of the longest that is read.
        what: how errors call it.

    Raises:
        FormatError: longer than ``limit``.
        DamagedError: other bytes.
    """
    if descriptor.size > limit:
        raise FormatError(structure=what, offset=0, wanted=f"at most {limit} bytes", found=f"{descriptor.size} bytes")
    return b"".join(checked(reader, descriptor.digest, descriptor.size))


def read_document(reader: Reader, digest: Digest) -> bytes:
    """A manifest or index of which the digest alone is known.

    Raises:
        FormatError: longer than any manifest.
        DamagedError: other bytes.
    """
    from cfs_tags.formats import oci

    found, pieces, size = hasher(digest), [], 0
    while data := reader.read(CHUNK):
        size += len(data)
        if size > oci.MAX_MANIFEST:
            wanted = f"at most {oci.MAX_MANIFEST} bytes"
            raise FormatError(structure=f"manifest {digest}", offset=0, wanted=wanted, found="more")
        found.update(data)
        pieces.append(data)
    if found.hexdigest() != digest.hex:
        text = f"{digest.algorithm}:{found.hexdigest()}"
        raise DamagedError("digest-mismatch", path=f"blob {digest}", wanted=digest, found=text)
    return b"".join(pieces)


def compression(start: bytes) -> str:
    """How bytes that start like this are compressed: ``gzip``, ``zstd``, ``xz``, ``bzip2`` or ``none``.

    A tar starts with a name; none that is written starts like one of these.

    Args:
        start: the first :data:`MAGIC` bytes, or what there is of them.
    """
    if start.startswith(_GZIP):
        return "gzip"
    # a skippable frame is where zstd:chunked keeps its table of contents
    if start.startswith(_ZSTD) or (len(start) >= 4 and start[0] & 0xF0 == 0x50 and start[1:4] == b"\x2a\x4d\x18"):
        return "zstd"
    if start.startswith(_XZ):
        return "xz"
    return "bzip2" if _BZIP2.match(start) is not None else "none"


def decompressed(chunks: Iterator[bytes], digest: Digest, limit: int, what: str) -> Iterator[bytes]:
    """The uncompressed content of a layer; at its end it is known that it has the right diff_id.

    Args:
        chunks: the bytes of the blob, as :func:`checked` gives them.
        digest: the diff_id.
        limit: most bytes that come out.
        what: how errors call the layer.

    Raises:
        DamagedError: other content, or what ``chunks`` raises.
        FormatError: a damaged compression, or one that is cut short; longer than ``limit``.
    """
    found = hasher(digest)
    for data in uncompressed(chunks, limit, what):
        found.update(data)
        yield data
    text = f"{digest.algorithm}:{found.hexdigest()}"
    if text != digest:
        raise DamagedError("digest-mismatch", path=what, wanted=digest, found=text)


def uncompressed(chunks: Iterator[bytes], limit: int, what: str) -> Iterator[bytes]:
    """What comes out of a compression or of none, by how the bytes start.  Raises as :func:`decompressed`."""
    first = next(chunks, b"")
    while len(first) < MAGIC and (more := next(chunks, b"")):
        first += more
    kind = compression(first)
    return limited(_plain(first, chunks) if kind == "none" else _inflated(kind, first, chunks, what), limit, what)


def other_format(first: bytes) -> str | None:
    """The name of a format that is not read, by the first :data:`MAGIC` bytes; None where they are those of no known one."""
    return next((name for start, name in _OTHERS.items() if first.startswith(start)), None)


def limited(chunks: Iterator[bytes], limit: int, what: str) -> Iterator[bytes]:
    """The same bytes, ``limit`` of them at most.

    Raises:
        FormatError (layer-too-large): there are more.
    """
    total = 0
    for data in chunks:
        total += len(data)
        if total > limit:
            raise FormatError(
                code="layer-too-large", structure=what, offset=0, wanted=f"at most {limit} bytes uncompressed", found="more"
            )
        yield data


def _drained(chunks: Iterator[bytes], error: FormatError) -> NoReturn:
    """Raise ``error``; or, where the rest of the blob shows that it has the wrong digest, that."""
    for _ in chunks:
        pass
    raise error


def _wrong_size(digest: Digest, wanted: int, found: str) -> DamagedError:
    return DamagedError("digest-mismatch", path=f"blob {digest}", wanted=f"{wanted} bytes", found=f"{found} bytes")


def _plain(first: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    if first:
        yield first
    yield from chunks


def _inflated(kind: str, first: bytes, chunks: Iterator[bytes], what: str) -> Iterator[bytes]:
    try:
        yield from _unpacked(kind, first, chunks)
    except _Broken as broken:
        _drained(chunks, FormatError(structure=what, offset=broken.offset, wanted=broken.wanted, found=broken.found))


class _Broken(Exception):
    def __init__(self, offset: int, wanted: str, found: str) -> None:
        super().__init__(found)
        self.offset = offset
        self.wanted = wanted
        self.found = found


def _unpacked(kind: str, data: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The content of all parts: gzip members, zstd frames (skippable ones among them), streams of xz or bzip2.

    Zeros may follow parts of gzip, as tape archives have them, and of xz (xz file format, 2.2).
    """
    make, error = _decompressor(kind)
    feed = _Feed(data, chunks)
    part: Any = None
    while True:
        if part is None:
            if kind in ("gzip", "xz"):
                feed.skip_zeros()
            if feed.ended:
                return
            if kind == "gzip" and feed.next_byte != _GZIP[0]:
                raise _Broken(feed.offset, "the end of the gzip stream", "bytes behind it")
            part = make()
            feed.begin()
        try:
            piece = part.decompress(feed.take() if part.needs_input else b"", _OUT)
        except error as wrong:
            raise _Broken(feed.offset, f"{'an' if kind == 'xz' else 'a'} {kind} stream", str(wrong)) from None
        if piece:
            feed.came_out(len(piece))
            yield piece
        if part.eof:
            feed.end(len(part.unused_data))
            part = None
        elif part.needs_input and feed.ended:
            raise _Broken(feed.offset, f"the end of the {kind} stream", "the end of the blob")


class _GzipMember:
    """A decompressor of gzip with the methods of those of bz2, lzma and zstd: it keeps input that it has not used yet."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(31)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._member.eof

    @property
    def unused_data(self) -> bytes:
        return self._member.unused_data

    def decompress(self, data: Buffer, size: int) -> bytes:
        piece = self._member.decompress(self._member.unconsumed_tail or data, size)
        self.needs_input = not self._member.unconsumed_tail and len(piece) < size
        return piece


def _decompressor(kind: str) -> tuple[Callable[[], Any], type[Exception]]:
    """What makes decompressors of one part each, and what these raise.

    Raises:
        UnsupportedError: this Python was built without the library.
    """
    try:
        match kind:
            case "gzip":
                return _GzipMember, zlib.error
            case "zstd":
                if sys.version_info >= (3, 14):
                    from compression import zstd
                else:
                    from backports import zstd
                options: dict[Any, int] = {zstd.DecompressionParameter.window_log_max: _WINDOW_LOG}
                return partial(zstd.ZstdDecompressor, options=options), zstd.ZstdError
            case "xz":
                import lzma

                return partial(lzma.LZMADecompressor, lzma.FORMAT_XZ, memlimit=_XZ_MEMORY), lzma.LZMAError
            case _:
                import bz2

                return bz2.BZ2Decompressor, OSError
    except ImportError:
        raise UnsupportedError("unsupported-feature", structure="blob", features=(kind,)) from None


class Unpacked:
    """A blob that is read uncompressed.

    Args:
        reader: gives the bytes of the blob; it is closed along.
        limit: most bytes that come out.
        what: how errors call it.
    """

    def __init__(self, reader: Reader, limit: int, what: str) -> None:
        self._reader = reader
        self._pieces = uncompressed(iter(lambda: reader.read(CHUNK), b""), limit, what)
        self._rest = memoryview(b"")

    def read(self, size: int) -> bytes:
        """At most ``size`` of the next bytes; none at the end.

        Raises:
            FormatError: as :func:`uncompressed`.
        """
        if not self._rest:
            self._rest = memoryview(next(self._pieces, b""))
        taken, self._rest = self._rest[:size], self._rest[size:]
        return bytes(taken)

    def close(self) -> None:
        """Let go of the blob."""
        self._reader.close()


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
