"""Writing splitstreams, as cfsctl does.  The format is described in ``splitstream.py``."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from cfs_tags.errors import InvalidArgument
from cfs_tags.formats.splitstream import CHUNK, HEADER, HEADER_SIZE, INFO, LG_BLOCKSIZE, MAGIC, zstd_library
from cfs_tags.values import encodable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed import ReadableBuffer as Buffer

    from cfs_tags.values import Algorithm, ObjectId

__all__ = ["Writer", "deflate"]


class Writer:
    """Writes a splitstream as cfsctl does: the same order, the same deduplication, the same compression.

    With libzstd 1.5.7, which composefs-rs 0.9.4 is built with, the bytes equal those of cfsctl; with another one the
    two compressed sections may differ, and with them the digest of the file, but not its meaning.
    """

    __slots__ = (
        "_algorithm",
        "_body",
        "_compressor",
        "_content_type",
        "_inline",
        "_named",
        "_objects",
        "_size",
        "_streams",
        "_taken",
    )

    def __init__(self, algorithm: Algorithm, content_type: int) -> None:
        self._algorithm = algorithm
        self._content_type = content_type
        self._streams: dict[ObjectId, int] = {}
        self._objects = _Objects(algorithm.size)
        self._named: dict[str, int] = {}
        self._inline = bytearray()
        self._size = 0
        self._body = bytearray()
        self._taken = 0
        self._compressor = zstd_library().ZstdCompressor()

    def add_named_ref(self, name: str, digest: ObjectId) -> None:
        """Refer to the stream (or EROFS image) with that digest by a name; the last of equal names counts.

        Raises:
            InvalidArgument: a name that cannot be written, or a digest of another algorithm.
        """
        self._check(digest)
        if "\0" in name or not encodable(name):
            raise InvalidArgument(argument="named ref", value=name, reason="has a character that cannot be written")
        self._named[name] = self._streams.setdefault(digest, len(self._streams))

    def add_inline(self, data: Buffer) -> None:
        """Append bytes to the stream; neighbours become one chunk."""
        before = len(self._inline)
        self._inline += data
        self._size += len(self._inline) - before

    def add_external(self, digest: ObjectId, size: int) -> None:
        """Append an object of ``size`` bytes, which is stored beside the stream.

        Raises:
            InvalidArgument: a digest of another algorithm.
        """
        self._check(digest)
        self._flush()
        self._size += size
        index = self._objects.index(bytes.fromhex(digest))
        self._body += self._compressor.compress(CHUNK.pack(index))

    def add_long_inline(self, size: int, pieces: Iterable[Buffer]) -> None:
        """Append ``size`` bytes that come in pieces, as one chunk that is not held in memory.

        What was added inline before must have been ended by an object, and what follows must be one: neighbours of this
        chunk would not be joined to it.
        """
        self._flush()
        self._size += size
        self._body += self._compressor.compress(CHUNK.pack(-size))
        for piece in pieces:
            self._body += self._compressor.compress(piece)

    def take_body(self) -> bytearray:
        """Hand over what there is of the compressed body, so that the writer need not keep it; see :meth:`finish_parts`."""
        taken, self._body = self._body, bytearray()
        self._taken += len(taken)
        return taken

    def finish(self) -> bytes:
        """The whole file.  The writer is used up."""
        head, body = self.finish_parts()
        return b"".join((*head, body))

    def finish_parts(self) -> tuple[tuple[bytes | bytearray, ...], bytearray]:
        """What stands in the file before the body, in parts, and the end of the body.  The writer is used up.

        Between the two belongs what :meth:`take_body` gave out, in its order.
        """
        self._flush()
        self._body += self._compressor.flush()
        body = self._body
        records = "".join([f"{index}:{name}\0" for name, index in sorted(self._named.items())])
        names = deflate(records.encode())
        streams = bytes.fromhex("".join(self._streams))
        objects = self._objects.table
        # ranges touch, in this order: header, info, stream_refs, object_refs, named_refs, stream
        info = HEADER_SIZE
        refs = info + INFO.size
        after_streams = refs + len(streams)
        after_objects = after_streams + len(objects)
        after_names = after_objects + len(names)
        end = after_names + self._taken + len(body)
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
        return (header, streams, objects, names), body

    def _check(self, digest: ObjectId) -> None:
        if len(digest) != self._algorithm.hex_length:
            reason = f"is not a {self._algorithm.value} digest"
            raise InvalidArgument(argument="object", value=digest, reason=reason)

    def _flush(self) -> None:
        if self._inline:
            self._body += self._compressor.compress(CHUNK.pack(-len(self._inline)))
            self._body += self._compressor.compress(self._inline)
            self._inline = bytearray()


class _Objects:
    """Digests, each once, in the order of first use, and their numbers; with little memory: a layer may have a million.

    Attributes:
        table: the digests, one after the other.
    """

    __slots__ = ("_mask", "_places", "_width", "table")

    def __init__(self, width: int) -> None:
        self.table = bytearray()
        self._width = width
        self._mask = 255
        self._places = array("I", bytes(4 * 256))  # numbers, from 1, each where its digest says or the next free place after

    def index(self, digest: bytes) -> int:
        """The number of a digest, which is added where it is new."""
        width, table, places, mask = self._width, self.table, self._places, self._mask
        place = int.from_bytes(digest[:8], "little") & mask
        while number := places[place]:
            if table.startswith(digest, (number - 1) * width):
                return number - 1
            place = (place + 1) & mask
        table += digest
        count = len(table) // width
        places[place] = count
        if 2 * count > mask:
            self._grow(count)
        return count - 1

    def _grow(self, count: int) -> None:
        width, table = self._width, self.table
        self._mask = mask = 4 * self._mask + 3
        self._places = places = array("I", bytes(4 * (mask + 1)))
        for number in range(count):
            place = int.from_bytes(table[number * width : number * width + 8], "little") & mask
            while places[place]:
                place = (place + 1) & mask
            places[place] = number + 1


def deflate(text: bytes) -> bytes:
    """A section as cfsctl compresses it: one frame."""
    # cfsctl compresses as a stream whose length is not known, which decides the frame header; with nothing to compress
    # its library learns the length, zero, and says so in the header
    compressor = zstd_library().ZstdCompressor()
    start: bytes = compressor.compress(text) if text else b""
    rest: bytes = compressor.flush()
    return start + rest
