"""The files of an image as a tree, from an EROFS image or from layers, and how two trees differ.  Pure.

A tree comes from an EROFS image (:func:`of_erofs`), read directory by directory, or from layers that are laid upon each other
(:class:`Folder`), with whiteouts and opaque directories as in the OCI image specification (1.1.1, ``layer.md``).  Both give
the same tree for the same image.  Therefore layers are read as composefs-rs 0.9.4 reads them when it makes an EROFS image:
without ``/run``, and with ``security.capability`` as the only extended attribute (``generic_tree.rs``, ``transform_for_oci``).
Times are left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, NoReturn, Protocol

from cfs_tags.errors import FormatError
from cfs_tags.formats import tar
from cfs_tags.formats.erofstree import MAX_PATH, Kind, Tree
from cfs_tags.values import ObjectId

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Mapping, Sequence
    from mmap import mmap


class File(NamedTuple):
    """One file.

    Attributes:
        kind: what it is.
        mode: permission bits; 0 of a symbolic link, whose own mean nothing.
        uid: owner.
        gid: group.
        size: bytes of a regular file or of the target of a symbolic link, else 0.
        content: the object of a regular file; its bytes where it is so small that it has none; the target of a symbolic link;
            the numbers of a device.
        xattrs: extended attributes, by name.
    """

    kind: Kind
    mode: int
    uid: int
    gid: int
    size: int = 0
    content: ObjectId | bytes = b""
    xattrs: tuple[tuple[bytes, bytes], ...] = ()


class Directory(Protocol):
    """A directory of a tree."""

    def names(self) -> Mapping[bytes, Hashable]:
        """What is in it, by name.  The values are equal only for equal files, and None where that is not known."""

    def file(self, name: bytes) -> tuple[File, Directory | None]:
        """A file, and what is in it where it is a directory."""


class Change(NamedTuple):
    """A file that is not the same in two trees.  ``old`` or ``new`` is None where there is none of that path.

    Undecodable bytes of the path are surrogates.
    """

    path: str
    old: File | None
    new: File | None

    @property
    def parts(self) -> tuple[str, ...]:
        """What of a file changed: ``kind``, ``content``, ``mode``, ``owner``, ``xattrs``; nothing of one that came or went."""
        old, new = self.old, self.new
        if old is None or new is None:
            return ()
        pairs = {
            "kind": (old.kind, new.kind),
            "content": (old.content, new.content),
            "mode": (old.mode, new.mode),
            "owner": ((old.uid, old.gid), (new.uid, new.gid)),
            "xattrs": (old.xattrs, new.xattrs),
        }
        return tuple(name for name, (before, after) in pairs.items() if before != after)

    @property
    def grown(self) -> int:
        """How many bytes more the file has now."""
        return (self.new.size if self.new is not None else 0) - (self.old.size if self.old is not None else 0)

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory, and was none but that before."""
        return all(file is None or file.kind == "directory" for file in (self.old, self.new))


def compare(old: Directory, new: Directory, below: Sequence[str] = ()) -> Iterator[Change]:
    """How one tree differs from another, in the order of paths.

    No more is held than the directories on the way down.

    Args:
        old: the root of the tree that is changed.
        new: the root of the tree that it is changed to.
        below: paths; only these and what is below them is compared; without any, everything.

    Raises:
        FormatError: what a tree is read from is damaged.
    """
    wanted = [path.strip("/").encode("utf-8", "surrogateescape") + b"/" for path in below if path.strip("/")]
    pending = [_beside(b"", old, new)]
    while pending:
        found = next(pending[-1], None)
        if found is None:
            pending.pop()
            continue
        path, before, after = found
        place = path + b"/"
        if len(path) > MAX_PATH or (wanted and not any(place.startswith(one) or one.startswith(place) for one in wanted)):
            continue
        (mine, mine_below), (other, other_below) = before, after
        if mine != other and (not wanted or any(place.startswith(one) for one in wanted)):
            yield Change(path.decode("utf-8", "surrogateescape"), mine, other)
        if mine_below is not None or other_below is not None:
            pending.append(_beside(place, mine_below, other_below))


_Place = tuple[File | None, Directory | None]


def _beside(path: bytes, old: Directory | None, new: Directory | None) -> Iterator[tuple[bytes, _Place, _Place]]:
    """What stands at each path of two directories, but for files that are known to be equal."""
    before = old.names() if old is not None else {}
    after = new.names() if new is not None else {}
    for name in sorted(before.keys() | after.keys()):
        mark = before.get(name)
        if mark is None or mark != after.get(name):
            place = old.file(name) if old is not None and name in before else (None, None)
            yield path + name, place, new.file(name) if new is not None and name in after else (None, None)


# -- EROFS images ------------------------------------------------------------------------------------------------------


def of_erofs(data: bytes | mmap) -> Directory:
    """The root directory of an EROFS image; ``data`` may be a mapping.

    Raises:
        FormatError: it is none.  What is damaged farther below is said where it is read.
    """
    tree = Tree(data)
    return _InImage(tree, tree.root)


class _InImage:
    """A directory of an EROFS image."""

    def __init__(self, tree: Tree, nid: int) -> None:
        self._tree = tree
        self._nid = nid
        self._inodes: dict[bytes, int] = {}

    def names(self) -> Mapping[bytes, Hashable]:
        found: dict[bytes, Hashable] = {}
        for name, nid, mark in self._tree.files(self._nid):
            self._inodes[name] = nid
            found[name] = mark
        return found

    def file(self, name: bytes) -> tuple[File, Directory | None]:
        nid = self._inodes[name]
        node = self._tree.node(nid)
        content: ObjectId | bytes = node.object or node.content or b""
        if node.kind.endswith("device"):
            content = b"%d:%d" % node.device
        mode = 0 if node.kind == "symlink" else node.mode
        size = node.size if node.kind in ("file", "symlink") else 0
        file = File(node.kind, mode, node.uid, node.gid, size, content, self._tree.xattrs(nid))
        return file, _InImage(self._tree, nid) if node.kind == "directory" else None


# -- layers ------------------------------------------------------------------------------------------------------------

_WHITEOUT, _MARK, _OPAQUE = b".wh.", b".wh..wh.", b".wh..wh..opq"
_MOST_FILES = 2_000_000
"""Files in the layers of an image, and directories that are only implied: some 1 GB of memory.  Large images have 500,000."""
_CAPABILITY = b"security.capability"
_USUAL_DEPTH = 16
"""Names in a path; a deeper one counts for as many files as it may make directories."""
_IMPLIED = File("directory", 0o755, 0, 0)
"""A directory that a layer has something in, and says nothing of."""
_KINDS: dict[bytes, Kind] = {
    tar.SYMBOLIC_LINK: "symlink",
    b"3": "character device",
    b"4": "block device",
    b"5": "directory",
    b"6": "fifo",
}


class Folder:
    """A directory of layers that are laid upon each other."""

    __slots__ = ("_gone", "_here", "_opaque")

    def __init__(self) -> None:
        self._here: dict[bytes, tuple[File, Folder | None]] = {}
        self._gone: list[bytes] | None = None
        self._opaque = False

    def names(self) -> Mapping[bytes, Hashable]:
        """What is in it, by name; see :class:`Directory`."""
        return {name: file if folder is None else None for name, (file, folder) in self._here.items()}

    def file(self, name: bytes) -> tuple[File, Directory | None]:
        """A file, and what is in it where it is a directory."""
        return self._here[name]

    def lay(self, layer: Iterator[tuple[tar.Entry, bytes | ObjectId]], most: int = _MOST_FILES) -> None:
        """Lay a layer upon this, which is the root.

        Args:
            layer: as :func:`cfs_tags.formats.tarlayer.contents` reads it.
            most: files that are taken.

        Raises:
            FormatError: it is no tar; a path in it leads out of it or is too long, or a hard link leads to nothing.
        """
        upper = Folder()
        left = most
        for entry, content in layer:
            names = _names(entry.name, entry)
            left -= len(names) if len(names) > _USUAL_DEPTH else 1
            if left < 0:
                _wrong(entry, f"at most {most} files", "more")
            if not names or (names[0] == b"run" and len(names) > 1):
                continue
            name = names.pop()
            folder = upper._made(names)
            if name == _OPAQUE:
                folder._opaque = True
            elif name.startswith(_MARK):
                continue
            elif name.startswith(_WHITEOUT):
                folder._gone = [*(folder._gone or ()), name[len(_WHITEOUT) :]]
            elif entry.kind == tar.HARD_LINK:
                folder._here[name] = _linked(entry, upper, self)
            else:
                file = _file(entry, content)
                known = folder._here.get(name, (None, None))[1]
                folder._here[name] = file, (known or Folder()) if file.kind == "directory" else None
        self._take(upper)

    def _made(self, names: list[bytes]) -> Folder:
        """The folder of a path, made with all above it where something else or nothing is there."""
        folder = self
        for name in names:
            below = folder._here.get(name, (None, None))[1]
            if below is None:
                below = Folder()
                folder._here[name] = _IMPLIED, below
            folder = below
        return folder

    def _find(self, names: list[bytes]) -> tuple[File, Folder | None] | None:
        folder: Folder | None = self
        found = None
        for name in names:
            found = folder._here.get(name) if folder is not None else None
            folder = found[1] if found is not None else None
        return found

    def _take(self, upper: Folder) -> None:
        pending = [(self, upper)]
        while pending:
            below, above = pending.pop()
            if above._opaque:
                below._here.clear()
            for name in above._gone or ():
                below._here.pop(name, None)
            for name, (file, folder) in above._here.items():
                known, old = below._here.get(name, (None, None))
                if folder is None or old is None or known is None:
                    below._here[name] = file, folder
                else:
                    below._here[name] = known if file is _IMPLIED else file, old
                    pending.append((old, folder))


def _names(path: bytes, entry: tar.Entry) -> list[bytes]:
    if len(path) > MAX_PATH:
        _wrong(entry, f"a path of at most {MAX_PATH} bytes", f"{len(path)} bytes")
    names = [name for name in path.split(b"/") if name not in (b"", b".")]
    if b".." in names:
        _wrong(entry, "a path without ..", path.decode("utf-8", "backslashreplace"))
    return names


def _linked(entry: tar.Entry, *roots: Folder) -> tuple[File, None]:
    target = entry.link
    found = next(filter(None, (root._find(_names(target, entry)) for root in roots)), None)
    if found is None or found[1] is not None:
        _wrong(entry, "a hard link to a file", f"one to {target.decode('utf-8', 'backslashreplace')}")
    return found[0], None


def _file(entry: tar.Entry, content: bytes | ObjectId) -> File:
    """A file as the header and the PAX records before it say."""
    block, records = entry.block, entry.records
    kind: Kind = "file" if entry.is_file else _KINDS.get(entry.kind, "file")
    if entry.kind == b"\0" and not entry.is_file:
        kind = "directory"
    size = entry.size if kind == "file" else 0
    if kind == "symlink":
        content = entry.link
        size = len(content)
    elif kind.endswith("device"):
        content = b"%d:%d" % (tar.number(block[329:337]) or 0, tar.number(block[337:345]) or 0)
    uid, gid = (_owner(records.get(key), field) for key, field in ((b"uid", block[108:116]), (b"gid", block[116:124])))
    capability = records.get(b"SCHILY.xattr." + _CAPABILITY)
    xattrs = ((_CAPABILITY, capability),) if capability is not None else ()
    mode = (tar.number(block[100:108]) or 0) & 0o7777
    return File(kind, 0 if kind == "symlink" else mode, uid, gid, size, content, xattrs)


def _owner(record: bytes | None, field: bytes) -> int:
    if record is not None and record.isdigit() and len(record) <= 10:
        return int(record)
    return tar.number(field) or 0


def _wrong(entry: tar.Entry, wanted: str, found: str) -> NoReturn:
    raise FormatError(structure="layer", offset=entry.begin - tar.BLOCK, wanted=wanted, found=found)
