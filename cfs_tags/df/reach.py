"""Which roots reach which object: roots that lead to the same are one group, and objects carry a mask of groups.

Masks are made stream by stream, so that a million objects are looked at once, however many tags there are.  What an EROFS
image needs is found as a collection finds it (``graph.py``), so that both mean the same by dead.
"""

from __future__ import annotations

import os
import stat
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

from cfs_tags.errors import CfsTagsError
from cfs_tags.graph import Edge, Follow, Graph, Links
from cfs_tags.inventory import LOOKERS, keys_of, names_of_objects, object_directories
from cfs_tags.parallel import in_processes, look_at
from cfs_tags.repo import layout, refs
from cfs_tags.tags.rows import deployment_of_ref, index_of_ref, owner_of, owner_of_ref, pin_of_ref, tag_of_ref
from cfs_tags.values import ContentId, Digest

if TYPE_CHECKING:
    from cfs_tags.repo.store import ReadRepo
    from cfs_tags.repo.transaction.change import RefChange
    from cfs_tags.values import ObjectId

_OF_IMAGES = tuple(
    f"{top}/" for top in (layout.SHARED_TAGS, layout.PRIVATE_TAGS, layout.LEASES, layout.TRASH, layout.PINS, layout.DEPLOYMENTS)
)
"""Where refs lead to the manifest that their name stands for."""


class Used(NamedTuple):
    """What is reached: number of objects, and bytes that they take on disk."""

    objects: int
    allocated: int

    def plus(self, other: Used) -> Used:
        """Both together."""
        return Used(self.objects + other.objects, self.allocated + other.allocated)

    def less(self, other: Used) -> Used:
        """This without a part of it."""
        return Used(self.objects - other.objects, self.allocated - other.allocated)


class Group(NamedTuple):
    """Roots that lead to the same: their names, whose they are, what they lead to (tree and name), and the image that the
    first of them stands for."""

    names: tuple[str, ...]
    owner: str
    targets: frozenset[tuple[str, str]]
    manifest: Digest | None


def links_of(repo: ReadRepo, changes: Iterable[RefChange]) -> dict[str, str | None]:
    """All refs as they will be; the empty text for what is no link, None for one that goes."""
    links: dict[str, str | None] = dict(refs.everything(repo))
    links.update((change.path, change.new) for change in changes)
    return links


def groups_of(links: Mapping[str, str | None]) -> list[Group]:
    """Roots that lead to the same, by their names."""
    targets: dict[tuple[str, str], set[tuple[str, str]]] = {}
    images: dict[str, str] = {}
    for path, link in links.items():
        if link:
            named, target = _named(path), link.rpartition("/")[2]
            targets.setdefault(named, set()).add((path.partition("/")[0], target))
            if path.startswith(_OF_IMAGES):
                images.setdefault(named[0], target)
    for path, owner in list(targets):
        name = index_of_ref(path)
        if name is None:
            continue
        # an index goes where the tag goes that it is kept with
        of_tag = next((key for key in ((name, owner), (f"@trash/{name}", owner)) if key in targets), None)
        if of_tag is not None:
            targets[of_tag] |= targets.pop((path, owner))
    same: dict[tuple[str, frozenset[tuple[str, str]]], list[str]] = {}
    for (name, owner), mine in targets.items():
        same.setdefault((owner, frozenset(mine)), []).append(name)
    groups = [(tuple(sorted(found)), owner, mine) for (owner, mine), found in same.items()]
    return [Group(*group, ContentId.trusted(images.get(group[0][0], "")).manifest_digest) for group in sorted(groups)]


def _named(path: str) -> tuple[str, str]:
    """What a ref is called in the answer, and its owner.

    The parts of a deployment ref are one, with what is bound to the deployment: they go together.
    """
    deployment = deployment_of_ref(path)
    if deployment is not None:
        return f"@deployment/{deployment}", owner_of_ref(path)
    pin, name = pin_of_ref(path), tag_of_ref(path)
    if pin is not None:
        return f"@pin/{pin}", owner_of_ref(path)
    if name is None:
        return path, owner_of_ref(path)
    return f"@trash/{name}" if path.startswith(f"{layout.TRASH}/") else name, owner_of(name)


def sums_of(repo: ReadRepo, groups: Sequence[Group]) -> tuple[Sums, list[str]]:
    """What objects take by the groups that reach them; and what could not be followed."""
    reach = _Reach(repo)
    for bit, group in enumerate(groups):
        for tree, target in group.targets:
            reach.add(tree, target, 1 << bit)
    masks = reach.masks()
    sums = in_processes(lambda mine: _look(repo, mine, masks), Sums.plus, object_directories(repo), LOOKERS, 64)
    return sums, reach.problems


def bits_of(mask: int) -> Iterator[int]:
    """The numbers of the groups in a mask."""
    while mask:
        bit = mask & -mask
        yield bit.bit_length() - 1
        mask ^= bit


class _Reach:
    """Which groups reach which splitstream, image and object: a mask with a bit for each group."""

    def __init__(self, repo: ReadRepo) -> None:
        self.problems: list[str] = []
        self._graph = Graph(repo, Links.read(repo, self.problems))
        self._size = repo.algorithm.size
        self._tops: list[tuple[Edge, int]] = []

    def add(self, tree: str, name: str, bits: int) -> None:
        """A group leads to ``streams/<name>`` or ``images/<name>``."""
        try:
            top = self._graph.links.edge(tree, name)
        except CfsTagsError as error:
            self.problems.append(error.message)
            return
        if top is None:
            self.problems.append(f"{tree}/{name} is gone")
            return
        self._graph.add(top, name)
        self._tops.append((top, bits))

    def masks(self) -> Masks:
        """The groups that reach each object."""
        tables: dict[tuple[Follow, ObjectId], Table] = {}
        for visit in self._graph.walk():
            tables[visit.edge[:2]] = Table.of(visit.table + bytes.fromhex(visit.edge.target), self._size)
            if visit.error is not None:
                self.problems.append(visit.error.message)
        bits_of: dict[tuple[Follow, ObjectId], int] = {}
        for top, bits in self._tops:
            for edge in self._graph.reach(top):
                bits_of[edge[:2]] = bits_of.get(edge[:2], 0) | bits
        masks = Masks()
        for node, bits in bits_of.items():
            masks.add(tables.pop(node), bits)
        return masks


class Table(NamedTuple):
    """Objects, by the first byte and by the first 64 bits of their digests."""

    firsts: bytes
    keys: array[int]

    @classmethod
    def of(cls, digests: bytes, size: int) -> Table:
        """From raw digests of ``size`` bytes, one after the other."""
        return cls(digests[::size], keys_of(digests, size // 8))


class Masks:
    """The groups that reach each object, as a number with a bit for each; by directory, as :class:`cfs_tags.inventory.Keys`."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._keys = [array("Q") for _ in range(256)]
        self._bits = [array("I") for _ in range(256)]

    def add(self, table: Table, bits: int) -> None:
        """Some groups reach these objects."""
        number = self._numbers.setdefault(bits, len(self._numbers))
        keys = [one.append for one in self._keys]
        masks = [one.append for one in self._bits]
        for first, key in zip(*table, strict=True):
            keys[first](key)
            masks[first](number)

    def of(self, parent: str) -> dict[int, int]:
        """Those of the objects in ``objects/<parent>``, by key."""
        bits = list(self._numbers)
        masks: dict[int, int] = {}
        get = masks.get
        first = int(parent, 16)
        for key, number in zip(self._keys[first], self._bits[first], strict=True):
            masks[key] = get(key, 0) | bits[number]
        return masks


# -- looking at objects ------------------------------------------------------------------------------------------------


class Sums(NamedTuple):
    """What objects take by the groups that reach them, what dead ones take, and how many have other hard links."""

    by_mask: dict[int, Used]
    dead: Used
    linked: int

    def plus(self, other: Sums) -> Sums:
        """Both together."""
        sums = dict(self.by_mask)
        for mask, used in other.by_mask.items():
            sums[mask] = sums[mask].plus(used) if mask in sums else used
        return Sums(sums, self.dead.plus(other.dead), self.linked + other.linked)


_Facts = tuple[int, int, int]
_facts: Callable[[os.stat_result], _Facts] = attrgetter("st_mode", "st_blocks", "st_nlink")


def _look(repo: ReadRepo, parents: Sequence[str], masks: Masks) -> Sums:
    seen: dict[tuple[int, _Facts | None], int] = {}
    for parent in parents:
        fd = repo.directory(f"{layout.OBJECTS}/{parent}")
        if fd is None:
            continue
        try:
            with repo.reading(f"{layout.OBJECTS}/{parent}"):
                listed = os.listdir(fd)
            names, keys = names_of_objects(repo, parent, listed)
            mask_of = masks.of(parent).get
            found = Counter(zip(map(mask_of, keys, repeat(0)), look_at(fd, names, _facts), strict=True))
        finally:
            os.close(fd)
        for fact, count in found.items():
            seen[fact] = seen.get(fact, 0) + count
    sums: dict[int, Used] = {}
    linked = 0
    for (mask, facts), count in seen.items():
        mode, blocks, links = facts or (0, 0, 0)  # nothing of a file that is gone
        if stat.S_ISREG(mode):
            sums[mask] = sums.get(mask, Used(0, 0)).plus(Used(count, count * blocks * 512))
            linked += count if links > 1 else 0
    return Sums(sums, sums.pop(0, Used(0, 0)), linked)
