"""Checking a repository.

1. Refs are read, then the links that they lead to, then the list of objects: what is made meanwhile by others is older
   in the second than in the first, so nothing is missed that was there.
2. Every linked splitstream and EROFS image is read, and with ``content`` every object and layer hashed: in processes.
3. What they mean for each other is compared here: named refs, content ids, refs, our own state.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from cfs_tags.fsck import objects, state
from cfs_tags.fsck.findings import SEVERITIES, Finding, finding
from cfs_tags.fsck.images import Streams, wanted_algorithm
from cfs_tags.fsck.links import Links, read_links
from cfs_tags.fsck.roots import Roots, check_refs, read_refs
from cfs_tags.fsck.state import State
from cfs_tags.fsck.streams import ImageFacts, StreamFacts, check_image, check_stream
from cfs_tags.parallel import processors, run
from cfs_tags.repo import layout, owners
from cfs_tags.repo.lock import DEFAULT_TIMEOUT
from cfs_tags.repo.store import ReadRepo
from cfs_tags.tags import rows
from cfs_tags.values import ContentId

Progress = Callable[[int, int], None]
"""Is called with the bytes that are done, and all bytes."""

_BATCH = 4 << 20
"""Bytes of streams, and of objects, in one task: enough to make the sending of it nothing."""
_BATCH_COUNT = 256
_FILE_COST = 16 << 10
"""What opening a file costs, in bytes that could be hashed meanwhile: for the order of tasks and the progress."""
_WALK_COST = 32
"""What a byte of an EROFS image or splitstream costs, in bytes that could be hashed meanwhile."""
_WORTH_FORKING = 8 << 20


class Checked(NamedTuple):
    """How much was looked at; ``content`` is the number of objects that were read whole."""

    objects: int
    content: int
    streams: int
    images: int
    refs: int


class Report(NamedTuple):
    """What was found, the worst first, with what a repair needs to know.

    ``objects`` are the digests that are there.
    """

    findings: tuple[Finding, ...]
    checked: Checked
    objects: Collection[str]
    links: Links
    roots: Roots
    streams: Streams
    state: State


def fsck(
    repo: ReadRepo,
    *,
    content: bool = False,
    jobs: int | None = None,
    progress: Progress | None = None,
    timeout: float = DEFAULT_TIMEOUT,
) -> Report:
    """Check a repository, under its shared lock: content stays while it is looked at.  Writes nothing.

    Args:
        repo: where.
        content: read every byte: measure every object, hash every layer.
        jobs: processes; None: one for each processor, where there is enough to do.
        progress: is called now and then with how much is done, and how much there is to do.
        timeout: seconds to wait for the lock.

    Raises:
        LockTimeout, LockConflict: another process, or this one, holds the lock.
        SystemFailure: the system refused to show the repository.
    """
    with repo.locked("shared", timeout):
        return check(repo, content=content, jobs=jobs, progress=progress)


def check(repo: ReadRepo, *, content: bool = False, jobs: int | None = None, progress: Progress | None = None) -> Report:
    """As :func:`fsck`, for callers that hold the lock already."""
    roots = read_refs(repo)
    inventory = objects.inventory(repo, sizes=content)
    links = read_links(repo, inventory.objects)
    secure = repo.is_secure
    work = _Work(repo, links, inventory.objects, content=content, secure=secure)
    found = [*inventory.findings, *_open_to_others(repo)]
    if repo.meta is None:
        found.append(finding("no-metadata", layout.META, "there is none, as before composefs-rs 0.7"))
    facts: dict[str, StreamFacts] = {}
    images: list[ImageFacts] = []
    count = jobs if jobs is not None else processors() if work.cost > _WORTH_FORKING else 1
    done = 0
    for number, results in run(work.tasks, work.do, count):
        for result in results:
            if isinstance(result, StreamFacts):
                facts[result.object] = result
                found += result.findings
            elif isinstance(result, ImageFacts):
                images.append(result)
                found += result.findings
            else:
                found.append(result)
        done += work.tasks[number].cost
        if progress is not None:
            progress(done, work.cost)
    streams = Streams(repo, links, facts, work.stream)
    streams.check()
    # EROFS images that a config names, and that have no link of their own
    known = {image.object for image in images}
    for target, path in list(streams.erofs.items()):
        if target not in known:
            image = check_image(repo, target, path, inventory.objects)
            images.append(image)
            found += image.findings
    streams.check_image_links()
    check_refs(repo, roots, streams, rows.moment())
    ours = state.check_state(repo)
    found += [*links.findings, *streams.findings, *roots.findings, *ours.findings]
    found += _missing(_needers(streams, images, links))
    checked = Checked(
        len(inventory.objects),
        len(inventory.objects) if content else 0,
        len(links.streams),
        len(links.images),
        len(roots.entries),
    )
    return Report(in_order(found), checked, inventory.objects, links, roots, streams, ours)


def _open_to_others(repo: ReadRepo) -> Iterator[Finding]:
    """Directories in which users other than the owner of the repository can replace files."""
    mine = repo.status(".").st_uid
    for path, found in owners.directories(repo, deep=True):
        who = owners.openness(found)
        if who is not None:
            yield finding("open-to-everybody" if who == "everybody" else "open-to-group", path, f"{who} can write it")
        if found.st_uid not in (mine, 0):
            yield finding("foreign-directory", path, f"it belongs to user {found.st_uid}, the repository to user {mine}")


def in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Each finding once, the worst first, then by path."""
    return tuple(sorted(set(findings), key=lambda one: (SEVERITIES.index(one.severity), one.path, one.code, one.message)))


def _needers(streams: Streams, images: Iterable[ImageFacts], links: Links) -> dict[str, list[str]]:
    """What needs each object that is missing."""
    needed: dict[str, list[str]] = {}
    for facts in streams.all_facts():
        path = f"streams/{streams.names[facts.object][0]}" if facts.object in streams.names else f"object {facts.object[:12]}…"
        for target in facts.missing:
            needed.setdefault(target, []).append(path)
    for image in images:
        for target in image.missing:
            needed.setdefault(target, []).append(streams.erofs.get(image.object, f"image {image.object[:12]}…"))
    for path, target in links.broken.items():
        if target in needed:
            needed[target].append(path)
    return needed


def _missing(needed: Mapping[str, list[str]]) -> Iterable[Finding]:
    for target, paths in needed.items():
        others = sorted(set(paths))
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        yield finding("missing-object", f"objects/{target[:2]}/{target[2:]}", f"needed by {others[0]}{more}")


class _Task(NamedTuple):
    """What a worker does at once: ``items`` are objects, each with what names it."""

    kind: str
    items: tuple[tuple[str, str], ...]
    cost: int


class _Work:
    """All that is to be read, in tasks, the most expensive first."""

    def __init__(self, repo: ReadRepo, links: Links, there: Mapping[str, int], *, content: bool, secure: bool) -> None:
        self._repo = repo
        self._there = there
        self._content = content
        self.tasks: list[_Task] = []
        paths: dict[str, str] = {}
        for name, target in links.streams.items():
            paths.setdefault(target, f"streams/{name}")
        self._add("stream", paths)
        self._add("image", {target: f"images/{name}" for name, target in links.images.items()})
        if content:
            self._add("content", dict.fromkeys(there, ""))
        if secure:
            self._add("verity", dict.fromkeys(there, ""))
        self.tasks.sort(key=lambda task: -task.cost)
        self.cost = sum(task.cost for task in self.tasks)

    def _add(self, kind: str, paths: Mapping[str, str]) -> None:
        items: list[tuple[str, str]] = []
        cost = 0
        for target, path in paths.items():
            items.append((target, path))
            cost += self._cost(kind, target, path)
            if cost >= _BATCH or len(items) == _BATCH_COUNT:
                self.tasks.append(_Task(kind, tuple(items), cost))
                items, cost = [], 0
        if items:
            self.tasks.append(_Task(kind, tuple(items), cost))

    def _cost(self, kind: str, target: str, path: str) -> int:
        if kind == "content":
            return _FILE_COST + self._there[target]
        if kind == "verity":
            return _FILE_COST
        try:
            size = self._repo.status(f"objects/{target[:2]}/{target[2:]}").st_size
        except OSError:
            size = 0
        cost = _FILE_COST + size * _WALK_COST
        return cost * 4 if self._content and path.startswith(f"{layout.STREAMS}/{ContentId.LAYER}") else cost

    def do(self, task: _Task) -> list[StreamFacts | ImageFacts | Finding]:
        """Carry out a task; in a worker."""
        names = [name for name, _ in task.items]
        match task.kind:
            case "content":
                return [*objects.check_content(self._repo, names)]
            case "verity":
                return [*objects.check_verity(self._repo, names)]
            case "image":
                return [check_image(self._repo, name, path, self._there) for name, path in task.items]
            case _:
                return [self.stream(name, path, wanted_algorithm(path.rpartition("/")[2])) for name, path in task.items]

    def stream(self, name: str, path: str, algorithm: str) -> StreamFacts:
        """Check one stream."""
        return check_stream(self._repo, name, path, self._there, algorithm=algorithm, content=self._content)
