"""What is dead by the marks: links in the order in which they go, and objects."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from operator import attrgetter
from typing import TYPE_CHECKING

from cfs_tags.errors import CfsTagsError, SysrootUnseen
from cfs_tags.formats import layout
from cfs_tags.gc.marks import is_live
from cfs_tags.gc.values import Swept
from cfs_tags.inventory import LOOKERS, look_at, names_of_objects, object_directories
from cfs_tags.marking import Marker, Snapshot
from cfs_tags.processes import in_processes
from cfs_tags.reachability import read_node
from cfs_tags.repo.contents import BOOT_KEY, EROFS_KEY

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cfs_tags.gc.values import GcOptions
    from cfs_tags.inventory import Keys
    from cfs_tags.repo.store import ReadRepo

__all__ = ["count_dead", "dead_links", "dead_names", "refuse_unseen"]


def dead_links(repo: ReadRepo, snapshot: Snapshot, marker: Marker) -> list[tuple[str, str]]:
    """Links in ``streams/`` and ``images/`` whose object goes, or is gone: path and text, those to be deleted first last.

    What names others goes before them: a pull or tag that finds the name of a manifest or config takes it for whole, however
    far a collection came before it was stopped.
    """
    links = [
        (link, f"{tree}/{name}")
        for tree, links in ((layout.STREAMS, snapshot.streams), (layout.IMAGES, snapshot.images))
        for name, link in links.items()
        if link
    ]
    dead = [(path, link) for link, path in sorted(links) if not is_live(repo, marker.live, link)]
    return sorted(dead, key=lambda entry: -_rank(entry[0]))


def refuse_unseen(repo: ReadRepo, snapshot: Snapshot, dead: Sequence[tuple[str, str]], options: GcOptions) -> None:
    """Stop before the image of a deployment goes that nobody could see, and so give no ref."""
    start = f"{layout.IMAGES}/"
    images = {path[len(start) :] for path, _ in dead if path.startswith(start)}
    if not images or options.no_sysroot or not repo.is_bootc:
        return
    images -= _images_of_apps(repo, snapshot)
    if images:
        raise SysrootUnseen(path=repo.path, images=tuple(sorted(images)))


def _images_of_apps(repo: ReadRepo, snapshot: Snapshot) -> set[str]:
    """EROFS images that only configs name of which nobody made an image for booting: bootc deploys no such image."""
    apps: set[str] = set()
    bootable: set[str] = set()
    for name, link in snapshot.streams.items():
        if name.startswith("oci-config-"):
            with suppress(CfsTagsError):  # what cannot be read explains no image
                named = read_node(repo, layout.object_of_link(link, repo.algorithm, name), name).named
                kind = bootable if any(key.startswith(BOOT_KEY) for key, _ in named) else apps
                kind.update(target for key, target in named if key.startswith(EROFS_KEY))
    return apps - bootable


_RANKS = (f"{layout.STREAMS}/oci-manifest-", f"{layout.STREAMS}/oci-config-")
_LAST = (f"{layout.STREAMS}/oci-layer-", f"{layout.STREAMS}/oci-blob-", f"{layout.IMAGES}/")


def _rank(path: str) -> int:
    """When a dead link is deleted: all of a lower rank before those of a higher one."""
    for rank, start in enumerate(_RANKS):
        if path.startswith(start):
            return rank
    return len(_RANKS) + path.startswith(_LAST)


def count_dead(repo: ReadRepo, live: Keys, limit: int, free_bytes: int | None) -> Swept:
    """How many objects are dead and what they take.

    Args:
        repo: where.
        live: what stays.
        limit: objects that changed at this time or later stay, in nanoseconds since 1970.
        free_bytes: count no more once so many bytes would be freed; None: all.
    """
    parents = object_directories(repo)
    if free_bytes is not None:
        total = Swept()
        for parent in parents:
            total, done = _count_directory(repo, parent, live, limit, total, free_bytes)
            if done:
                break
        return total
    return in_processes(lambda mine: _count_some(repo, mine, live, limit), Swept.plus, parents, LOOKERS, 64)


def _count_some(repo: ReadRepo, parents: Sequence[str], live: Keys, limit: int) -> Swept:
    total = Swept()
    for parent in parents:
        total, _ = _count_directory(repo, parent, live, limit, total, None)
    return total


def _count_directory(
    repo: ReadRepo, parent: str, live: Keys, limit: int, total: Swept, free_bytes: int | None
) -> tuple[Swept, bool]:
    fd = repo.directory(f"{layout.OBJECTS}/{parent}")
    if fd is None:
        return total, False
    objects, allocated, size = total[:3]
    try:
        names = dead_names(repo, parent, os.listdir(fd), live)
        if free_bytes is not None:
            names.sort()
        for mode, changed, blocks, length in filter(None, look_at(fd, names, _facts)):
            if changed >= limit or not stat.S_ISREG(mode):
                continue
            objects += 1
            allocated += blocks * 512
            size += length
            if free_bytes is not None and allocated >= free_bytes:
                return total._replace(objects=objects, allocated=allocated, size=size), True
    finally:
        os.close(fd)
    return total._replace(objects=objects, allocated=allocated, size=size), False


_facts: Callable[[os.stat_result], tuple[int, int, int, int]] = attrgetter("st_mode", "st_ctime_ns", "st_blocks", "st_size")


def dead_names(repo: ReadRepo, parent: str, names: list[str], live: Keys) -> list[str]:
    """Names of dead objects in ``objects/<parent>``."""
    names, keys = names_of_objects(repo, parent, names)
    here = live.of(parent)
    return [name for name, key in zip(names, keys, strict=True) if key not in here]
