"""Writing splitstreams, as cfsctl does.  The format is described in ``splitstream.py``."""

from __future__ import annotations

from array import array
from itertools import chain
from typing import TYPE_CHECKING, Protocol

from cfs_tags.errors import FormatError, UsageError
from cfs_tags.formats.splitstream import (
    CHUNK,
    HEADER,
    HEADER_SIZE,
    INFO,
    LG_BLOCKSIZE,
    MAGIC,
    MAX_SIZE,
    PIECE_SIZE,
    ZEROS,
    largest_body,
    zstd_library,
)
from cfs_tags.values import Algorithm, ObjectId, encodable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from _typeshed import ReadableBuffer as Buffer


class Writer:
    """Writes a splitstream as cfsctl does: the same order, the same deduplication, the same compression.

    With libzstd 1.5.7, which composefs-rs 0.9.4 is built with, the bytes equal those of cfsctl; with another one the
    two compressed sections may differ, and with them the digest of the file, but not its meaning.

    Args:
        algorithm: of all digests.
        content_type: what the stream is, see ``splitstream.CONTENT_TYPE_…``.
        table: where the digests of objects are kept until the end; None for memory.
    """

    __slots__ = (
        "_algorithm",
        "_block",
        "_body",
        "_compressor",
        "_content_type",
        "_counted",
        "_inflated",
        "_inline",
        "_named",
        "_objects",
        "_size",
        "_streams",
        "_taken",
    )

    def __init__(self, algorithm: Algorithm, content_type: int, table: Table | None = None) -> None:
        self._algorithm = algorithm
        self._content_type = content_type
        self._streams: dict[ObjectId, int] = {}
        self._objects = _Objects(algorithm.size, table if table is not None else _Memory())
        self._named: dict[str, int] = {}
        self._inline = bytearray()
        self._size = 0
        self._inflated = self._counted = 0
        self._block = -1
        self._body = bytearray()
        self._taken = 0
        self._compressor = zstd_library().ZstdCompressor()

    def add_named_ref(self, name: str, digest: ObjectId) -> None:
        """Refer to the stream (or EROFS image) with that digest by a name; the last of equal names counts.

        Raises:
            UsageError: a name that cannot be written, or a digest of another algorithm.
        """
        self._check(digest)
        if "\0" in name or not encodable(name):
            raise UsageError(
                "invalid-argument", argument="named ref", value=name, reason="has a character that cannot be written"
            )
        self._named[name] = self._streams.setdefault(digest, len(self._streams))

    def add_inline(self, data: Buffer) -> None:
        """Append bytes to the stream; neighbours become one chunk."""
        before = len(self._inline)
        self._inline += data
        self._size += len(self._inline) - before

    def add_external(self, digest: ObjectId, size: int) -> None:
        """Append an object of ``size`` bytes, which is stored beside the stream.

        Raises:
            UsageError: a digest of another algorithm.
        """
        self._check(digest)
        self._flush()
        self._size += size
        self._add(CHUNK.pack(self._objects.index(bytes.fromhex(digest))))

    def add_long_inline(self, size: int, pieces: Iterable[Buffer]) -> None:
        """Append ``size`` bytes that come in pieces, as one chunk that is not held in memory.

        What was added inline before must have been ended by an object, and what follows must be one: neighbours of this
        chunk would not be joined to it.
        """
        self._flush()
        self._size += size
        self._add(CHUNK.pack(-size))
        for piece in pieces:
            self._add(piece)

    def take_body(self) -> bytearray:
        """Hand over what there is of the compressed body, so that the writer need not keep it; see :meth:`finish_parts`."""
        taken, self._body = self._body, bytearray()
        self._taken += len(taken)
        return taken

    def finish(self) -> bytes:
        """The whole file.  The writer is used up.  Raises as :meth:`finish_parts`."""
        head, body = self.finish_parts()
        return b"".join((*head, body))

    def finish_parts(self) -> tuple[Iterator[Buffer], bytearray]:
        """What stands in the file before the body, in pieces, and the end of the body.  The writer is used up.

        Between the two belongs what :meth:`take_body` gave out, in its order.

        Raises:
            FormatError: it would be refused when it is read: too long, or with more content than its bytes may stand for.
        """
        self._flush()
        self._body += self._compressor.flush()
        body = self._body
        records = "".join([f"{index}:{name}\0" for name, index in sorted(self._named.items())])
        names = deflate(records.encode())
        streams = bytes.fromhex("".join(self._streams))
        # ranges touch, in this order: header, info, stream_refs, object_refs, named_refs, stream
        info = HEADER_SIZE
        refs = info + INFO.size
        after_streams = refs + len(streams)
        after_objects = after_streams + self._objects.table.size
        after_names = after_objects + len(names)
        end = after_names + self._taken + len(body)
        most = largest_body(self._taken + len(body))
        if self._counted > most:
            wanted = f"at most {most} bytes beside files of more than 64 bytes"
            raise FormatError(structure="splitstream body", offset=0, wanted=wanted, found=f"{self._counted} bytes")
        if end > MAX_SIZE:
            raise FormatError(structure="splitstream", offset=0, wanted=f"at most {MAX_SIZE} bytes", found=f"{end} bytes")
        header = HEADER.pack(MAGIC, 0, 0, self._algorithm.number, LG_BLOCKSIZE, info, refs) + INFO.pack(
            refs,
            after_streams,
            after_streams,
            after_objects,
            after_names,
            end,
            after_objects,
            after_names,
            self._content_type,
            self._size,
        )
        return chain((header, streams), self._objects.table.pieces(), (names,)), body

    def _check(self, digest: ObjectId) -> None:
        if len(digest) != self._algorithm.hex_length:
            reason = f"is not a {self._algorithm.value} digest"
            raise UsageError("invalid-argument", argument="object", value=digest, reason=reason)

    def _flush(self) -> None:
        if self._inline:
            self._add(CHUNK.pack(-len(self._inline)))
            self._add(self._inline)
            self._inline = bytearray()

    def _add(self, data: Buffer) -> None:
        """More of the body; of each block that is not all zeros all bytes count."""
        self._body += self._compressor.compress(data)
        view = memoryview(data)
        while view:
            block, begin = divmod(self._inflated, PIECE_SIZE)
            part = view[: PIECE_SIZE - begin]
            if block != self._block and part != ZEROS[: len(part)]:
                self._block = block
                self._counted += PIECE_SIZE
            self._inflated += len(part)
            view = view[len(part) :]


class Table(Protocol):
    """Bytes that are put in one after the other, and looked at again.

    Attributes:
        size: how many there are.
    """

    size: int

    def append(self, data: bytes) -> None:
        """Put bytes in."""

    def at(self, offset: int, size: int) -> bytes:
        """``size`` of the bytes from ``offset`` on."""

    def pieces(self) -> Iterator[Buffer]:
        """All of them, in pieces that are cut where no digest is."""


class _Memory:
    def __init__(self) -> None:
        self.size = 0
        self._data = bytearray()

    def append(self, data: bytes) -> None:
        self._data += data
        self.size += len(data)

    def at(self, offset: int, size: int) -> bytes:
        return bytes(self._data[offset : offset + size])

    def pieces(self) -> Iterator[Buffer]:
        yield self._data


class _Objects:
    """Digests, each once, in the order of first use, and their numbers; with little memory: a layer may have a million.

    Attributes:
        table: the digests, one after the other.
    """

    __slots__ = ("_mask", "_places", "_width", "table")

    def __init__(self, width: int, table: Table) -> None:
        self.table = table
        self._width = width
        self._mask = 255
        self._places = array("I", bytes(4 * 256))  # numbers, from 1, each where its digest says or the next free place after

    def index(self, digest: bytes) -> int:
        """The number of a digest, which is added where it is new."""
        width, table, places, mask = self._width, self.table, self._places, self._mask
        place = int.from_bytes(digest[:8], "little") & mask
        while number := places[place]:
            if table.at((number - 1) * width, width) == digest:
                return number - 1
            place = (place + 1) & mask
        table.append(digest)
        count = table.size // width
        places[place] = count
        if 2 * count > mask:
            self._grow()
        return count - 1

    def _grow(self) -> None:
        width = self._width
        self._mask = mask = 2 * self._mask + 1
        self._places = places = array("I", bytes(4)) * (mask + 1)
        number = 0
        for piece in self.table.pieces():
            view = memoryview(piece)
            for start in range(0, len(view), width):
                number += 1
                place = int.from_bytes(view[start : start + 8], "little") & mask
                while places[place]:
                    place = (place + 1) & mask
                places[place] = number


def deflate(text: bytes) -> bytes:
    """A section as cfsctl compresses it: one frame."""
    # cfsctl compresses as a stream whose length is not known, which decides the frame header; with nothing to compress
    # its library learns the length, zero, and says so in the header
    compressor = zstd_library().ZstdCompressor()
    start: bytes = compressor.compress(text) if text else b""
    rest: bytes = compressor.flush()
    return start + rest
