"""EROFS images as composefs makes them: their structures, and which objects they need.  Their files: ``erofstree.py``.

An image holds metadata only (composefs-rs 0.9.4, ``erofs/format.rs`` and ``erofs/reader.rs``).  All integers are
little-endian, blocks have 4096 bytes; an inode is named by its offset divided by 32::

    composefs header at 0     superblock at 1024 (what is used)   inode, compact          inode, extended
    offset  size  field       offset  size  field                 offset  size  field     offset  size  field
         0     4  magic            0     4  magic                      0     2  format         0     2  format
         4     4  version = 1      8     4  feature_compat             2     2  xattr_icount   2     2  xattr_icount
         8     4  flags           12     1  blkszbits = 12             4     2  mode           4     2  mode
        12     4  composefs       13     1  extslots = 0               6     2  nlink          8     8  size
                  version         14     2  root inode                 8     4  size          16     4  u
                                  16     8  inodes                    16     4  u             24     4  uid
                                  24     8  build time                24     2  uid           28     4  gid
                                  40     4  meta_blkaddr = 0          26     2  gid           32     8  mtime
                                  44     4  xattr_blkaddr                                     44     4  nlink
                                  80     4  feature_incompat

Versions 0 and 1 have compact inodes and 256 whiteouts ``00`` to ``ff`` in the root, version 2 has extended ones.  What
follows an inode: its xattrs (12 bytes, then ids of shared xattrs, then local ones), then the tail of its data where the
layout is "inline".  A directory block is an array of 12-byte entries (inode u64, name offset u16, type u8, 0), then the
names.  A file stored outside of the image has ``trusted.overlay.metacopy``: 0, length, 0, algorithm, then the fs-verity
digest; and ``trusted.overlay.redirect``: ``/XX/YYYY…``.

Every function takes any bytes-like object, :class:`mmap.mmap` included, and keeps no reference to it.  In a sound image
nothing overlaps, so no walk reads more bytes than the image has: one that would is refused.
"""

from __future__ import annotations

import re
from functools import cache
from mmap import MADV_DONTNEED, mmap
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from cfs_tags.errors import FormatError
from cfs_tags.values import Algorithm, ObjectId

if TYPE_CHECKING:
    from collections.abc import Iterator

    Buffer = bytes | bytearray | memoryview | mmap

_MAX_SIZE = 1 << 30
"""Bytes of the largest image that is read, as in composefs-rs."""


_STRUCTURE = "EROFS image"
BLOCK = 4096
_SUPERBLOCK = 1024
_SUPERBLOCK_END = _SUPERBLOCK + 128

_HEADER = Struct("<4I")
_COMPOSEFS_MAGIC = 0xD078629A
# magic, feature_compat, blkszbits, extslots, root inode, inodes, build time, meta_blkaddr, xattr_blkaddr
_SUPER = Struct("<I4xI2BHQQ8x2I")
# feature_incompat, compression, devices, xattr prefixes, packed inode
_SUPER_REST = Struct("<I2H3xB4xQ")
_EROFS_MAGIC = 0xE0F5E1E2
_COMPAT_KNOWN = 0b111  # checksum, mtime, xattr filter
_INCOMPAT_KNOWN = 0b100  # chunked files

# format, xattr_icount, mode, nlink, size, u, uid, gid
_COMPACT = Struct("<4HI4xI4x2H")
# format, xattr_icount, mode, size, u, uid, gid, nlink
_EXTENDED = Struct("<3H2xQI4x2I12xI")
_PLAIN, INLINE, CHUNKS = 0, 4, 8

_ENTRY = Struct("<QHBx")
XATTR = Struct("<BBH")
TRUSTED = 4
"""Prefix number of names that begin with ``trusted.``."""
_XATTRS_HEADER = 12


class Superblock(NamedTuple):
    """What an image says of itself.

    Attributes:
        version: of the composefs format: 0, 1 or 2.
        root: the inode of the root directory.
        inodes: how many there are, as stated.
        build_time: seconds since 1970.
        xattrs: offset in bytes from where ids of shared xattrs count, in units of 4.
    """

    version: int
    root: int
    inodes: int
    build_time: int
    xattrs: int


class Inode(NamedTuple):
    """An inode as it is stored; ``u`` is what its layout takes for a block or a device."""

    offset: int
    mode: int
    nlink: int
    size: int
    u: int
    uid: int
    gid: int
    layout: int
    xattrs: int  # where they start
    data: int  # where they end and the inline tail starts
    end: int

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return self.mode & 0o170000 == 0o040000

    @property
    def is_whiteout(self) -> bool:
        """Whether it marks a file that is not there: a character device 0, 0."""
        return self.mode & 0o170000 == 0o020000 and self.u == 0


def superblock(data: Buffer) -> Superblock:
    """Read header and superblock, with every check that composefs-rs makes before it follows references.

    Raises:
        FormatError: this is no composefs image, or one with a version or feature that is not known.
    """
    size = len(data)
    if size > _MAX_SIZE:
        wrong(_MAX_SIZE, f"at most {_MAX_SIZE} bytes", f"{size} bytes")
    if size < _SUPERBLOCK_END:
        wrong(size, f"a superblock that ends at {_SUPERBLOCK_END}", f"{size} bytes")
    magic, erofs_version, _, version = _HEADER.unpack_from(data, 0)
    _expect(0, "composefs magic d078629a", magic == _COMPOSEFS_MAGIC, f"{magic:08x}")
    _expect(4, "header version 1", erofs_version == 1, erofs_version)
    _expect(12, "composefs version 0, 1 or 2", version <= 2, version)
    magic, compat, block_bits, extslots, root, inodes, build_time, meta, xattrs = _SUPER.unpack_from(data, _SUPERBLOCK)
    incompat, compression, devices, prefixes, packed = _SUPER_REST.unpack_from(data, _SUPERBLOCK + 80)
    _expect(_SUPERBLOCK, "EROFS magic e0f5e1e2", magic == _EROFS_MAGIC, f"{magic:08x}")
    _expect(_SUPERBLOCK + 12, "blocks of 2^12 bytes", block_bits == 12, f"2^{block_bits}")
    _expect(_SUPERBLOCK + 8, "no unknown compatible feature", not compat & ~_COMPAT_KNOWN, f"{compat:#x}")
    _expect(_SUPERBLOCK + 80, "no feature but chunked files", not incompat & ~_INCOMPAT_KNOWN, f"{incompat:#x}")
    _expect(_SUPERBLOCK + 84, "no compression", compression == 0, compression)
    _expect(_SUPERBLOCK + 86, "no other devices", devices == 0, devices)
    _expect(_SUPERBLOCK + 13, "no superblock extensions", extslots == 0, extslots)
    _expect(_SUPERBLOCK + 96, "no packed inode", packed == 0, packed)
    _expect(_SUPERBLOCK + 40, "inodes from block 0 on", meta == 0, meta)
    _expect(_SUPERBLOCK + 91, "no xattr prefixes", prefixes == 0, prefixes)
    _expect(_SUPERBLOCK + 44, "xattrs within the image", xattrs * BLOCK <= size, xattrs)
    return Superblock(version, root, inodes, build_time, xattrs * BLOCK)


def check_image(data: Buffer) -> None:
    """Check that this is a composefs image whose root is a directory; nothing else of it is read.

    Raises:
        FormatError: it is not.
    """
    root = superblock(data).root
    _expect(root * 32, "the root directory", inode_of(data, root).is_directory, "another kind of file")


# -- references --------------------------------------------------------------------------------------------------------


def object_refs(data: Buffer, algorithm: Algorithm) -> set[ObjectId]:
    """The objects that an image needs: exactly those that ``cfsctl image-objects`` names.

    These are the digests in ``trusted.overlay.metacopy`` and ``trusted.overlay.redirect``, local and shared, of all
    inodes that can be reached from the root.  An xattr of another algorithm or shape counts for nothing, as in cfsctl.

    Raises:
        FormatError: the image is damaged; whatever cannot be read is an error, so the result is never too small.
    """
    top = superblock(data)
    budget = len(data)
    found: set[bytes] = set()
    shared: set[int] = set()
    seen = {top.root}
    pending = [top.root]
    while pending:
        inode = inode_of(data, pending.pop())
        budget -= inode.data - inode.xattrs
        if inode.xattrs < inode.data:
            ids, local = xattr_ids(data, inode)
            for identity in ids:
                if identity not in shared:
                    shared.add(identity)
                    at = top.xattrs + identity * 4
                    xattr_digest(data, at, len(data), algorithm, found)
            while local < inode.data:
                local = xattr_digest(data, local, inode.data, algorithm, found)
        if inode.is_directory:
            for start, end in directory_blocks(data, inode):
                budget -= end - start
                if budget < 0:
                    break
                for nid, name in entries_of(data, start, end):
                    if nid not in seen and name not in (b".", b".."):
                        seen.add(nid)
                        pending.append(nid)
        if budget < 0:
            wrong(inode.offset, "inodes that do not overlap", "more data than the image has")
    return {ObjectId.of_bytes(digest) for digest in found}


def scan_object_refs(data: Buffer, algorithm: Algorithm) -> bytes:
    """At least the digests that :func:`object_refs` finds, without following anything: a search for text.

    For a collector: it never misses one, and takes a tenth of the time.  What it finds besides would be an xattr that
    no inode uses, or a file's own bytes that look like one; neither occurs in images that composefs makes.  The image
    is not checked: see :func:`check_image`.

    Returns:
        Raw digests, one after the other; some may be there twice.
    """
    digests, redirected = [], []
    # what is found in a part is much larger than its digests, and a mapping counts as memory as far as it was looked at
    for start in range(0, len(data), _PART):
        digests.append(b"".join(_metacopy(algorithm).begin_in(data, start)))
        redirected.append(_redirects(data, start, algorithm))
        if isinstance(data, mmap):
            data.madvise(MADV_DONTNEED, start, min(_PART, len(data) - start))
    found, others = b"".join(digests), b"".join(redirected)
    # composefs writes both xattrs of a file, in one order: nothing new then
    return found if others == found else found + others


_PART = 1 << 22


class _Pattern(NamedTuple):
    """A pattern of ``length`` bytes, and the bytes that must follow it."""

    compiled: re.Pattern[bytes]
    length: int

    def begin_in(self, data: Buffer, start: int) -> list[bytes]:
        """Those that begin in a part; they may end in the next."""
        return self.compiled.findall(data, start, start + _PART + self.length - 1)


@cache
def _metacopy(algorithm: Algorithm) -> _Pattern:
    # The digest is looked at, not consumed: in a hostile image one xattr may begin within another.  Each pattern begins
    # with literal text, which is what makes the search fast.
    text = _METACOPY + _metacopy_header(algorithm)
    compiled = re.compile(re.escape(text) + b"(?=(.{%d}))" % algorithm.size, re.DOTALL)
    return _Pattern(compiled, len(text) + algorithm.size)


@cache
def _usual_redirect(algorithm: Algorithm) -> _Pattern:
    text = XATTR.pack(len(_REDIRECT), TRUSTED, algorithm.hex_length + 2) + _REDIRECT
    compiled = re.compile(re.escape(text) + b"(?=/(.{%d}))" % (algorithm.hex_length + 1), re.DOTALL)
    return _Pattern(compiled, len(text) + algorithm.hex_length + 2)


def _redirects(data: Buffer, start: int, algorithm: Algorithm) -> bytes:
    """The digests of the redirects that begin in a part."""
    paths = _usual_redirect(algorithm).begin_in(data, start)
    usual = _digests_of_paths(b"".join(paths), len(paths), algorithm)
    names = _Pattern(_REDIRECT_NAME, len(_REDIRECT)).begin_in(data, start + XATTR.size)
    if usual is not None and len(paths) == len(names):
        return usual
    return b"".join(_each_redirect(data, start, algorithm))


def _digests_of_paths(paths: bytes, count: int, algorithm: Algorithm) -> bytes | None:
    """The digests in paths ``xx/yyyy…`` that stand one after the other; None where any of them is something else."""
    # all at once: one conversion of a long text is much faster than 100,000 short ones
    width = algorithm.hex_length + 1
    digits = paths.translate(None, b"/")
    if paths[2::width] != b"/" * count or len(digits) != count * algorithm.hex_length:
        return None
    try:
        digests = bytes.fromhex(digits.decode())
    except ValueError:
        return None
    return digests if len(digests) == count * algorithm.size else None  # fromhex leaves blanks out


def _each_redirect(data: Buffer, start: int, algorithm: Algorithm) -> Iterator[bytes]:
    """The digest of each of them, whatever it looks like."""
    first = start + XATTR.size
    for match in _REDIRECT_NAME.finditer(data, first, first + _PART + len(_REDIRECT) - 1):
        _, _, size = XATTR.unpack_from(data, match.start() - XATTR.size)
        digest = _redirect_digest(bytes(data[match.end() : match.end() + size]), algorithm)
        if digest is not None:
            yield digest


_METACOPY = b"overlay.metacopy"
_REDIRECT = b"overlay.redirect"
_REDIRECT_NAME = re.compile(re.escape(_REDIRECT))


def _metacopy_header(algorithm: Algorithm) -> bytes:
    return bytes((0, 4 + algorithm.size, 0, algorithm.number))


def _redirect_digest(value: bytes, algorithm: Algorithm) -> bytes | None:
    # as composefs-rs does (hashvalue.rs): the end of the path counts, whatever stands before
    path = value[-(algorithm.hex_length + 1) :]
    if len(path) <= algorithm.hex_length or path[2:3] != b"/":
        return None
    digits = path[:2] + path[3:]
    if _HEX.fullmatch(digits) is None:
        return None
    return bytes.fromhex(digits.decode())


_HEX = re.compile(rb"[0-9a-fA-F]*")


def xattr_digest(data: Buffer, at: int, limit: int, algorithm: Algorithm, found: set[bytes]) -> int:
    """Add the digest of the xattr at ``at``, if it has one; where the next one starts."""
    index, name, value, end = xattr_at(data, at, limit)
    # the length tells nearly all other names apart, without a copy
    if index == TRUSTED and value - name == 16:
        suffix = bytes(data[name:value])
        if suffix == _METACOPY:
            content = bytes(data[value:end])
            if len(content) == 4 + algorithm.size and content.startswith(_metacopy_header(algorithm)):
                found.add(content[4:])
        elif suffix == _REDIRECT:
            digest = _redirect_digest(bytes(data[value:end]), algorithm)
            if digest is not None:
                found.add(digest)
    return at + XATTR.size + (end - name + 3 & ~3)


# -- structures --------------------------------------------------------------------------------------------------------


def inode_of(data: Buffer, nid: int) -> Inode:
    """The inode of a number.  Raises FormatError, as every function here does, if the image is damaged."""
    offset = nid * 32
    size = len(data)
    if offset + 32 > size:
        wrong(min(offset, 1 << 63), f"an inode within {size} bytes", f"inode {nid}")
    if data[offset] & 1:
        if offset + 64 > size:
            wrong(offset, "an inode of 64 bytes", f"{size - offset} bytes")
        form, icount, mode, length, u, uid, gid, nlink = _EXTENDED.unpack_from(data, offset)
        xattrs = offset + 64
    else:
        form, icount, mode, nlink, length, u, uid, gid = _COMPACT.unpack_from(data, offset)
        xattrs = offset + 32
    layout = form & 0b1110
    tail = xattrs + (_XATTRS_HEADER + 4 * (icount - 1) if icount else 0)
    if layout == INLINE:
        end = tail + length % BLOCK
    elif layout == _PLAIN:
        end = tail
    elif layout == CHUNKS:
        end = tail + 4
    else:
        wrong(offset, "data layout 0, 2 or 4", layout >> 1)
    if end > size:
        wrong(offset, f"an inode within {size} bytes", f"one that ends at {end}")
    return Inode(offset, mode, nlink, length, u, uid, gid, layout, xattrs, tail, end)


def blocks_of(data: Buffer, inode: Inode) -> list[tuple[int, int]]:
    """Start and end of the data of an inode: whole blocks as one range, then the tail."""
    if inode.layout == CHUNKS:
        wrong(inode.offset, "data within the image", "chunks outside")
    count = inode.size // BLOCK if inode.layout == INLINE else -(-inode.size // BLOCK)
    result = []
    if count:
        start, end = inode.u * BLOCK, (inode.u + count) * BLOCK
        if end > len(data):
            wrong(inode.offset, f"data within {len(data)} bytes", f"data up to {end}")
        result.append((start, end))
    if inode.data < inode.end:
        result.append((inode.data, inode.end))
    return result


def directory_blocks(data: Buffer, inode: Inode) -> list[tuple[int, int]]:
    """Start and end of each block of a directory."""
    result = []
    for start, end in blocks_of(data, inode):
        result += [(at, min(at + BLOCK, end)) for at in range(start, end, BLOCK)]
    return result


def entries_of(data: Buffer, start: int, end: int) -> list[tuple[int, bytes]]:
    """Inode and name of each entry of the directory block from ``start`` to ``end``."""
    block = bytes(data[start:end])
    if len(block) < _ENTRY.size:
        wrong(start, "a directory block", f"{len(block)} bytes")
    heads = block[8] | block[9] << 8
    if heads == 0 or heads % _ENTRY.size or heads > len(block):
        wrong(start + 8, "the end of an array of directory entries", heads)
    entries = list(_ENTRY.iter_unpack(memoryview(block)[:heads]))
    ends = [name for _, name, _ in entries[1:]]
    last = entries[-1][1]
    zero = block.find(0, last)
    ends.append(zero if zero >= 0 else len(block))
    result = []
    for (nid, name, _), stop in zip(entries, ends, strict=True):
        if not name <= stop <= len(block):
            wrong(start, f"names within {len(block)} bytes, in order", f"one from {name} to {stop}")
        result.append((nid, block[name:stop]))
    return result


def xattr_ids(data: Buffer, inode: Inode) -> tuple[tuple[int, ...], int]:
    """The ids of the shared xattrs, and where the local ones start."""
    count = data[inode.xattrs + 4]
    ids = inode.xattrs + _XATTRS_HEADER
    local = ids + 4 * count
    if local > inode.data:
        wrong(inode.xattrs + 4, f"at most {(inode.data - ids) // 4} shared xattrs", count)
    return (Struct(f"<{count}I").unpack_from(data, ids) if count else ()), local


def xattr_at(data: Buffer, at: int, limit: int) -> tuple[int, int, int, int]:
    """Prefix number of the xattr at ``at``, then where its name, its value and what follows the value start."""
    name = at + XATTR.size
    if name > limit:
        wrong(at, f"an xattr before {limit}", f"one that starts at {at}")
    name_length, index, size = XATTR.unpack_from(data, at)
    value = name + name_length
    end = value + size
    if name + (end - name + 3 & ~3) > limit:
        wrong(at, f"an xattr that ends before {limit}", f"one that ends at {end}")
    return index, name, value, end


def _expect(offset: int, wanted: str, holds: bool, found: object) -> None:
    if not holds:
        wrong(offset, wanted, found)


def wrong(offset: int, wanted: str, found: object) -> NoReturn:
    """Raise FormatError for the bytes at ``offset``."""
    raise FormatError(structure=_STRUCTURE, offset=offset, wanted=wanted, found=str(found))
