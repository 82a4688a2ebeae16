"""EROFS images as composefs makes them: which objects they need, and what small files say.

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
from typing import TYPE_CHECKING, Literal, NamedTuple, NoReturn

from cfs_tags.errors import FormatError
from cfs_tags.values import Algorithm, ObjectId

if TYPE_CHECKING:
    from collections.abc import Iterator

    Buffer = bytes | bytearray | memoryview | mmap

__all__ = [
    "MAX_CONTENT",
    "MAX_SIZE",
    "Node",
    "Superblock",
    "check_image",
    "listdir",
    "object_refs",
    "read_path",
    "scan_object_refs",
    "superblock",
]

MAX_SIZE = 1 << 30
"""Bytes of the largest image that is read, as in composefs-rs."""

MAX_CONTENT = 4096
"""Bytes of the largest content that is read from within an image.  Files of at most 64 bytes are stored there (composefs-rs
reads up to 512), and the targets of symbolic links."""

MAX_LINKS = 40
"""Symbolic links that are followed for one path, as in Linux."""

Kind = Literal["file", "directory", "symlink", "character device", "block device", "fifo", "socket"]

_STRUCTURE = "EROFS image"
_BLOCK = 4096
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
_PLAIN, _INLINE, _CHUNKS = 0, 4, 8

_ENTRY = Struct("<QHBx")
_XATTR = Struct("<BBH")
_XATTRS_HEADER = 12
_TRUSTED = 4

_KINDS: dict[int, Kind] = {
    0o100000: "file",
    0o040000: "directory",
    0o120000: "symlink",
    0o020000: "character device",
    0o060000: "block device",
    0o010000: "fifo",
    0o140000: "socket",
}


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


class Node(NamedTuple):
    """A file of an image.

    Attributes:
        kind: what it is.
        mode: permission bits.
        uid: owner.
        gid: group.
        size: in bytes.
        content: of a file that is stored within the image, or the target of a symbolic link; else None.
        object: of a file that is stored outside; else None.
    """

    kind: Kind
    mode: int
    uid: int
    gid: int
    size: int
    content: bytes | None = None
    object: ObjectId | None = None


class _Inode(NamedTuple):
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
        return self.mode & 0o170000 == 0o040000

    @property
    def is_whiteout(self) -> bool:
        return self.mode & 0o170000 == 0o020000 and self.u == 0


def superblock(data: Buffer) -> Superblock:
    """Read header and superblock, with every check that composefs-rs makes before it follows references.

    Raises:
        FormatError: this is no composefs image, or one with a version or feature that is not known.
    """
    size = len(data)
    if size > MAX_SIZE:
        _wrong(MAX_SIZE, f"at most {MAX_SIZE} bytes", f"{size} bytes")
    if size < _SUPERBLOCK_END:
        _wrong(size, f"a superblock that ends at {_SUPERBLOCK_END}", f"{size} bytes")
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
    _expect(_SUPERBLOCK + 44, "xattrs within the image", xattrs * _BLOCK <= size, xattrs)
    return Superblock(version, root, inodes, build_time, xattrs * _BLOCK)


def check_image(data: Buffer) -> None:
    """Check that this is a composefs image whose root is a directory; nothing else of it is read.

    Raises:
        FormatError: it is not.
    """
    root = superblock(data).root
    _expect(root * 32, "the root directory", _inode(data, root).is_directory, "another kind of file")


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
        inode = _inode(data, pending.pop())
        budget -= inode.data - inode.xattrs
        if inode.xattrs < inode.data:
            ids, local = _xattr_ids(data, inode)
            for identity in ids:
                if identity not in shared:
                    shared.add(identity)
                    at = top.xattrs + identity * 4
                    _xattr_digest(data, at, len(data), algorithm, found)
            while local < inode.data:
                local = _xattr_digest(data, local, inode.data, algorithm, found)
        if inode.is_directory:
            for start, end in _directory_blocks(data, inode):
                budget -= end - start
                if budget < 0:
                    break
                for nid, name in _entries(data, start, end):
                    if nid not in seen and name not in (b".", b".."):
                        seen.add(nid)
                        pending.append(nid)
        if budget < 0:
            _wrong(inode.offset, "inodes that do not overlap", "more data than the image has")
    return {ObjectId.of_bytes(digest) for digest in found}


def scan_object_refs(data: Buffer, algorithm: Algorithm) -> bytes:
    """At least the digests that :func:`object_refs` finds, without following anything: a search for text.

    For a collector: it never misses one, and takes a tenth of the time.  What it finds besides would be an xattr that
    no inode uses, or a file's own bytes that look like one; neither occurs in images that composefs makes.  The image
    is not checked: see :func:`check_image`.

    Returns:
        Raw digests, one after the other; some may be there twice.
    """
    found = []
    # what is found in a part is much larger than its digests, and a mapping counts as memory as far as it was looked at
    for start in range(0, len(data), _PART):
        end = min(start + _PART + _OVERLAP, len(data))
        found.append(_scan_part(data, start, end, algorithm))
        if isinstance(data, mmap) and end < len(data):
            data.madvise(MADV_DONTNEED, start, _PART)
    return b"".join(found)


_PART = 1 << 22
_OVERLAP = 1 << 9
"""Bytes of the longest thing that is looked for, and more: it may begin in one part and end in the next."""


def _scan_part(data: Buffer, start: int, end: int, algorithm: Algorithm) -> bytes:
    """The digests in a part of an image."""
    metacopy, redirect, name = _patterns(algorithm)
    digests = b"".join(metacopy.findall(data, start, end))
    paths = redirect.findall(data, start, end)
    redirected = _digests_of_paths(b"".join(paths), len(paths), algorithm)
    if redirected is None or len(paths) != len(name.findall(data, start, end)):
        redirected = b"".join(_each_redirect(data, start, end, algorithm))
    # composefs writes both xattrs of a file, in one order: nothing new then
    return digests if redirected == digests else digests + redirected


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


def _each_redirect(data: Buffer, start: int, end: int, algorithm: Algorithm) -> Iterator[bytes]:
    """The digest of each redirect in a part, whatever it looks like."""
    for match in _patterns(algorithm)[2].finditer(data, start, end):
        at = match.start()
        if at < _XATTR.size:
            continue
        _, _, size = _XATTR.unpack_from(data, at - _XATTR.size)
        digest = _redirect_digest(bytes(data[match.end() : match.end() + size]), algorithm)
        if digest is not None:
            yield digest


@cache
def _patterns(algorithm: Algorithm) -> tuple[re.Pattern[bytes], re.Pattern[bytes], re.Pattern[bytes]]:
    # The digests are looked at, not consumed: in a hostile image one xattr may begin within another.  Each pattern
    # begins with literal text, which is what makes the search fast.
    metacopy = re.escape(_METACOPY + _metacopy_header(algorithm)) + b"(?=(.{%d}))" % algorithm.size
    usual = re.escape(_XATTR.pack(len(_REDIRECT), _TRUSTED, algorithm.hex_length + 2) + _REDIRECT)
    redirect = usual + b"(?=/(.{%d}))" % (algorithm.hex_length + 1)
    return re.compile(metacopy, re.DOTALL), re.compile(redirect, re.DOTALL), re.compile(re.escape(_REDIRECT))


_METACOPY = b"overlay.metacopy"
_REDIRECT = b"overlay.redirect"


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


def _xattr_digest(data: Buffer, at: int, limit: int, algorithm: Algorithm, found: set[bytes]) -> int:
    """Add the digest of the xattr at ``at``, if it has one; where the next one starts."""
    index, name, value, end = _xattr(data, at, limit)
    # the length tells nearly all other names apart, without a copy
    if index == _TRUSTED and value - name == 16:
        suffix = bytes(data[name:value])
        if suffix == _METACOPY:
            content = bytes(data[value:end])
            if len(content) == 4 + algorithm.size and content.startswith(_metacopy_header(algorithm)):
                found.add(content[4:])
        elif suffix == _REDIRECT:
            digest = _redirect_digest(bytes(data[value:end]), algorithm)
            if digest is not None:
                found.add(digest)
    return at + _XATTR.size + (end - name + 3 & ~3)


# -- files -------------------------------------------------------------------------------------------------------------


def read_path(data: Buffer, path: str, *, follow: bool = True) -> Node | None:
    """The file at ``path``; None where there is none, as also at the end of too many links.

    Symbolic links are followed within the image, the last one only with ``follow``: absolute ones start at its root,
    ``..`` never leads out of it.

    Raises:
        FormatError: the image is damaged on the way, or the content is longer than ``MAX_CONTENT``.
    """
    tree = _Tree(data)
    nid = tree.resolve(path, follow)
    return None if nid is None else tree.node(nid)


def listdir(data: Buffer, path: str) -> tuple[str, ...] | None:
    """The sorted names in the directory at ``path``; None where there is none.  Whiteouts are no files and left out.

    Undecodable bytes in names are surrogates, as :func:`os.fsdecode` makes them.

    Raises:
        FormatError: the image is damaged on the way.
    """
    tree = _Tree(data)
    nid = tree.resolve(path, follow=True)
    if nid is None or not _inode(data, nid).is_directory:
        return None
    names = (name for name, child in tree.directory(nid).items() if not _inode(data, child).is_whiteout)
    return tuple(sorted(name.decode("utf-8", "surrogateescape") for name in names))


class _Tree:
    """One look into an image.  Directories are read once, so the path may be as hostile as the image."""

    def __init__(self, data: Buffer) -> None:
        self._data = data
        self._top = superblock(data)
        self._directories: dict[int, dict[bytes, int]] = {}
        self._budget = len(data)

    def directory(self, nid: int) -> dict[bytes, int]:
        """Inodes by name, without ``.`` and ``..``."""
        known = self._directories.get(nid)
        if known is not None:
            return known
        entries: dict[bytes, int] = {}
        inode = _inode(self._data, nid)
        for start, end in _directory_blocks(self._data, inode):
            self._budget -= end - start
            if self._budget < 0:
                _wrong(inode.offset, "directories that do not overlap", "more data than the image has")
            for child, name in _entries(self._data, start, end):
                if not name or b"/" in name or b"\0" in name:
                    _wrong(start, "a file name", "one that is empty or has a slash or NUL")
                if name not in (b".", b".."):
                    entries.setdefault(name, child)
        self._directories[nid] = entries
        return entries

    def resolve(self, path: str, follow: bool) -> int | None:
        rest = path.encode("utf-8", "surrogateescape").split(b"/")[::-1]
        where = [self._top.root]
        links = MAX_LINKS
        while rest:
            name = rest.pop()
            if not _inode(self._data, where[-1]).is_directory:
                return None
            if name in (b"", b"."):
                continue
            if name == b"..":
                del where[max(1, len(where) - 1) :]
                continue
            child = self.directory(where[-1]).get(name)
            if child is None:
                return None
            inode = _inode(self._data, child)
            if inode.is_whiteout:
                return None
            if inode.mode & 0o170000 == 0o120000 and (rest or follow):
                links -= 1
                target = self._content(inode)
                if links < 0 or not target:
                    return None
                if target.startswith(b"/"):
                    del where[1:]
                rest.extend(target.split(b"/")[::-1])
            else:
                where.append(child)
        return where[-1]

    def node(self, nid: int) -> Node:
        inode = _inode(self._data, nid)
        kind = _KINDS.get(inode.mode & 0o170000)
        if kind is None:
            _wrong(inode.offset + 4, "a type of file", f"{inode.mode:o}")
        node = Node(kind, inode.mode & 0o7777, inode.uid, inode.gid, inode.size)
        if kind == "symlink":
            return node._replace(content=self._content(inode))
        if kind == "file":
            outside = self._object(inode)
            if outside is not None:
                return node._replace(object=outside)
            if inode.layout == _CHUNKS:
                _wrong(inode.offset, "a digest of the content", "a file stored outside without one")
            return node._replace(content=self._content(inode))
        return node

    def _object(self, inode: _Inode) -> ObjectId | None:
        if inode.xattrs == inode.data:
            return None
        ids, local = _xattr_ids(self._data, inode)
        places = [(self._top.xattrs + identity * 4, len(self._data)) for identity in ids]
        for algorithm in Algorithm:
            found: set[bytes] = set()
            for at, limit in places:
                _xattr_digest(self._data, at, limit, algorithm, found)
            at = local
            while at < inode.data:
                at = _xattr_digest(self._data, at, inode.data, algorithm, found)
            if len(found) > 1:
                _wrong(inode.offset, "one digest of the content", f"{len(found)} different ones")
            for digest in found:
                return ObjectId.of_bytes(digest)
        return None

    def _content(self, inode: _Inode) -> bytes:
        if inode.size > MAX_CONTENT:
            _wrong(inode.offset, f"content of at most {MAX_CONTENT} bytes", f"{inode.size} bytes")
        content = b"".join(bytes(self._data[start:end]) for start, end in _blocks(self._data, inode))
        return content[: inode.size]


# -- structures --------------------------------------------------------------------------------------------------------


def _inode(data: Buffer, nid: int) -> _Inode:
    offset = nid * 32
    size = len(data)
    if offset + 32 > size:
        _wrong(min(offset, 1 << 63), f"an inode within {size} bytes", f"inode {nid}")
    if data[offset] & 1:
        if offset + 64 > size:
            _wrong(offset, "an inode of 64 bytes", f"{size - offset} bytes")
        form, icount, mode, length, u, uid, gid, nlink = _EXTENDED.unpack_from(data, offset)
        xattrs = offset + 64
    else:
        form, icount, mode, nlink, length, u, uid, gid = _COMPACT.unpack_from(data, offset)
        xattrs = offset + 32
    layout = form & 0b1110
    tail = xattrs + (_XATTRS_HEADER + 4 * (icount - 1) if icount else 0)
    if layout == _INLINE:
        end = tail + length % _BLOCK
    elif layout == _PLAIN:
        end = tail
    elif layout == _CHUNKS:
        end = tail + 4
    else:
        _wrong(offset, "data layout 0, 2 or 4", layout >> 1)
    if end > size:
        _wrong(offset, f"an inode within {size} bytes", f"one that ends at {end}")
    return _Inode(offset, mode, nlink, length, u, uid, gid, layout, xattrs, tail, end)


def _blocks(data: Buffer, inode: _Inode) -> list[tuple[int, int]]:
    """Start and end of the data of an inode: whole blocks as one range, then the tail."""
    if inode.layout == _CHUNKS:
        _wrong(inode.offset, "data within the image", "chunks outside")
    count = inode.size // _BLOCK if inode.layout == _INLINE else -(-inode.size // _BLOCK)
    result = []
    if count:
        start, end = inode.u * _BLOCK, (inode.u + count) * _BLOCK
        if end > len(data):
            _wrong(inode.offset, f"data within {len(data)} bytes", f"data up to {end}")
        result.append((start, end))
    if inode.data < inode.end:
        result.append((inode.data, inode.end))
    return result


def _directory_blocks(data: Buffer, inode: _Inode) -> list[tuple[int, int]]:
    result = []
    for start, end in _blocks(data, inode):
        result += [(at, min(at + _BLOCK, end)) for at in range(start, end, _BLOCK)]
    return result


def _entries(data: Buffer, start: int, end: int) -> list[tuple[int, bytes]]:
    """Inode and name of each entry of the directory block from ``start`` to ``end``."""
    block = bytes(data[start:end])
    if len(block) < _ENTRY.size:
        _wrong(start, "a directory block", f"{len(block)} bytes")
    heads = block[8] | block[9] << 8
    if heads == 0 or heads % _ENTRY.size or heads > len(block):
        _wrong(start + 8, "the end of an array of directory entries", heads)
    entries = list(_ENTRY.iter_unpack(memoryview(block)[:heads]))
    ends = [name for _, name, _ in entries[1:]]
    last = entries[-1][1]
    zero = block.find(0, last)
    ends.append(zero if zero >= 0 else len(block))
    result = []
    for (nid, name, _), stop in zip(entries, ends, strict=True):
        if not name <= stop <= len(block):
            _wrong(start, f"names within {len(block)} bytes, in order", f"one from {name} to {stop}")
        result.append((nid, block[name:stop]))
    return result


def _xattr_ids(data: Buffer, inode: _Inode) -> tuple[tuple[int, ...], int]:
    """The ids of the shared xattrs, and where the local ones start."""
    count = data[inode.xattrs + 4]
    ids = inode.xattrs + _XATTRS_HEADER
    local = ids + 4 * count
    if local > inode.data:
        _wrong(inode.xattrs + 4, f"at most {(inode.data - ids) // 4} shared xattrs", count)
    return (Struct(f"<{count}I").unpack_from(data, ids) if count else ()), local


def _xattr(data: Buffer, at: int, limit: int) -> tuple[int, int, int, int]:
    """Prefix number of the xattr at ``at``, then where its name, its value and what follows the value start."""
    name = at + _XATTR.size
    if name > limit:
        _wrong(at, f"an xattr before {limit}", f"one that starts at {at}")
    name_length, index, size = _XATTR.unpack_from(data, at)
    value = name + name_length
    end = value + size
    if name + (end - name + 3 & ~3) > limit:
        _wrong(at, f"an xattr that ends before {limit}", f"one that ends at {end}")
    return index, name, value, end


def _expect(offset: int, wanted: str, holds: bool, found: object) -> None:
    if not holds:
        _wrong(offset, wanted, found)


def _wrong(offset: int, wanted: str, found: object) -> NoReturn:
    raise FormatError(structure=_STRUCTURE, offset=offset, wanted=wanted, found=str(found))
