"""Who shares what with whom: all that is live in parts, by who keeps them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from cfs_tags.df.reach import Group, Used, bits_of, groups_of, links_of, sums_of

if TYPE_CHECKING:
    from cfs_tags.repo.store import ReadRepo
    from cfs_tags.repo.transaction.change import RefChange

_MOST_OF_PART = 8
"""Names that are listed at most of those that keep a part."""


class Part(NamedTuple):
    """What just these keep: ``names``, a few of those of each image, how many ``more`` there are, and whose they are."""

    names: tuple[str, ...]
    more: int
    owners: tuple[str, ...]
    used: Used


class Shares(NamedTuple):
    """Who shares what with whom.

    Attributes:
        parts: all that is live, by who keeps it, the largest first; each object is in one of them.
        rest: what is in further parts, by owners.
        names: those that keep the most, one for each that lead to the same.
        matrix: bytes that each two of ``names`` share; of a name with itself, all that it keeps.
        dead: what a collection would free now.
        problems: what could not be followed.
    """

    parts: tuple[Part, ...]
    rest: tuple[Part, ...]
    names: tuple[str, ...]
    matrix: tuple[tuple[int, ...], ...]
    dead: Used
    problems: tuple[str, ...]


def shares(repo: ReadRepo, changes: Iterable[RefChange] = (), *, most: int = 200, largest: int = 30) -> Shares:
    """Who shares what with whom; the caller holds the lock shared.

    Args:
        repo: where.
        changes: of refs that a collection would make first.
        most: parts that are listed one by one.
        largest: names that are in the matrix.
    """
    groups = groups_of(links_of(repo, changes))
    (sums, dead, _), problems = sums_of(repo, groups)
    ordered = sorted(sums.items(), key=lambda pair: (-pair[1].allocated, pair[0]))
    parts = [_part(groups, mask, used) for mask, used in ordered[:most]]
    rest: dict[tuple[str, ...], Used] = {}
    for mask, used in ordered[most:]:
        owners = _part(groups, mask, used).owners
        rest[owners] = rest.get(owners, Used(0, 0)).plus(used)
    totals = [0] * len(groups)
    for mask, used in ordered:
        for bit in bits_of(mask):
            totals[bit] += used.allocated
    shown = sorted(range(len(groups)), key=lambda bit: (-totals[bit], groups[bit].names))[:largest]
    matrix = [[0] * len(shown) for _ in shown]
    for mask, used in ordered:
        inside = [number for number, bit in enumerate(shown) if mask >> bit & 1]
        for one in inside:
            for other in inside:
                matrix[one][other] += used.allocated
    return Shares(
        tuple(parts),
        tuple(Part((), 0, owners, used) for owners, used in rest.items()),
        tuple(groups[bit].names[0] for bit in shown),
        tuple(map(tuple, matrix)),
        dead,
        tuple(problems),
    )


def _part(groups: Sequence[Group], mask: int, used: Used) -> Part:
    members = [groups[bit] for bit in bits_of(mask)]
    names = [name for group in members for name in group.names]
    return Part(tuple(names[:_MOST_OF_PART]), len(names[_MOST_OF_PART:]), tuple(sorted({one.owner for one in members})), used)
