"""What is dead, and when that is a reason to stop: for the plan of a collection, and for the collection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from cfs_tags.errors import DamagedError, PlaceUnread, RefusedError
from cfs_tags.gc.mark import Marks, Snapshot
from cfs_tags.gc.values import GcOptions
from cfs_tags.host.sightings import BOOTING
from cfs_tags.host.sysroot import SysrootView
from cfs_tags.inventory import Keys, names_of_objects
from cfs_tags.repo import layout
from cfs_tags.repo.clock import Clock
from cfs_tags.repo.images import BOOT_KEY, EROFS_KEY
from cfs_tags.repo.store import ReadRepo
from cfs_tags.values import ContentId

TICK = 20_000_000
"""Nanoseconds by which the clock of a file system may be behind: it goes by ticks."""


def dated(options: GcOptions, known: Clock, stamp: int) -> int:
    """From when on what was made is young, by a clock: where it may be ahead, and young things are kept, the time that was seen
    last (nanoseconds since 1970)."""
    return min(stamp, int(known.earliest * 1e9)) if options.grace else stamp


def dead_links(marks: Marks) -> list[tuple[str, str]]:
    """Links in ``streams/`` and ``images/`` whose object goes, or is gone: path and text, those to be deleted first last.

    What names others goes before them: a pull or tag that finds the name of a manifest or config takes it for whole, however
    far a collection came before it was stopped.
    """
    links = [
        (link, f"{tree}/{name}")
        for tree, links in ((layout.STREAMS, marks.snapshot.streams), (layout.IMAGES, marks.snapshot.images))
        for name, link in links.items()
        if link
    ]
    dead = [(path, link) for link, path in sorted(links) if not marks.keeps(link)]
    return sorted(dead, key=lambda entry: -_rank(entry[0]))


def refuse_unseen(
    repo: ReadRepo,
    marks: Marks,
    dead: Sequence[tuple[str, str]],
    options: GcOptions,
    read_view: Callable[[], SysrootView] | None,
) -> None:
    """Stop before the image of a deployment goes that no sysroot showed, or that an entry may boot which could not be
    followed, and that so has no ref.

    Raises:
        RefusedError (sysroot-unseen): it would go, and there is no sysroot.
        PlaceUnread: it would go, and may be what such an entry boots.
    """
    start = f"{layout.IMAGES}/"
    images = {path[len(start) :] for path, _ in dead if path.startswith(start)}
    if not images or options.no_sysroot or not repo.is_bootc:
        return
    if read_view is not None:
        # what is named there was found; a partition that is not mounted has no path
        unread = [place for place in read_view().unread if place.name in BOOTING and place.path]
        if unread and images - _images_of_apps(repo, marks.snapshot):
            raise PlaceUnread(place=unread[0].name, path=unread[0].path, reason=str(unread[0].reason))
        return
    images -= _images_of_apps(repo, marks.snapshot)
    if images:
        raise RefusedError("sysroot-unseen", path=repo.path, images=tuple(sorted(images)))


def _images_of_apps(repo: ReadRepo, snapshot: Snapshot) -> set[str]:
    """EROFS images that only configs name of which no image for booting was made: bootc deploys no such image."""
    apps: set[str] = set()
    bootable: set[str] = set()
    for name, link in snapshot.streams.items():
        if name.startswith(ContentId.CONFIG):
            with suppress(DamagedError):  # what is no stream explains no image
                named = repo.stream(layout.object_of_link(link, repo.algorithm, name), name).named_refs
                kind = bootable if any(key.startswith(BOOT_KEY) for key in named) else apps
                kind.update(target for key, target in named.items() if key.startswith(EROFS_KEY))
    return apps - bootable


_RANKS = (f"{layout.STREAMS}/{ContentId.MANIFEST}", f"{layout.STREAMS}/{ContentId.CONFIG}")
_LAST = (f"{layout.STREAMS}/{ContentId.LAYER}", f"{layout.STREAMS}/{ContentId.BLOB}", f"{layout.IMAGES}/")


def _rank(path: str) -> int:
    """When a dead link is deleted: all of a lower rank before those of a higher one."""
    for rank, start in enumerate(_RANKS):
        if path.startswith(start):
            return rank
    return len(_RANKS) + path.startswith(_LAST)


def sort_out(repo: ReadRepo, parent: str, names: list[str], live: Keys) -> tuple[list[str], tuple[int, ...]]:
    """The names in ``objects/<parent>`` that are of dead objects, and the keys of live objects that have no name there."""
    names, keys = names_of_objects(repo, parent, names)
    here = live.of(parent)
    dead = [name for name, key in zip(names, keys, strict=True) if key not in here]
    absent = here.difference(keys) if len(here) > len(names) - len(dead) else ()
    return dead, tuple(absent)
