"""Who takes how much: by tag, deployment and owner; shared, and freed if one were deleted; what a collection would free.

Every object is counted once for each root that it is reached from, in the bytes that it takes on disk.  Roots that lead to
the same are one group; objects carry a mask of the groups that reach them, made stream by stream, so that a million
objects are looked at once, however many tags there are.
"""

from __future__ import annotations

import os
import stat
from array import array
from collections import Counter
from collections.abc import Callable
from itertools import repeat
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

from cfs_tags import tags
from cfs_tags.errors import CfsTagsError, TagNotFound
from cfs_tags.formats import layout
from cfs_tags.formats.erofswalk import image_table
from cfs_tags.inventory import LOOKERS, keys_of, look_at, names_of_objects, object_directories
from cfs_tags.processes import in_processes, processors
from cfs_tags.reachability import EROFS_KEY, Links, content_ids, mapped, read_node
from cfs_tags.repo import refs
from cfs_tags.values import ContentId, ObjectId

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from cfs_tags.repo.refs import RefChange
    from cfs_tags.repo.store import ReadRepo

__all__ = ["Owned", "Usage", "Used", "measure"]


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


class Usage(NamedTuple):
    """The answer.  ``rows`` are tags and deployments, ``owners`` their sums with everything counted once; ``without`` is
    what deleting the names that were asked for would free together; ``dead`` what a collection would free now;
    ``linked`` counts objects with other hard links, whose bytes may not come free."""

    rows: tuple[Owned, ...]
    owners: tuple[Owned, ...]
    without: Used | None
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
    links = _links(repo, changes)
    groups = _groups(links)
    gone = _gone(groups, without)
    reach = _Reach(repo)
    for bit, group in enumerate(groups):
        for tree, target in group.targets:
            reach.add(tree, target, 1 << bit)
    masks = reach.masks()
    sums, dead, linked = in_processes(lambda mine: _look(repo, mine, masks), _Sums.plus, object_directories(repo), LOOKERS, 64)
    return Usage(
        tuple(_rows(groups, sums)),
        tuple(_owners(groups, sums)),
        None if gone is None else _total(sums, lambda mask: not mask & ~gone),
        _total(sums, lambda mask: True),
        dead,
        linked,
        tuple(dict.fromkeys([*(refs.why_no_link(repo, path) for path, link in links.items() if link == ""), *reach.problems])),
    )


class _Group(NamedTuple):
    """Roots that lead to the same: their names, whose they are, and what they lead to (tree and name)."""

    names: tuple[str, ...]
    owner: str
    targets: frozenset[tuple[str, str]]


def _links(repo: ReadRepo, changes: Iterable[RefChange]) -> dict[str, str | None]:
    """All refs as they will be; the empty text for what is no link, None for one that goes."""
    links: dict[str, str | None] = dict(refs.everything(repo))
    links.update((change.path, change.new) for change in changes)
    return links


def _groups(links: Mapping[str, str | None]) -> list[_Group]:
    targets: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for path, link in links.items():
        if link:
            targets.setdefault(_named(path), set()).add((path.partition("/")[0], link.rpartition("/")[2]))
    for path, owner in list(targets):
        name = tags.index_of_ref(path)
        if name is None:
            continue
        # an index goes where the tag goes that it is kept with
        of_tag = next((key for key in ((name, owner), (f"@trash/{name}", owner)) if key in targets), None)
        if of_tag is not None:
            targets[of_tag] |= targets.pop((path, owner))
    same: dict[tuple[str, frozenset[tuple[str, str]]], list[str]] = {}
    for (name, owner), mine in targets.items():
        same.setdefault((owner, frozenset(mine)), []).append(name)
    return [_Group(tuple(sorted(found)), owner, mine) for (owner, mine), found in same.items()]


def _named(path: str) -> tuple[str, str]:
    """What a ref is called in the answer, and its owner.

    The parts of a deployment ref are one, with what is bound to the deployment: they go together.
    """
    deployment = tags.deployment_of_ref(path)
    name = tags.tag_of_ref(path)
    if deployment is not None:
        shown = f"@deployment/{deployment}"
    elif name is None:
        shown = path
    else:
        shown = f"@trash/{name}" if path.startswith(f"{layout.TRASH}/") else name
    return shown, tags.owner_of_ref(path)


def _gone(groups: Sequence[_Group], without: Iterable[str]) -> int | None:
    """The groups of which every name is to be deleted; None where nothing was asked."""
    wanted = set(without)
    if not wanted:
        return None
    for name in wanted.difference(name for group in groups for name in group.names):
        raise TagNotFound(name=name)
    return _mask(wanted.issuperset(group.names) for group in groups)


class _Reach:
    """Which groups reach which stream and image, and so which object."""

    def __init__(self, repo: ReadRepo) -> None:
        self._repo = repo
        self._links = Links(repo)
        self.problems = self._links.problems.copy()
        self._size = repo.algorithm.size
        self._objects: dict[ObjectId, int] = {}
        self._images: dict[ObjectId, int] = {}
        self._tables: dict[ObjectId, Table] = {}
        self._children: dict[ObjectId, tuple[tuple[ObjectId, bool], ...]] = {}

    def add(self, tree: str, name: str, bits: int) -> None:
        """A group leads to ``streams/<name>`` or ``images/<name>``."""
        try:
            if tree == layout.IMAGES:
                object_id = self._repo.image_object(name)
                if object_id is not None:
                    self._images[object_id] = self._images.get(object_id, 0) | bits
                    self._objects[object_id] = self._objects.get(object_id, 0) | bits
                    return
            else:
                object_id = self._repo.stream_object(ContentId.trusted(name))
                if object_id is not None:
                    self._follow(object_id, bits, name)
                    return
        except CfsTagsError as error:
            self.problems.append(error.message)
            return
        self.problems.append(f"{tree}/{name} is gone")

    def _follow(self, top: ObjectId, bits: int, why: str) -> None:
        pending = [top]
        while pending:
            current = pending.pop()
            had = self._objects.get(current, 0)
            if had | bits == had and current in self._children:
                continue
            self._objects[current] = had | bits
            if current not in self._children:
                self._read(current, why)
            for child, is_stream in self._children[current]:
                if is_stream:
                    pending.append(child)
                else:
                    self._objects[child] = self._objects.get(child, 0) | bits

    def _read(self, object_id: ObjectId, why: str) -> None:
        self._children[object_id] = ()
        try:
            node = read_node(self._repo, object_id, why)
        except CfsTagsError as error:
            self.problems.append(error.message)
            return
        self._tables[object_id] = Table.of(node.table + bytes.fromhex(object_id), self._size)
        children: dict[tuple[ObjectId, bool], None] = {}
        for key, target in node.named:
            children[target, not key.startswith(EROFS_KEY) or target in self._links.name_of] = None
            for content_id in content_ids(key):
                linked = self._links.object_of.get(content_id)
                if linked is not None:
                    children[linked, True] = None
        self._children[object_id] = tuple(children)

    def masks(self) -> Masks:
        """The groups that reach each object."""
        masks = Masks()
        for object_id, bits in self._objects.items():
            masks.add(self._tables.get(object_id) or Table.of(bytes.fromhex(object_id), self._size), bits)
        # the walk through a large image takes a second
        tables, problems = in_processes(
            self._read_images, lambda mine, other: (mine[0] | other[0], mine[1] + other[1]), list(self._images), processors(), 2
        )
        self.problems.extend(problems)
        for object_id, table in tables.items():
            masks.add(Table.of(table, self._size), self._images[object_id])
        return masks

    def _read_images(self, images: Sequence[ObjectId]) -> tuple[dict[ObjectId, bytes], list[str]]:
        tables: dict[ObjectId, bytes] = {}
        problems = []
        for object_id in images:
            try:
                with mapped(self._repo, object_id, "an image ref") as data:
                    tables[object_id] = image_table(bytes(data), self._repo.algorithm)
            except CfsTagsError as error:
                problems.append(error.message)
        return tables, problems


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


class _Sums(NamedTuple):
    """What objects take by the groups that reach them, what dead ones take, and how many have other hard links."""

    by_mask: dict[int, Used]
    dead: Used
    linked: int

    def plus(self, other: _Sums) -> _Sums:
        sums = dict(self.by_mask)
        for mask, used in other.by_mask.items():
            sums[mask] = sums[mask].plus(used) if mask in sums else used
        return _Sums(sums, self.dead.plus(other.dead), self.linked + other.linked)


_Facts = tuple[int, int, int]
_facts: Callable[[os.stat_result], _Facts] = attrgetter("st_mode", "st_blocks", "st_nlink")


def _look(repo: ReadRepo, parents: Sequence[str], masks: Masks) -> _Sums:
    seen: dict[tuple[int, _Facts | None], int] = {}
    for parent in parents:
        fd = repo.directory(f"{layout.OBJECTS}/{parent}")
        if fd is None:
            continue
        try:
            names, keys = names_of_objects(repo, parent, os.listdir(fd))
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
    return _Sums(sums, sums.pop(0, Used(0, 0)), linked)


# -- sums --------------------------------------------------------------------------------------------------------------


def _rows(groups: Sequence[_Group], sums: Mapping[int, Used]) -> Iterator[Owned]:
    """A row for each name; every mask is looked at once, however many names there are."""
    totals = [Used(0, 0)] * len(groups)
    for mask, used in sums.items():
        while mask:
            bit = (mask & -mask).bit_length() - 1
            totals[bit] = totals[bit].plus(used)
            mask &= mask - 1
    for bit, group in enumerate(groups):
        alone = sums.get(1 << bit, Used(0, 0)) if len(group.names) == 1 else Used(0, 0)
        for name in group.names:
            yield Owned(name, group.owner, totals[bit], totals[bit].less(alone), alone)


def _owners(groups: Sequence[_Group], sums: Mapping[int, Used]) -> Iterator[Owned]:
    for owner in sorted({group.owner for group in groups}):
        mine = _mask(group.owner == owner for group in groups)
        total = _total(sums, lambda mask, mine=mine: bool(mask & mine))  # type: ignore[misc]
        alone = _total(sums, lambda mask, mine=mine: not mask & ~mine)  # type: ignore[misc]
        yield Owned(owner, owner, total, total.less(alone), alone)


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
