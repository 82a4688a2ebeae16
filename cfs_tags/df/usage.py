"""What each name, image and owner keeps, what is shared, and what would be freed without it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from heapq import heappush, heappushpop
from typing import TYPE_CHECKING, NamedTuple

from cfs_tags.df.reach import Group, Used, bits_of, groups_of, links_of, sums_of
from cfs_tags.errors import TagNotFound
from cfs_tags.formats.boot.paths import BOOTC_TAG_PREFIX
from cfs_tags.repo import layout, refs
from cfs_tags.values import Digest

if TYPE_CHECKING:
    from cfs_tags.repo.store import ReadRepo
    from cfs_tags.repo.transaction.change import RefChange

_MOST_NAMES = 8
"""Names that are listed at most of those with whom something is shared."""
_MOST_SHARING = 3
"""Shared parts that are listed for an image at most."""


class Owned(NamedTuple):
    """A name, or an owner, and what it keeps.

    ``total`` is all that is reached; ``shared`` the part that something else reaches, too; ``freed`` what would be
    garbage if this alone were deleted.
    """

    name: str
    owner: str
    total: Used
    shared: Used
    freed: Used


class Sharing(NamedTuple):
    """What is shared with just these: a name for each image, at most eight, and how many more there are."""

    names: tuple[str, ...]
    more: int
    used: Used


class ImageUse(NamedTuple):
    """An image and its names.

    ``manifest`` is None where a ref leads to something else: then that ref alone stands for it.  ``total`` is all that the
    names reach; ``shared`` the part that other images reach, too, ``shared_with`` the largest parts of that; ``freed`` what
    would be garbage if all the names were deleted.
    """

    manifest: Digest | None
    names: tuple[str, ...]
    total: Used
    shared: Used
    freed: Used
    shared_with: tuple[Sharing, ...]


class Usage(NamedTuple):
    """The answer.

    ``rows`` are tags and deployments; ``images`` those of one image together, the largest first; ``owners`` their sums with
    everything counted once; ``apps`` is what tags of apps keep, and what pins of images alone do.
    ``without`` is what deleting the names that were asked for would free together, ``staying`` the
    largest parts of what would stay, because others have it, too.  ``dead`` is what a collection would free now; ``linked``
    counts objects with other hard links, whose bytes may not come free.
    """

    rows: tuple[Owned, ...]
    images: tuple[ImageUse, ...]
    owners: tuple[Owned, ...]
    apps: Owned
    without: Used | None
    staying: tuple[Sharing, ...]
    live: Used
    dead: Used
    linked: int
    problems: tuple[str, ...]


def measure(repo: ReadRepo, without: Iterable[str] = (), changes: Iterable[RefChange] = ()) -> Usage:
    """Measure the repository; the caller holds its lock shared.

    Args:
        repo: where.
        without: names of tags (and ``@deployment/<id>``) whose deletion together is asked about.
        changes: of refs that a collection would make first: the repository is measured as if they were made.

    Raises:
        TagNotFound: there is no such tag.
    """
    links = links_of(repo, changes)
    groups = groups_of(links)
    wanted = set(without)
    gone = _gone(groups, wanted)
    (sums, dead, linked), problems = sums_of(repo, groups)
    return Usage(
        tuple(_rows(groups, sums)),
        tuple(_images(groups, sums)),
        tuple(_owners(groups, sums)),
        _apps(groups, sums),
        None if gone is None else _total(sums, lambda mask: not mask & ~gone),
        () if gone is None else _staying(groups, sums, wanted, gone),
        _total(sums, lambda mask: True),
        dead,
        linked,
        tuple(dict.fromkeys([*(refs.why_no_link(repo, path) for path, link in links.items() if link == ""), *problems])),
    )


def _gone(groups: Sequence[Group], wanted: set[str]) -> int | None:
    """The groups of which every name is to be deleted; None where nothing was asked."""
    if not wanted:
        return None
    for name in wanted.difference(name for group in groups for name in group.names):
        raise TagNotFound(name=name)
    return _mask(wanted.issuperset(group.names) for group in groups)


def _rows(groups: Sequence[Group], sums: Mapping[int, Used]) -> Iterator[Owned]:
    """A row for each name; every mask is looked at once, however many names there are."""
    totals = [Used(0, 0)] * len(groups)
    for mask, used in sums.items():
        for bit in bits_of(mask):
            totals[bit] = totals[bit].plus(used)
    for bit, group in enumerate(groups):
        alone = sums.get(1 << bit, Used(0, 0)) if len(group.names) == 1 else Used(0, 0)
        for name in group.names:
            yield Owned(name, group.owner, totals[bit], totals[bit].less(alone), alone)


def _images(groups: Sequence[Group], sums: Mapping[int, Used]) -> list[ImageUse]:
    """A row for each image, in time that grows with the groups that each object has."""
    members: dict[object, list[int]] = {}
    for bit, group in enumerate(groups):
        members.setdefault(group.manifest or group.names, []).append(bit)
    image_of = {bit: number for number, bits in enumerate(members.values()) for bit in bits}
    by_image: dict[int, Used] = {}
    for mask, used in sums.items():
        together = 0
        for bit in bits_of(mask):
            together |= 1 << image_of[bit]
        by_image[together] = by_image.get(together, Used(0, 0)).plus(used)
    count = len(members)
    totals = [Used(0, 0)] * count
    largest: list[list[tuple[int, int]]] = [[] for _ in range(count)]
    for together, used in by_image.items():
        for number in bits_of(together):
            totals[number] = totals[number].plus(used)
            if together != 1 << number:
                best = largest[number]
                (heappush if len(best) < _MOST_SHARING else heappushpop)(best, (used.allocated, together))
    names = [tuple(sorted((name for bit in bits for name in groups[bit].names), key=_in_order)) for bits in members.values()]
    images = []
    for number, (key, mine) in enumerate(zip(members, names, strict=True)):
        freed = by_image.get(1 << number, Used(0, 0))
        with_whom = tuple(
            _sharing((names[bit][0] for bit in bits_of(together & ~(1 << number))), by_image[together])
            for _, together in sorted(largest[number], reverse=True)
        )
        manifest = key if isinstance(key, Digest) else None
        images.append(ImageUse(manifest, mine, totals[number], totals[number].less(freed), freed, with_whom))
    return sorted(images, key=lambda image: (-image.total.allocated, image.names))


def _in_order(name: str) -> tuple[bool, bool, str]:
    """The names by which people know an image come first."""
    return name.startswith(BOOTC_TAG_PREFIX), name.startswith("@trash/"), name


def _staying(groups: Sequence[Group], sums: Mapping[int, Used], wanted: set[str], gone: int) -> tuple[Sharing, ...]:
    """With whom names that are to be deleted share the most; other names of the same image are among them."""
    touched = _mask(not wanted.isdisjoint(group.names) for group in groups)
    others: dict[int, Used] = {}
    for mask, used in sums.items():
        if mask & touched and (staying := mask & ~gone):
            others[staying] = others.get(staying, Used(0, 0)).plus(used)
    largest = sorted(others.items(), key=lambda pair: -pair[1].allocated)[:_MOST_SHARING]
    return tuple(
        _sharing({name for bit in bits_of(mask) for name in groups[bit].names} - wanted, used) for mask, used in largest
    )


def _sharing(names: Iterable[str], used: Used) -> Sharing:
    found = sorted(names, key=_in_order)
    return Sharing(tuple(found[:_MOST_NAMES]), max(0, len(found) - _MOST_NAMES), used)


def _owners(groups: Sequence[Group], sums: Mapping[int, Used]) -> Iterator[Owned]:
    for owner in sorted({group.owner for group in groups}):
        mine = _mask(group.owner == owner for group in groups)
        total = _total(sums, lambda mask, mine=mine: bool(mask & mine))  # type: ignore[misc]
        alone = _total(sums, lambda mask, mine=mine: not mask & ~mine)  # type: ignore[misc]
        yield Owned(owner, owner, total, total.less(alone), alone)


def _apps(groups: Sequence[Group], sums: Mapping[int, Used]) -> Owned:
    """What counts for apps; a pin of an image is a second name of it, and says nothing of whose it is."""
    apps = _mask(group.owner == "app" for group in groups)
    pins = _mask(group.owner == "pin" and all(tree != layout.IMAGES for tree, _ in group.targets) for group in groups)
    total = _total(sums, lambda mask: bool(mask & apps) or not mask & ~pins)
    alone = _total(sums, lambda mask: not mask & ~(apps | pins))
    return Owned("apps", "app", total, total.less(alone), alone)


def _mask(bits: Iterable[bool]) -> int:
    """A number with these bits, the first one lowest."""
    return int("".join(["01"[bit] for bit in bits][::-1]) or "0", 2)


def _total(sums: Mapping[int, Used], fits: Callable[[int], bool]) -> Used:
    objects = allocated = 0
    for mask, used in sums.items():
        if fits(mask):
            objects += used.objects
            allocated += used.allocated
    return Used(objects, allocated)
