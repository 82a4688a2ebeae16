"""What a directory holds, as a value that can be compared."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

__all__ = ["Node", "copy_tree", "node_of", "tree", "unpack"]


class Node(NamedTuple):
    """One entry: ``kind`` is ``file``, ``dir``, ``link`` or ``other``; the rest as far as the kind has it."""

    kind: str
    mode: int = 0
    size: int = 0
    sha256: str = ""
    target: str = ""


def tree(path: Path, exclude: Collection[str] = ()) -> dict[str, Node]:
    """Relative path to :class:`Node` for everything below ``path``.

    ``exclude`` names entries at the top that are left out with all they hold, such as ``cfs-tags``.  Time stamps are no
    part of it.  Links are not followed; mode bits of links are 0, because they mean nothing.
    """
    found: dict[str, Node] = {}
    pending = [""]
    while pending:
        parent = pending.pop()
        with os.scandir(path / parent) as entries:
            for entry in entries:
                name = f"{parent}{entry.name}"
                if name in exclude:
                    continue
                found[name] = node_of(Path(entry.path))
                if found[name].kind == "dir":
                    pending.append(f"{name}/")
    return dict(sorted(found.items()))


def node_of(path: Path) -> Node:
    """The :class:`Node` of one entry; a link is not followed."""
    status = path.lstat()
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISLNK(status.st_mode):
        return Node("link", target=os.readlink(path))
    if stat.S_ISDIR(status.st_mode):
        return Node("dir", mode)
    if stat.S_ISREG(status.st_mode):
        return Node("file", mode, status.st_size, hashlib.sha256(path.read_bytes()).hexdigest())
    return Node("other", mode)


def copy_tree(source: Path, target: Path) -> Path:
    """Copy a directory as it is, sharing blocks where the file system can; returns ``target``."""
    copier = shutil.which("cp")
    assert copier is not None
    assert not target.exists(), f"{target} is there already"
    target.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([copier, "-a", "--reflink=auto", "--", source, target], check=True, timeout=120)
    return target


def unpack(archive: Path, target: Path) -> None:
    """Unpack an archive of ours as it is; Python before 3.11.4 knows no filters, and does that."""
    with tarfile.open(archive) as opened:
        if hasattr(tarfile, "fully_trusted_filter"):
            opened.extractall(target, filter="fully_trusted")
        else:
            opened.extractall(target)
