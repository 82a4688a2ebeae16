"""fs-verity digests: the names of objects.

The file is cut into blocks of 4096 bytes, the last one padded with zeros; each is hashed.  The hashes, one after the
other, are cut and hashed the same way, and so on, until one hash is left: the root hash.  A file of one block has the
hash of that block as its root; an empty file has a root of zeros.  The digest is the hash of this descriptor
(``struct fsverity_descriptor``, Linux 6.12, ``include/uapi/linux/fsverity.h``; all integers little-endian)::

    offset  size  field           value
         0     1  version         1
         1     1  hash_algorithm  1 = sha256, 2 = sha512
         2     1  log_blocksize   12
         3     1  salt_size       0
         4     4  sig_size        0
         8     8  data_size       length of the file in bytes
        16    64  root_hash       padded with zeros
        80    32  salt            zeros
       112   144  reserved        zeros
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cfs_tags.values import Algorithm, ObjectId

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

BLOCK_SIZE = 4096
"""Bytes in a block, of the file and of the hash tree."""

_BATCH = 256 * BLOCK_SIZE
"""Bytes hashed before their hashes move up the tree: what bounds the memory of a measurement."""


def measure(data: Buffer, algorithm: Algorithm) -> ObjectId:
    """The fs-verity digest of ``data`` (bytes, bytearray, memoryview or mmap), with ``algorithm``."""
    import hashlib

    hash_ = hashlib.sha256 if algorithm is Algorithm.SHA256 else hashlib.sha512
    with memoryview(data) as given, given.cast("B") as view:
        length = len(view)
        if not 0 < length <= BLOCK_SIZE // algorithm.size * BLOCK_SIZE:
            measurer = Measurer(algorithm)
            measurer.update(view)
            return measurer.digest()
        # most files: the hashes of their blocks fill one block at most, so there is no tree to keep
        whole = length & -BLOCK_SIZE
        hashes = [hash_(view[i : i + BLOCK_SIZE]).digest() for i in range(0, whole, BLOCK_SIZE)]
        if whole < length:
            hashes.append(hash_(bytes(view[whole:]).ljust(BLOCK_SIZE, b"\0")).digest())
    root = hashes[0] if len(hashes) == 1 else hash_(b"".join(hashes).ljust(BLOCK_SIZE, b"\0")).digest()
    return ObjectId(hash_(_descriptor(root, length, algorithm)).hexdigest())


def _descriptor(root: bytes, length: int, algorithm: Algorithm) -> bytes:
    return b"".join(
        (
            bytes((1, algorithm.number, 12, 0, 0, 0, 0, 0)),
            length.to_bytes(8, "little"),
            root.ljust(64 + 32 + 144, b"\0"),
        )
    )


class Measurer:
    """The fs-verity digest of a file that comes in pieces of any size.

    Takes about 20 KiB of memory, and 4096 bytes more for every level of the hash tree, however long the file is.
    """

    __slots__ = ("_algorithm", "_counts", "_hash", "_levels", "_partial", "_size")

    def __init__(self, algorithm: Algorithm) -> None:
        import hashlib

        self._algorithm = algorithm
        self._hash = hashlib.sha256 if algorithm is Algorithm.SHA256 else hashlib.sha512
        self._size = 0
        self._partial = bytearray()
        # one entry a level, from the hashes of data blocks up: hashes that do not fill a block yet, hashes ever seen
        self._levels: list[bytearray] = []
        self._counts: list[int] = []

    def update(self, data: Buffer) -> None:
        """Take the next bytes of the file."""
        with memoryview(data) as given, given.cast("B") as view:
            length = len(view)
            self._size += length
            start = 0
            if self._partial:
                start = min(BLOCK_SIZE - len(self._partial), length)
                self._partial += view[:start]
                if len(self._partial) < BLOCK_SIZE:
                    return
                self._push(0, self._hash(self._partial).digest())
                self._partial.clear()
            whole = start + (length - start) // BLOCK_SIZE * BLOCK_SIZE
            hash_ = self._hash
            for batch in range(start, whole, _BATCH):
                ends = min(batch + _BATCH, whole)
                self._push(0, b"".join([hash_(view[i : i + BLOCK_SIZE]).digest() for i in range(batch, ends, BLOCK_SIZE)]))
            self._partial += view[whole:]

    def update_zeros(self, count: int) -> None:
        """Take ``count`` bytes of zeros; the work grows with the logarithm of it."""
        first = min(-len(self._partial) % BLOCK_SIZE, count)
        self.update(bytes(first))
        blocks, last = divmod(count - first, BLOCK_SIZE)
        if blocks:
            self._size += blocks * BLOCK_SIZE
            self._repeat(0, self._hash(bytes(BLOCK_SIZE)).digest(), blocks)
        self.update(bytes(last))

    def digest(self) -> ObjectId:
        """The digest of what was taken so far; more may follow."""
        return ObjectId.of_bytes(self._hash(_descriptor(self._root(), self._size, self._algorithm)).digest())

    def _push(self, level: int, hashes: bytes) -> None:
        """Add hashes to a level; every block that they fill becomes one hash of the level above."""
        if level == len(self._levels):
            self._levels.append(bytearray())
            self._counts.append(0)
        self._counts[level] += len(hashes) // self._algorithm.size
        pending = self._levels[level]
        pending += hashes
        full = len(pending) // BLOCK_SIZE * BLOCK_SIZE
        if full:
            above = b"".join([self._hash(pending[i : i + BLOCK_SIZE]).digest() for i in range(0, full, BLOCK_SIZE)])
            del pending[:full]
            self._push(level + 1, above)

    def _repeat(self, level: int, hash_: bytes, count: int) -> None:
        """Add one hash ``count`` times to a level."""
        in_block = BLOCK_SIZE // self._algorithm.size
        pending = len(self._levels[level]) // self._algorithm.size if level < len(self._levels) else 0
        first = min(-pending % in_block, count)
        if first:
            self._push(level, hash_ * first)
        blocks, last = divmod(count - first, in_block)
        if blocks:
            if level == len(self._levels):
                self._push(level, b"")
            self._counts[level] += blocks * in_block
            self._repeat(level + 1, self._hash(hash_ * in_block).digest(), blocks)
        if last:
            self._push(level, hash_ * last)

    def _root(self) -> bytes:
        """The root hash, computed beside the levels so that measuring can go on."""
        carried = self._hash(self._partial.ljust(BLOCK_SIZE, b"\0")).digest() if self._partial else b""
        for pending, count in zip(self._levels, self._counts, strict=True):
            hashes = bytes(pending) + carried
            if count + (1 if carried else 0) == 1:
                return hashes
            carried = self._hash(hashes.ljust(BLOCK_SIZE, b"\0")).digest() if hashes else b""
        return carried
