"""Splitstreams: a byte stream of which the large parts are objects of their own.

The file, all integers little-endian (composefs-rs 0.9.4, ``splitstream.rs``)::

    header, current layout         header, old layout (bootc up to 1.15)     info, where the info range says
    offset  size  field            offset  size  field                       offset  size  field
         0    11  magic                 0    16  info range                       0    16  stream_refs range
        11     1  version = 0          16     2  flags                           16    16  object_refs range
        12     2  flags                18    11  magic                           32    16  stream range
        14     1  algorithm            29     1  version = 0                     48    16  named_refs range
        15     1  lg_blocksize         30     1  algorithm                       64     8  content_type
        16    16  info range           31     1  lg_blocksize                    72     8  stream_size

A range is two u64, start and end, from the start of the file.  ``stream_refs`` and ``object_refs`` are digests, one
after the other; ``named_refs`` is one zstd frame of records ``<index into stream_refs>:<name>`` that each end in NUL;
``stream`` (here: the body) is one zstd frame of chunks, each an i64 ``n``: below zero, ``-n`` inline bytes follow;
otherwise it stands for the content of ``object_refs[n]``.  ``stream_size`` counts inline bytes and sizes of external
objects.  Flags, and what follows the 80 bytes of the info section, are left for the future and ignored.

Reading takes any bytes-like object and copies nothing but names, so the file may be a :class:`mmap.mmap`.  Writing is in
``splitwriter.py``.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from struct import Struct
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from cfs_tags.errors import FormatError, UnsupportedError
from cfs_tags.values import Algorithm, ObjectId

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from _typeshed import ReadableBuffer as Buffer

MAX_SIZE = 1 << 30
"""Bytes of the longest splitstream that is read.

A layer has 64 bytes in it for each large file, and its headers compressed: 16 million files fit.  A file of any size that takes
no room on the disk is quickly made, and reading it takes memory."""

CONTENT_TYPE_MANIFEST = int.from_bytes(b"ocimanif", "little")
"""An image manifest: one external object, the manifest as fetched."""

CONTENT_TYPE_CONFIG = int.from_bytes(b"ociconfg", "little")
"""An image config: one external object, the config as fetched."""

CONTENT_TYPE_LAYER = int.from_bytes(b"ocilayer", "little")
"""A layer: an uncompressed tar, small files inline."""

CONTENT_TYPE_BLOB = int.from_bytes(b"oci_blob", "little")
"""A layer that is no tar: one external object."""

MAX_NAMED_REFS = 4 << 20
"""Bytes of named refs, decompressed, that are read.  A manifest that a registry takes (4 MiB) cannot name more."""

_MAX_NAMED_RATIO = 16
"""Bytes of named refs for each byte that they are compressed to, beyond 16 KiB: names have digests in them."""

_MAX_BODY_RATIO = 1000
"""Most bytes of a body for each compressed byte, beyond 16 MiB.

The most regular layers, headers of files of one size and owner, come to 200.  Zeros, which may follow a tar's end, are left
out of it: a frame has at most 32,768 of them for each of its bytes, and they are inflated in no time."""

PIECE_SIZE = 64 << 10
"""Bytes of the longest piece of inline content that :func:`chunks` gives out."""

ZEROS = bytes(PIECE_SIZE)
"""A block of an inflated body that does not count in what a body is inflated to; blocks are counted from its beginning."""

MAGIC = b"SplitStream"
HEADER = Struct("<11sBHBBQQ")
_OLD_HEADER = Struct("<QQH11sBBB")
INFO = Struct("<10Q")
CHUNK = Struct("<q")
HEADER_SIZE = 32
LG_BLOCKSIZE = 12
_FREE_NAMES = 16 << 10
_FREE_BODY = 16 << 20
_FREE_PARTS = 1000
_FREE_COPIES = 8
_HEADER_OF_FILE = 512
_STRUCTURE = "splitstream"
_BODY = "splitstream body"
_NAMES = "splitstream named refs"

# the body of a stream that is one external object, as libzstd's streaming compressor writes it at every level
_SOLE_BODY = bytes.fromhex("28b52ffd 00 58 410000 0000000000000000")


class SplitStream:
    """A parsed splitstream.  It keeps views of the bytes that it was parsed from; :meth:`release` lets go of them.

    Attributes:
        layout: of the header, ``"current"`` or ``"old"``.
        algorithm: of every digest in it.
        content_type: what the stream is, see ``CONTENT_TYPE_…``.
        stream_size: bytes of the whole stream, inline and external, as the file says.
        named_refs: name to digest, in the order of the file (cfsctl sorts by name).  Digests are of splitstream
            objects, or of EROFS images where the name starts with ``composefs.image``.
        raw_stream_refs: digests of the streams that are referred to, one after the other.
        raw_object_refs: digests of the objects that the body is made of, one after the other.
        body: the compressed chunks.
    """

    __slots__ = (
        "algorithm",
        "body",
        "content_type",
        "layout",
        "named_refs",
        "raw_object_refs",
        "raw_stream_refs",
        "stream_size",
    )

    def __init__(
        self,
        layout: Literal["current", "old"],
        algorithm: Algorithm,
        content_type: int,
        stream_size: int,
        named_refs: Mapping[str, ObjectId],
        raw_stream_refs: memoryview,
        raw_object_refs: memoryview,
        body: memoryview,
    ) -> None:
        self.layout = layout
        self.algorithm = algorithm
        self.content_type = content_type
        self.stream_size = stream_size
        self.named_refs = named_refs
        self.raw_stream_refs = raw_stream_refs
        self.raw_object_refs = raw_object_refs
        self.body = body

    @property
    def stream_refs(self) -> tuple[ObjectId, ...]:
        """The digests in ``raw_stream_refs``."""
        return tuple(_digests(self.raw_stream_refs, self.algorithm.hex_length))

    @property
    def object_refs(self) -> tuple[ObjectId, ...]:
        """The digests in ``raw_object_refs``, each once, in the order of first use."""
        return tuple(_digests(self.raw_object_refs, self.algorithm.hex_length))

    def release(self) -> None:
        """Let go of the bytes that this was parsed from, so that a mapping can be closed.  Named refs stay readable."""
        self.raw_stream_refs.release()
        self.raw_object_refs.release()
        self.body.release()


def parse(data: Buffer, algorithm: Algorithm | None = None) -> SplitStream:
    """Read a splitstream: everything but the chunks of its body, for which see :func:`chunks`.

    Args:
        data: the whole file.
        algorithm: what the repository uses; None takes any.

    Raises:
        FormatError: the bytes are no splitstream, or one for another algorithm.
        UnsupportedError: of a version above 0.
        UnsupportedError: hashed in a way that is not known here.
    """
    view = memoryview(data)
    layout, found, info = _sections(view, algorithm)
    stream_start, stream_end, object_start, object_end, body_start, body_end, names_start, names_end, kind, size = info
    stream_refs = _array(view, "stream_refs", stream_start, stream_end, found.size)
    object_refs = _array(view, "object_refs", object_start, object_end, found.size)
    body = _section(view, "stream", body_start, body_end)
    names = _named_refs(_section(view, "named_refs", names_start, names_end), stream_refs, found)
    return SplitStream(layout, found, kind, size, names, stream_refs, object_refs, body)


def looks_like_one(head: bytes) -> bool:
    """Whether a file that begins with these bytes (32 or more) has the magic of a splitstream, in either header."""
    return MAGIC in (head[:11], head[18:29])


def salvage_refs(data: Buffer, algorithm: Algorithm) -> tuple[bytes, bytes]:
    """What a damaged or newer splitstream still seems to refer to: for a collector that must rather keep too much.

    Neither magic, version, names nor body are looked at, and both headers are tried: if the numbers of an info section lead
    to arrays of digests, these are taken.

    Args:
        data: the whole file.
        algorithm: what the repository uses.

    Returns:
        ``stream_refs`` and ``object_refs``: digests of ``algorithm.size`` bytes, one after the other; both empty where
        nothing can be read.
    """
    view = memoryview(data)
    streams, objects = b"", b""
    if len(view) >= HEADER_SIZE:
        for start, end in (HEADER.unpack_from(view)[5:], _OLD_HEADER.unpack_from(view)[:2]):
            if end - start < INFO.size or end > len(view):
                continue
            info = INFO.unpack_from(view, start)
            with suppress(FormatError):
                streams += bytes(_array(view, "stream_refs", info[0], info[1], algorithm.size))
            with suppress(FormatError):
                objects += bytes(_array(view, "object_refs", info[2], info[3], algorithm.size))
    return streams, objects


def chunks(stream: SplitStream | Buffer) -> Iterator[bytes | ObjectId]:
    """The content of a splitstream, in order: inline bytes as ``bytes``, each external object as its digest.

    Work is bounded by the bytes of the stream: a body is not inflated beyond :data:`_MAX_BODY_RATIO`, and an object that comes
    again is paid for by inline bytes, as a file is by its header.  Memory is bounded whatever the body claims: inline
    content comes in pieces of at most ``PIECE_SIZE`` bytes (so one chunk may be several pieces), and a window of the
    compression is 128 MiB at most.

    The inline bytes must not exceed ``stream_size``, nor miss it where nothing is external; for the whole sum see
    :func:`check_size`.

    Args:
        stream: parsed, or the bytes of one.

    Raises:
        FormatError: as :func:`parse`; or chunks that are cut short, too many for ``stream_size`` or for their stream, or
            name no object.
    """
    if not isinstance(stream, SplitStream):
        stream = parse(stream)
    return _chunks(stream)


def _chunks(stream: SplitStream) -> Iterator[bytes | ObjectId]:
    width = stream.algorithm.size
    refs = stream.raw_object_refs
    count = len(refs) // width
    inline = at = 0  # at: bytes of the body before the buffer, for messages
    external = inside = 0  # chunks of objects, and inline bytes
    free = _FREE_PARTS + _FREE_COPIES * count
    pieces = _inflate(stream.body)
    buffer, pos = b"", 0
    unpack = CHUNK.unpack_from
    while True:
        here = len(buffer) - pos
        if inline and here:
            take = min(inline, here)
            yield buffer[pos : pos + take]
            pos += take
            inline -= take
        elif not inline and here >= 8:
            n: int = unpack(buffer, pos)[0]
            if n < 0:
                inline = -n
                inside += inline
                if inside > stream.stream_size:
                    _malformed(at + pos, f"at most {stream.stream_size} bytes", f"{inside} inline", _BODY)
            elif n < count:
                external += 1
                if external > free and (external - free) * _HEADER_OF_FILE > inside:
                    _too_many(at + pos, external, inside)
                yield ObjectId(refs[n * width : (n + 1) * width].hex())
            else:
                _malformed(at + pos, f"an index below {count}", str(n), _BODY)
            pos += 8
        else:
            piece = next(pieces, b"")
            if not piece:
                _check_end(at + pos, inline, here)
                break
            at += pos
            buffer, pos = buffer[pos:] + piece, 0
    if inside != stream.stream_size and not external:
        _malformed(at + pos, f"{stream.stream_size} bytes in all", str(inside), _BODY)


def check_size(stream: SplitStream, sizes: Sequence[int]) -> None:
    """Compare ``stream_size`` with the bytes that the parts of a splitstream have.  None of the content is copied.

    Args:
        stream: parsed.
        sizes: of the objects in ``raw_object_refs``, in bytes and in that order.

    Raises:
        FormatError: as :func:`chunks`; or the sum is another one.
    """
    count = len(sizes)
    free = _FREE_PARTS + _FREE_COPIES * count
    total = external = inside = 0
    skip = at = 0  # inline bytes that are still to come; bytes of the body before the buffer, for messages
    buffer = b""
    unpack = CHUNK.unpack_from
    for piece in _inflate(stream.body):
        buffer += piece
        pos, last = skip, len(buffer) - 8
        # a layer has two chunks for each of its files
        while pos <= last:
            n: int = unpack(buffer, pos)[0]
            pos += 8
            if n < 0:
                inside -= n
                pos -= n
            elif n < count:
                external += 1
                if external > free and (external - free) * _HEADER_OF_FILE > inside:
                    _too_many(at + pos - 8, external, inside)
                total += sizes[n]
            else:
                _malformed(at + pos - 8, f"an index below {count}", str(n), _BODY)
        at += min(pos, len(buffer))
        skip, buffer = max(pos - len(buffer), 0), buffer[pos:]
    _check_end(at, skip, len(buffer))
    if total + inside != stream.stream_size:
        _malformed(at, f"{stream.stream_size} bytes in all", str(total + inside), _BODY)


def _too_many(at: int, external: int, inside: int) -> NoReturn:
    _malformed(at, "a header for each file", f"{external} files in {inside} inline bytes", _BODY)


def _check_end(at: int, inline: int, rest: int) -> None:
    """Refuse a body that ends within a chunk: ``inline`` bytes of it are missing, or ``rest`` bytes are there of a number."""
    if inline:
        _malformed(at + rest, f"{inline} more inline bytes", "the end", _BODY)
    if rest:
        _malformed(at, "a chunk", f"{rest} bytes", _BODY)


def largest_body(compressed: int) -> int:
    """Bytes that a body of ``compressed`` bytes is inflated to at most, blocks of zeros left out (:data:`ZEROS`)."""
    return _FREE_BODY + _MAX_BODY_RATIO * compressed


def sole_object(stream: SplitStream | Buffer) -> ObjectId:
    """The one object that a manifest, config or blob stream consists of.

    Raises:
        FormatError: as :func:`parse`; or the stream is anything but exactly one external object.
    """
    if not isinstance(stream, SplitStream):
        stream = parse(stream)
    if len(stream.raw_object_refs) != stream.algorithm.size:
        count = len(stream.raw_object_refs) // stream.algorithm.size
        _malformed(0, "exactly one object", str(count))
    if stream.body != _SOLE_BODY:
        found = chunks(stream)
        if not isinstance(next(found, b""), ObjectId) or next(found, None) is not None:
            _malformed(0, "one external object and nothing else", "something else", _BODY)
    return ObjectId(stream.raw_object_refs.hex())


# -- sections ----------------------------------------------------------------------------------------------------------


def _sections(view: memoryview, wanted: Algorithm | None) -> tuple[Literal["current", "old"], Algorithm, tuple[int, ...]]:
    """Header and info: the layout, the algorithm, and the ten numbers of the info section."""
    if len(view) < HEADER_SIZE:
        _malformed(0, f"a header of {HEADER_SIZE} bytes", f"{len(view)} bytes")
    layout: Literal["current", "old"] = "current"
    magic, version, _, number, lg_blocksize, start, end = HEADER.unpack_from(view)
    at = 11
    if magic != MAGIC:
        layout = "old"
        start, end, _, old_magic, version, number, lg_blocksize = _OLD_HEADER.unpack_from(view)
        at = 29
        if old_magic != MAGIC:
            _malformed(0, f"the magic {MAGIC.decode()!r} at byte 0 or 18", magic.hex(" "))
    if version != 0:
        raise UnsupportedError("unsupported-version", structure=_STRUCTURE, wanted="0", found=str(version))
    if lg_blocksize != LG_BLOCKSIZE:
        raise UnsupportedError(
            "unsupported-feature", structure=_STRUCTURE, features=(f"fs-verity blocks of 2^{lg_blocksize} bytes",)
        )
    if number == Algorithm.SHA512.number:
        found = Algorithm.SHA512
    elif number == Algorithm.SHA256.number:
        found = Algorithm.SHA256
    else:
        raise UnsupportedError("unsupported-feature", structure=_STRUCTURE, features=(f"fs-verity hash algorithm {number}",))
    if wanted is not None and found is not wanted:
        _malformed(at + (3 if layout == "current" else 1), f"algorithm {wanted.value}", found.value)
    if end - start < INFO.size or end > len(view):
        wanted_range = f"an info section of {INFO.size} bytes or more within {len(view)} bytes"
        _malformed(16 if layout == "current" else 0, wanted_range, f"bytes {start} to {end}")
    return layout, found, INFO.unpack_from(view, start)


def _section(view: memoryview, name: str, start: int, end: int) -> memoryview:
    # an empty section may be anywhere: cfsctl reads nothing then
    if end < start or (end > len(view) and end > start):
        _malformed(0, f"{name} within {len(view)} bytes", f"bytes {start} to {end}")
    return view[start:end]


def _array(view: memoryview, name: str, start: int, end: int, width: int) -> memoryview:
    section = _section(view, name, start, end)
    if len(section) % width:
        _malformed(start, f"{name} in digests of {width} bytes", f"{len(section)} bytes")
    return section


def _digests(raw: memoryview, width: int) -> list[ObjectId]:
    text = raw.hex()
    return [ObjectId(text[i : i + width]) for i in range(0, len(text), width)]


def _named_refs(section: memoryview, stream_refs: memoryview, algorithm: Algorithm) -> dict[str, ObjectId]:
    zstd = zstd_library()
    # frames that ask for a window beyond what they may hold are refused before it is allocated
    decompressor = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: 24})
    try:
        most = min(MAX_NAMED_REFS, _FREE_NAMES + _MAX_NAMED_RATIO * len(section))
        raw: bytes = decompressor.decompress(section, max_length=most + 1)
    except zstd.ZstdError as error:
        _malformed(0, "a zstd frame", str(error), _NAMES)
    if len(raw) > most:
        _malformed(0, f"at most {most} bytes", "more", _NAMES)
    if not decompressor.eof or decompressor.unused_data:
        _malformed(0, "one whole zstd frame", "a part of one" if not decompressor.eof else "bytes behind it", _NAMES)
    if not raw:
        return {}
    if raw[-1]:
        _malformed(len(raw), "a NUL at the end", f"byte {raw[-1]}", _NAMES)
    digests = _digests(stream_refs, algorithm.hex_length)
    count = len(digests)
    result: dict[str, ObjectId] = {}
    for record in raw[:-1].split(b"\0"):
        index, colon, name = record.partition(b":")
        # 20 digits hold any u64, and keep int() from being asked for a number of millions
        if not colon or not index.isdigit() or len(index) > 20:
            _malformed(0, "<index>:<name>", repr(record[:100]), _NAMES)
        number = int(index)
        if number >= count:
            _malformed(0, f"an index below {count}", str(number), _NAMES)
        try:
            result[name.decode()] = digests[number]
        except UnicodeDecodeError:
            _malformed(0, "a name in UTF-8", repr(name[:100]), _NAMES)
    return result


def _malformed(offset: int, wanted: str, found: str, structure: str = _STRUCTURE) -> NoReturn:
    raise FormatError(structure=structure, offset=offset, wanted=wanted, found=found)


# -- compression -------------------------------------------------------------------------------------------------------


def zstd_library() -> Any:
    """The module, loaded where it is needed: most commands read no compressed section."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


def _inflate(body: memoryview) -> Iterator[bytes]:
    """Decompress the one frame of a body, in pieces that lie within blocks of ``PIECE_SIZE`` bytes, none of them empty."""
    zstd = zstd_library()
    decompressor = zstd.ZstdDecompressor()
    position = given = counted = 0
    most = largest_body(len(body))
    try:
        while not decompressor.eof:
            taken: bytes | memoryview = b""
            if decompressor.needs_input:
                # in slices: what the decompressor does not need at once it would copy
                taken = body[position : position + PIECE_SIZE]
                position += len(taken)
                if not taken:
                    _malformed(position, "the end of a zstd frame", "the end of the section", _BODY)
            piece = decompressor.decompress(taken, max_length=PIECE_SIZE - given % PIECE_SIZE)
            given += len(piece)
            counted += len(piece) if piece != ZEROS[: len(piece)] else 0
            if counted > most:
                _malformed(position, f"at most {most} bytes inflated", "more", _BODY)
            if piece:
                yield piece
    except zstd.ZstdError as error:
        _malformed(position, "a zstd frame", str(error), _BODY)
    if decompressor.unused_data or position < len(body):
        _malformed(position, "the end of the section", "bytes behind the zstd frame", _BODY)
