"""What the guest tests share: the disks, the calls of the kernel that Python lacks, and what fixtures give."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import shutil
import struct
import tarfile
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from support.images import Image

__all__ = [
    *("DISK", "PLAIN", "PLAIN_DISK", "VERITY", "NewRepo", "Run", "Said", "Shop"),
    *("assert_reads_guarded", "flip", "guarded_copy", "mount", "objects_of", "unguarded", "unmount", "verity_of"),
]

VERITY, DISK = Path("/verity"), Path("/dev/vda")
"""ext4 with fs-verity, and the disk that it is on."""
PLAIN, PLAIN_DISK = Path("/plain"), Path("/dev/vdb")
"""ext4 without."""

_MEASURE_VERITY = 0xC0046686  # FS_IOC_MEASURE_VERITY, linux/fsverity.h
_ENABLE_VERITY = 0x40806685  # FS_IOC_ENABLE_VERITY
_BLOCK_OF = 1  # FIBMAP, linux/fs.h
_BLOCK = 4096

_libc = ctypes.CDLL(None, use_errno=True)


class Said(NamedTuple):
    """What a run of ``cfs-tag`` gave."""

    status: int
    out: str
    error: str

    @property
    def result(self) -> Any:
        """Of the one document on standard output."""
        return json.loads(self.out)["result"]

    @property
    def failure(self) -> Any:
        """The error in the one document on standard output."""
        return json.loads(self.out)["error"]


class Run(Protocol):
    """Runs ``cfs-tag`` on ``repo``; ``status`` is the exit status that it must have."""

    def __call__(self, repo: Path, *words: str | Path, status: int = 0, input: str = "") -> Said:
        """With these words."""


class NewRepo(Protocol):
    """Makes empty secure repositories."""

    def __call__(self, algorithm: str = "sha512") -> Path:
        """Make one."""


class Shop(NamedTuple):
    """A secure repository with two pulled images that share a layer; their tags are ``first`` and ``second``."""

    path: Path
    first: Image
    second: Image


def mount(source: Path, target: Path, kind: str) -> None:
    """mount(2)."""
    if _libc.mount(os.fsencode(source), os.fsencode(target), kind.encode(), 0, None) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(target))


def unmount(target: Path) -> None:
    """umount(2)."""
    if _libc.umount(os.fsencode(target)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(target))


def verity_of(path: Path) -> str | None:
    """The digest by which the kernel guards a file; None where it does not."""
    fd = os.open(path, os.O_RDONLY)
    try:
        answer = bytearray(b"\0\0\x40\0" + bytes(64))
        fcntl.ioctl(fd, _MEASURE_VERITY, answer)
    except OSError:
        return None
    finally:
        os.close(fd)
    return answer[4 : 4 + answer[2]].hex()


def guarded_copy(source: Path, target: Path) -> Path:
    """Copy a secure repository on :data:`VERITY`, and have the kernel guard in it what it guarded; returns ``target``."""
    shutil.copytree(source, target, symlinks=True)
    for path in (Path("meta.json"), *(path.relative_to(source) for path in objects_of(source).values())):
        digest = verity_of(source / path)
        if digest is not None:
            with (target / path).open("rb") as file:
                kind = {64: 1, 128: 2}[len(digest)]
                fcntl.ioctl(file, _ENABLE_VERITY, struct.pack("<IIIIQIIQ88x", 1, kind, _BLOCK, 0, 0, 0, 0, 0))
            assert verity_of(target / path) == digest
    return target


def objects_of(repo: Path) -> dict[str, Path]:
    """All objects by name."""
    return {path.parent.name + path.name: path for path in repo.glob("objects/*/*")}


def unguarded(repo: Path) -> list[str]:
    """The objects that the kernel does not guard by the digest that is their name."""
    return [name for name, path in objects_of(repo).items() if verity_of(path) != name]


def flip(path: Path, offset: int) -> None:
    """Turn over a bit of a file in :data:`VERITY` on the disk itself, behind the back of the file system."""
    os.sync()
    with path.open("rb") as file:
        block = bytearray((offset // _BLOCK).to_bytes(4, "little"))
        fcntl.ioctl(file, _BLOCK_OF, block)
    unmount(VERITY)
    try:
        with DISK.open("r+b") as disk:
            disk.seek(int.from_bytes(block, "little") * _BLOCK + offset % _BLOCK)
            byte = disk.read(1)[0]
            disk.seek(-1, os.SEEK_CUR)
            disk.write(bytes([byte ^ 1]))
            disk.flush()
            os.fsync(disk.fileno())
    finally:
        mount(DISK, VERITY, "ext4")


def assert_reads_guarded(mounted: Path, image: Image) -> None:
    """Fail unless ``image`` is mounted there, whole, by an overlay that takes guarded objects alone."""
    options = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if line.split()[4] == str(mounted)]
    assert len(options) == 1
    assert "verity=require" in options[0]
    files = {entry.name: entry.content for layer in image.layers for entry in layer.entries if entry.kind == tarfile.REGTYPE}
    assert any(len(content) > _BLOCK for content in files.values())
    assert {str(path.relative_to(mounted)): path.read_bytes() for path in mounted.rglob("*") if path.is_file()} == files
