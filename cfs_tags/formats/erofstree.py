"""The files of an EROFS image: by path, all of them, and what is inside those that are stored within it.

The format is in ``erofs.py``.  In a sound image nothing overlaps, so no walk reads more bytes than the image has: one that
would is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

from cfs_tags.formats.erofs import (
    BLOCK,
    CHUNKS,
    INLINE,
    TRUSTED,
    XATTR,
    Inode,
    blocks_of,
    directory_blocks,
    entries_of,
    inode_of,
    superblock,
    wrong,
    xattr_at,
    xattr_digest,
    xattr_ids,
)
from cfs_tags.values import Algorithm, ObjectId

if TYPE_CHECKING:
    from cfs_tags.formats.erofs import Buffer

_MAX_CONTENT = 4096
"""Bytes of the largest content that is read from within an image.  Files of at most 64 bytes are stored there (composefs-rs
reads up to 512), and the targets of symbolic links."""

MAX_PATH = 4096
"""Bytes of the longest path that is given out, as in Linux."""

_NAMES_OF_FILE = 64
"""A file is read once for each of its names: so often, in bytes, may all of an image be read on the average."""

_MAX_LINKS = 40
"""Symbolic links that are followed for one path, as in Linux."""

Kind = Literal["file", "directory", "symlink", "character device", "block device", "fifo", "socket"]

_PREFIXES = {
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    TRUSTED: b"trusted.",
    6: b"security.",
}
"""How the names of xattrs begin, by number (Linux, ``fs/erofs/erofs_fs.h``)."""

_KINDS: dict[int, Kind] = {
    0o100000: "file",
    0o040000: "directory",
    0o120000: "symlink",
    0o020000: "character device",
    0o060000: "block device",
    0o010000: "fifo",
    0o140000: "socket",
}


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
        device: major and minor number of a device.
    """

    kind: Kind
    mode: int
    uid: int
    gid: int
    size: int
    content: bytes | None = None
    object: ObjectId | None = None
    device: tuple[int, int] = (0, 0)


def read_path(data: Buffer, path: str, *, follow: bool = True) -> Node | None:
    """The file at ``path``; None where there is none, as also at the end of too many links.

    Symbolic links are followed within the image, the last one only with ``follow``: absolute ones start at its root,
    ``..`` never leads out of it.

    Raises:
        FormatError: the image is damaged on the way, or the content is longer than ``_MAX_CONTENT``.
    """
    tree = Tree(data)
    nid = tree.resolve(path, follow)
    return None if nid is None else tree.node(nid)


def listdir(data: Buffer, path: str) -> tuple[str, ...] | None:
    """The sorted names in the directory at ``path``; None where there is none.  Whiteouts are no files and left out.

    Undecodable bytes in names are surrogates, as :func:`os.fsdecode` makes them.

    Raises:
        FormatError: the image is damaged on the way.
    """
    tree = Tree(data)
    nid = tree.resolve(path, follow=True)
    if nid is None or not inode_of(data, nid).is_directory:
        return None
    names = (name for name, child in tree.directory(nid).items() if not inode_of(data, child).is_whiteout)
    return tuple(sorted(name.decode("utf-8", "surrogateescape") for name in names))


def stored_files(data: Buffer, below: str = "") -> Iterator[tuple[str, ObjectId]]:
    """The files that are stored outside of an image: path and object of each, in no order.

    A file with several names may come once or several times; paths of more than ``MAX_PATH`` bytes are left out.

    Args:
        data: of the image.
        below: only those in this directory; their paths start behind it.

    Raises:
        FormatError: the image is damaged.
    """
    tree = Tree(data)
    root = tree.resolve(below, follow=False)
    pending = [(root, b"")] if root is not None and inode_of(data, root).is_directory else []
    seen = {root}
    while pending:
        directory, path = pending.pop()
        for name, child in tree.directory(directory).items():
            inode = inode_of(data, child)
            place = path + name
            if len(place) > MAX_PATH:
                continue
            if inode.is_directory:
                if child not in seen:
                    seen.add(child)
                    pending.append((child, place + b"/"))
            elif inode.mode & 0o170000 == 0o100000:
                stored = tree.stored(inode)
                if stored is not None:
                    yield place.decode("utf-8", "surrogateescape"), stored


class Tree:
    """One look into an image.  Directories are read once, so the path may be as hostile as the image.

    A file of it is named by its inode, ``root`` is that of the root directory.
    """

    def __init__(self, data: Buffer) -> None:
        self._data = data
        self._top = superblock(data)
        self.root = self._top.root
        self._directories: dict[int, dict[bytes, int]] = {}
        self._budget = len(data)
        self._reread = _NAMES_OF_FILE * len(data)

    def directory(self, nid: int) -> dict[bytes, int]:
        """Inodes by name, without ``.`` and ``..``."""
        known = self._directories.get(nid)
        if known is not None:
            return known
        entries: dict[bytes, int] = {}
        inode = inode_of(self._data, nid)
        for start, end in directory_blocks(self._data, inode):
            self._budget -= end - start
            if self._budget < 0:
                wrong(inode.offset, "directories that do not overlap", "more data than the image has")
            for child, name in entries_of(self._data, start, end):
                if not name or b"/" in name or b"\0" in name:
                    wrong(start, "a file name", "one that is empty or has a slash or NUL")
                if name not in (b".", b".."):
                    entries.setdefault(name, child)
        self._directories[nid] = entries
        return entries

    def files(self, nid: int) -> Iterator[tuple[bytes, int, tuple[object, ...] | None]]:
        """Name and inode of all that is in a directory, but whiteouts; then the directory is forgotten.

        The third is what says all of a file but its times, and is equal for equal files of any two images; None for a
        directory, and where it cannot be told without following references within the image.

        Raises:
            FormatError: the image is damaged, or its directories contain each other.
        """
        data = self._data
        for name, child in self.directory(nid).items():
            inode = inode_of(data, child)
            self._reread -= inode.end - inode.offset
            if self._reread < 0:
                wrong(inode.offset, "files that do not overlap", "more data than the image has")
            if inode.is_whiteout:
                continue
            mark: tuple[object, ...] | None = None
            whole = inode.layout == CHUNKS or (inode.layout == INLINE and inode.size < BLOCK)
            if whole and not inode.is_directory and (inode.xattrs == inode.data or not data[inode.xattrs + 4]):
                mark = inode.mode, inode.uid, inode.gid, inode.size, bytes(data[inode.xattrs : inode.end])
            yield name, child, mark
        del self._directories[nid]

    def xattrs(self, nid: int) -> tuple[tuple[bytes, bytes], ...]:
        """The extended attributes of a file by name, without those that are for overlayfs.

        Raises:
            FormatError: the image is damaged.
        """
        inode = inode_of(self._data, nid)
        found = []
        for at, limit in self._places(inode):
            index, name, value, end = xattr_at(self._data, at, limit)
            whole = _PREFIXES.get(index, b"%d." % index) + bytes(self._data[name:value])
            if not whole.startswith((b"trusted.overlay.", b"user.overlay.")):
                found.append((whole, bytes(self._data[value:end])))
        return tuple(sorted(found))

    def resolve(self, path: str, follow: bool) -> int | None:
        """The inode of a path; None where there is none."""
        rest = path.encode("utf-8", "surrogateescape").split(b"/")[::-1]
        where = [self._top.root]
        links = _MAX_LINKS
        while rest:
            name = rest.pop()
            if not inode_of(self._data, where[-1]).is_directory:
                return None
            if name in (b"", b"."):
                continue
            if name == b"..":
                del where[max(1, len(where) - 1) :]
                continue
            child = self.directory(where[-1]).get(name)
            if child is None:
                return None
            inode = inode_of(self._data, child)
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
        """The file of an inode."""
        inode = inode_of(self._data, nid)
        kind = _KINDS.get(inode.mode & 0o170000)
        if kind is None:
            wrong(inode.offset + 4, "a type of file", f"{inode.mode:o}")
        node = Node(kind, inode.mode & 0o7777, inode.uid, inode.gid, inode.size)
        if kind == "symlink":
            return node._replace(content=self._content(inode))
        if kind == "file":
            outside = self.stored(inode)
            if outside is not None:
                return node._replace(object=outside)
            if inode.layout == CHUNKS:
                wrong(inode.offset, "a digest of the content", "a file stored outside without one")
            return node._replace(content=self._content(inode))
        if kind.endswith("device"):  # as Linux encodes numbers of devices in 32 bits
            number = inode.u
            return node._replace(device=(number >> 8 & 0xFFF, number & 0xFF | number >> 12 & 0xFFF00))
        return node

    def stored(self, inode: Inode) -> ObjectId | None:
        """The object of a file that is stored outside of the image; None of another."""
        places = self._places(inode)
        for algorithm in Algorithm:
            found: set[bytes] = set()
            for at, limit in places:
                xattr_digest(self._data, at, limit, algorithm, found)
            if len(found) > 1:
                wrong(inode.offset, "one digest of the content", f"{len(found)} different ones")
            for digest in found:
                return ObjectId.of_bytes(digest)
        return None

    def _places(self, inode: Inode) -> list[tuple[int, int]]:
        """Where each xattr of an inode starts, and the end that it may not pass: the shared ones first."""
        if inode.xattrs == inode.data:
            return []
        ids, at = xattr_ids(self._data, inode)
        places = [(self._top.xattrs + identity * 4, len(self._data)) for identity in ids]
        while at < inode.data:
            places.append((at, inode.data))
            _, name, _, end = xattr_at(self._data, at, inode.data)
            at += XATTR.size + (end - name + 3 & ~3)
        return places

    def _content(self, inode: Inode) -> bytes:
        if inode.size > _MAX_CONTENT:
            wrong(inode.offset, f"content of at most {_MAX_CONTENT} bytes", f"{inode.size} bytes")
        content = b"".join(bytes(self._data[start:end]) for start, end in blocks_of(self._data, inode))
        return content[: inode.size]
