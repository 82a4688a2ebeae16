"""EROFS images made by hand, structure by structure: small ones, and such as no program makes."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from cfs_tags.values import Algorithm

__all__ = ["FIRST", "Xattr", "crafted", "directory_block", "image_with", "inode", "small_images"]

FIRST = 64
"""The inode of the root; the superblock ends before it."""


class Xattr(NamedTuple):
    """An extended attribute: the number of its prefix, the rest of its name, its value."""

    prefix: int
    name: bytes
    value: bytes

    def pack(self) -> bytes:
        data = struct.pack("<BBH", len(self.name), self.prefix, len(self.value)) + self.name + self.value
        return data + bytes(-len(data) % 4)


def inode(mode: int, layout: int, size: int, u: int = 0, xattrs: bytes = b"", *, extended: bool = False) -> bytes:
    """An inode with its xattrs; what is inline follows it."""
    icount = (len(xattrs) - 12) // 4 + 1 if xattrs else 0
    if extended:
        return struct.pack("<4HQI24xI16x", layout << 1 | 1, icount, mode, 0, size, u, 1) + xattrs
    return struct.pack("<4HI4xI4x2H4x", layout << 1, icount, mode, 1, size, u, 0, 0) + xattrs


def directory_block(entries: list[tuple[bytes, int]]) -> bytes:
    """A block that names these inodes."""
    at = 12 * len(entries)
    heads = b""
    for name, nid in entries:
        heads += struct.pack("<QHBB", nid, at, 0, 0)
        at += len(name)
    return heads + b"".join(name for name, _ in entries)


def crafted(*parts: tuple[int, bytes], xattr_block: int = 0, size: int = 0) -> bytes:
    """An image with these bytes at these offsets."""
    size = max([size, *(offset + len(part) for offset, part in parts)])
    data = bytearray(-(-size // 4096) * 4096)
    struct.pack_into("<4I", data, 0, 0xD078629A, 1, 0, 2)
    struct.pack_into("<I", data, 1024, 0xE0F5E1E2)
    struct.pack_into("<BBH", data, 1036, 12, 0, FIRST)
    struct.pack_into("<I", data, 1068, xattr_block)
    for offset, part in parts:
        data[offset : offset + len(part)] = part
    return bytes(data)


def attributes(local: list[Xattr], shared: list[int]) -> bytes:
    """The xattrs of an inode; ``shared`` are ids."""
    return struct.pack(f"<IB7x{len(shared)}I", 0, len(shared), *shared) + b"".join(each.pack() for each in local)


def image_with(local: list[Xattr], shared: list[int], pool: bytes) -> bytes:
    """A root that has one file, which has these xattrs; ``shared`` are ids into ``pool``."""
    block = directory_block([(b".", FIRST), (b"..", FIRST), (b"f", FIRST + 8)])
    root = inode(0o040755, 2, len(block)) + block
    file = inode(0o100644, 4, 9, 0, attributes(local, shared)) + bytes(4)
    return crafted((FIRST * 32, root), ((FIRST + 8) * 32, file), (32768, pool), xattr_block=8)


def small_images() -> Iterator[bytes]:
    """Trees with a file of each kind, in less than 4 KiB: images of composefs have 16 at least, most of them for whiteouts."""
    for algorithm in Algorithm:
        for extended in (False, True):
            yield _small(algorithm, extended).rstrip(b"\0") + bytes(8)


def _small(algorithm: Algorithm, extended: bool) -> bytes:
    def made(mode: int, content: bytes = b"", layout: int = 2, u: int = 0) -> bytes:
        return inode(mode, layout, len(content), u, extended=extended) + content

    digest = bytes(range(algorithm.size))
    metacopy = Xattr(4, b"overlay.metacopy", bytes((0, 4 + algorithm.size, 0, algorithm.number)) + digest)
    redirect = Xattr(4, b"overlay.redirect", f"/{digest.hex()[:2]}/{digest.hex()[2:]}".encode())
    pool = 3840  # ids of shared xattrs count from the start of the image, in units of 4 bytes
    shared = attributes([Xattr(1, b"a", b"b")], [pool // 4])

    # 192 bytes are enough for each, but for the last
    root, usr, release, link, sharing, device, whiteout, outside = range(FIRST, FIRST + 8 * 6, 6)
    in_root = [(b".", root), (b"..", root), (b"00", whiteout), (b"boot", link), (b"usr", usr)]
    in_usr = [(b".", usr), (b"..", root), (b"a", sharing), (b"dev", device), (b"large", outside), (b"os-release", release)]
    parts = {
        root: made(0o040755, directory_block(in_root)),
        usr: made(0o040755, directory_block(in_usr)),
        release: made(0o100644, b"ID=fake\n"),
        link: made(0o120777, b"usr/lib"),
        sharing: inode(0o100644, 2, 1, 0, shared, extended=extended) + b"x",
        device: made(0o020600, layout=0, u=0x501),
        whiteout: made(0o020000, layout=0),
        outside: inode(0o100644, 4, 100, 0, attributes([metacopy, redirect], []), extended=extended) + bytes(4),
    }
    capability = Xattr(6, b"capability", b"c").pack()
    return crafted(*((nid * 32, part) for nid, part in parts.items()), (pool, capability))
