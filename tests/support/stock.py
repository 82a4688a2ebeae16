"""A repository with something in it, and what a test needs to look at it without the product's help.

Four app images pulled by the real cfsctl, tagged ``held/one`` to ``held/four``.  Copies share their objects by hard links:
cheap enough for hundreds of them, and safe as long as no test writes *into* an object.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

from cfs_tags.errors import CfsTagsError
from cfs_tags.repo import fsops
from support.images import app_image, pull_image
from support.peers import Cfsctl

__all__ = [
    "IMAGES",
    "NEED_ROOM",
    "PRIVATE",
    "SHARED",
    "before_call",
    "dangling",
    "digest_of",
    "disk_full_after",
    "error_of",
    "fill",
    "hard_copy",
    "in_memory",
    "leftovers",
    "let_go",
    "link_to",
    "make_tag",
    "refs",
    "reset",
    "tags",
    "without_exchange",
]

IMAGES = ("one", "two", "three", "four")
SHARED = "streams/refs/oci"
PRIVATE = "streams/refs/cfs-tags/tags"
NEED_ROOM = (
    *("make_directory", "make_link", "create_file", "replace_file", "rewrite_file"),
    *("append", "open_unnamed", "write", "adopt_object", "add_name"),
)
"""Operations of ``fsops`` that a full disk refuses; renaming, removing and syncing need no room."""


def fill(cfsctl: Cfsctl, repo: Path) -> None:
    """For the fixture ``filled_repo("stock", fill)``."""
    for name in IMAGES:
        pull_image(cfsctl, repo, app_image(repo.parent / "layout", name), f"held/{name}")
    cfsctl(repo, "gc")  # pulling leaves first versions of streams behind


def digest_of(repo: Path, name: str) -> str:
    """The manifest digest of ``one``, ``two``, …, also after :func:`let_go`."""
    held = repo / SHARED / f"held%2F{name}"
    if not held.is_symlink():
        held = repo.parent / f"{repo.name}.held" / name
    return os.readlink(held).rpartition("oci-manifest-")[2]


def let_go(repo: Path, *names: str) -> None:
    """Remove the tags that hold images, so that a collector may take them; :func:`digest_of` still knows them."""
    kept = repo.parent / f"{repo.name}.held"
    kept.mkdir(exist_ok=True)
    for name in names or IMAGES:
        (repo / SHARED / f"held%2F{name}").rename(kept / name)


def link_to(digest: str, depth: int = 2) -> str:
    """What a ref says that stands ``depth`` directories below ``streams/``."""
    return "../" * depth + f"oci-manifest-{digest}"


def make_tag(repo: Path, name: str, digest: str, home: str = SHARED) -> Path:
    """Make or move a tag as cfsctl does: a link under another name, then a rename over what is there."""
    path = repo / home / name.replace("%", "%25").replace("/", "%2F")
    path.parent.mkdir(parents=True, exist_ok=True)
    spare = path.parent / ".symlink-peer"
    spare.symlink_to(link_to(digest, home.count("/")))
    spare.rename(path)
    return path


def refs(repo: Path) -> dict[str, str]:
    """Path to link text of every ref in the repository; ``not a link`` for anything else that is no directory."""
    found = {}
    for tree in ("streams/refs", "images/refs"):
        for parent, directories, files in os.walk(repo / tree):
            for name in directories + files:
                path = Path(parent, name)
                if path.is_symlink():
                    found[str(path.relative_to(repo))] = os.readlink(path)
                elif not path.is_dir():
                    found[str(path.relative_to(repo))] = "not a link"
    return found


def tags(repo: Path) -> dict[str, str]:
    """Path to manifest digest of every ref that names a manifest; the held ones left out."""
    return {
        path: link.rpartition("oci-manifest-")[2]
        for path, link in refs(repo).items()
        if "oci-manifest-" in link and "/held%2F" not in path
    }


def dangling(repo: Path) -> list[str]:
    """Refs whose link, or whose target's link, leads to nothing."""
    return [path for path in refs(repo) if not (repo / path).exists()]


def leftovers(repo: Path) -> list[str]:
    """What an interrupted transaction left in our state."""
    return sorted(
        f"{name}/{entry}"
        for name in ("tmp", "journal")
        if (repo / "cfs-tags" / name).is_dir()
        for entry in os.listdir(repo / "cfs-tags" / name)
    )


def error_of(function: Callable[[], object]) -> CfsTagsError | None:
    """The error that ``function`` raises, None where it raises none."""
    try:
        function()
    except CfsTagsError as error:
        return error
    return None


def hard_copy(source: Path, target: Path) -> Path:
    """A copy whose objects are hard links to the original's, with its :func:`let_go` folder; replaces ``target``."""

    def copy(old: str, new: str) -> None:
        if "/objects/" in old:
            os.link(old, new)
        else:
            shutil.copy2(old, new)

    for suffix in ("", ".held"):
        start = Path(f"{source}{suffix}")
        end = Path(f"{target}{suffix}")
        if end.exists():
            shutil.rmtree(end)
        if start.exists():
            shutil.copytree(start, end, symlinks=True, copy_function=copy)
    return target


def reset(source: Path, target: Path) -> Path:
    """Make refs and our state in ``target`` again what they are in ``source``; quicker where no content has gone."""
    for part in ("streams/refs", "images/refs", "cfs-tags"):
        if (target / part).exists():
            shutil.rmtree(target / part)
        if (source / part).exists():
            shutil.copytree(source / part, target / part, symlinks=True)
    return target


@contextmanager
def in_memory() -> Iterator[Path]:
    """A directory in memory, where syncing costs nothing: for tests with thousands of changes."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    home = Path(tempfile.mkdtemp(dir=base))
    try:
        yield home
    finally:
        shutil.rmtree(home)


@contextmanager
def before_call(name: str, action: object, which: int = 1) -> Iterator[Mapping[str, int]]:
    """Context in which ``action()`` runs right before call number ``which`` of an operation of ``fsops``.

    Yields:
        a mapping whose ``calls`` counts the calls.
    """
    assert callable(action)
    original = getattr(fsops, name)
    seen = {"calls": 0}

    def watched(*args: object, **named: object) -> object:
        seen["calls"] += 1
        if seen["calls"] == which:
            action()
        return original(*args, **named)

    with patch.object(fsops, name, watched):
        yield seen


@contextmanager
def disk_full_after(n: int, operations: Collection[str] = NEED_ROOM) -> Iterator[Mapping[str, int]]:
    """Context in which, after ``n`` changes, those fail that need room on the disk; the others still work.

    Yields:
        a mapping whose ``failed`` counts the changes that did.
    """
    seen = {"calls": 0, "failed": 0}

    def watch(name: str, original: Callable[..., object]) -> Callable[..., object]:
        def watched(*args: object, **named: object) -> object:
            if seen["calls"] >= n and name in operations:
                seen["failed"] += 1
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            seen["calls"] += 1
            return original(*args, **named)

        return watched

    with ExitStack() as stack:
        for name in fsops.MUTATING:
            stack.enter_context(patch.object(fsops, name, watch(name, getattr(fsops, name))))
        yield seen


@contextmanager
def without_exchange() -> Iterator[None]:
    """Context of a file system that has no RENAME_EXCHANGE."""

    def refuse(dir_fd: int, first: str, second: str) -> None:
        raise fsops.ExchangeUnsupported(22, "Invalid argument", second)

    with patch.object(fsops, "exchange", refuse):
        yield
