"""What is measured of collecting: how long it takes, what it needs, and how long others wait for it.

Nothing is deleted before all copies that will be needed are made: on ext4 without a journal new files are slow for minutes
after many were deleted (see ``Bench.fresh``).
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from measure import BenchError, Comparison, Run, Watched, compare, watched
from rows import MIB, Bench, Row, _by_time

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["GROUPS"]

_OF_MANY = 1_000_000
"""The goals are for so many objects."""


def collecting(bench: Bench) -> Iterator[Row]:
    """Collecting repositories of which 40 % is dead, and measuring them."""
    if not bench.has("gc"):
        yield Row("collecting", "gc", "cfs-tag gc", "cfsctl gc", limit=0.4)
        return
    sizes = bench.sizes
    sources = {objects: bench.data.garbage(objects) for objects in sizes.garbage}
    # ours and the peer's in turn, and one of each to look at while it runs
    copies = {
        objects: [
            bench.data.littered(objects, bench.fresh(f"garbage-{objects}"))
            for _ in range(2 * sizes.collections + 2 * (objects == sizes.garbage[-1]))
        ]
        for objects in sizes.garbage
    }
    os.sync()
    for objects in sizes.garbage:
        source = sources[objects]
        goals = objects == _OF_MANY
        _same(bench, source)
        dry = [bench.program, "--repo", source, "gc", "--dry-run"]
        peer = [bench.cfsctl, "--repo", source, "--no-upgrade", "gc", "--dry-run"]
        found = compare(bench.reading(*dry), bench.reading(*peer), sizes.slow_pairs, 1)
        note = f"{objects:,} objects, 40 % dead, 38 images and two EROFS images of {objects // 10:,} files"
        name = "cfs-tag gc --dry-run"
        yield _by_time("collecting", f"gc-dry-{objects}", name, "cfsctl gc --dry-run", found, 0.5 if goals else None, note=note)
        found = compare(bench.reading(bench.program, "--repo", source, "df"), bench.reading(*dry), sizes.slow_pairs, 1)
        yield _by_time("collecting", f"df-{objects}", "cfs-tag df", name, found, 1.5 if goals else None, note=note)
        yield from _checking(bench, source, objects, note)
        if objects == sizes.garbage[-1]:
            yield _memory("gc-dry-memory", name, "cfsctl gc --dry-run", watched(dry), watched(peer))
    for objects in sizes.garbage:
        goals = objects == _OF_MANY
        pairs = []
        for ours, theirs in zip(*[iter(copies[objects][: 2 * sizes.collections])] * 2, strict=True):
            pairs.append(_collected(bench, ours, theirs))
        found = Comparison(tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs))
        note = f"{objects:,} objects, 40 % dead"
        limit = 0.4 if goals else None
        yield _by_time("collecting", f"gc-{objects}", "cfs-tag gc", "cfsctl gc", found, limit, note=note)
    ours, theirs = copies[sizes.garbage[-1]][-2:]
    yield from _beside(bench, ours, theirs)


def _collected(bench: Bench, ours: Path, theirs: Path) -> tuple[Run, Run]:
    runs = []
    for words in ((bench.program, "--repo", ours, "gc"), (bench.cfsctl, "--repo", theirs, "--no-upgrade", "gc")):
        # what they look at is in memory for both, as right after a dry run, or for neither
        bench.launcher.run(bench.cfsctl, *words[1:3], "--no-upgrade", "gc", "--dry-run")
        bench.before()
        runs.append(bench.launcher.run(*words))
    if _objects(ours) != _objects(theirs):
        raise BenchError("cfs-tag gc and cfsctl gc did not leave the same objects")
    return runs[0], runs[1]


def _checking(bench: Bench, repo: Path, objects: int, note: str) -> Iterator[Row]:
    """Checking the same repository: what is written down, then every byte."""
    goals = objects == _OF_MANY
    pairs = bench.sizes.collections if goals else bench.sizes.slow_pairs
    start = median(bench.ours("--version").seconds for _ in range(5))

    def peer(*commands: Sequence[str]) -> Callable[[], Run]:
        def once() -> Run:
            bench.before()
            run = bench.launcher.run_all([(bench.cfsctl, "--repo", repo, "--no-upgrade", *words) for words in commands])
            return run._replace(seconds=run.seconds + start)

        return once

    with_start = f"; the peer's time has our start-up of {start * 1000:.0f} ms added"
    found = compare(bench.reading(bench.program, "--repo", repo, "fsck"), peer(("fsck", "--metadata-only")), pairs, 1)
    name = "cfs-tag fsck"
    theirs = "cfsctl fsck --metadata-only"
    yield _by_time("collecting", f"fsck-{objects}", name, theirs, found, 1.0 if goals else None, note=note + with_start)
    found = compare(
        bench.reading(bench.program, "--repo", repo, "fsck", "--content"), peer(("fsck",), ("oci", "fsck")), pairs, 1
    )
    name = "cfs-tag fsck --content"
    theirs = "cfsctl fsck, then cfsctl oci fsck"
    yield _by_time("collecting", f"fsck-content-{objects}", name, theirs, found, 1.2 if goals else None, note=note + with_start)


def _objects(repo: Path) -> int:
    return sum(len(os.listdir(repo / "objects" / parent)) for parent in os.listdir(repo / "objects"))


def _same(bench: Bench, repo: Path) -> None:
    """Both would delete the same."""
    said = bench.launcher.output(bench.cfsctl, "--repo", repo, "--no-upgrade", "gc", "--dry-run")
    theirs = re.search(r"Objects: (\d+) removed \((\d+) bytes\)", said)
    ours = json.loads(bench.launcher.output(bench.program, "--repo", repo, "gc", "--dry-run", "--json"))["result"]
    if theirs is None or (int(theirs[1]), int(theirs[2])) != (ours["objects"], ours["content_bytes"]):
        raise BenchError(f"cfs-tag gc would delete {ours['objects']} objects, cfsctl says: {said}")


# -- memory and waiting ------------------------------------------------------------------------------------------------


def _beside(bench: Bench, ours: Path, theirs: Path) -> Iterator[Row]:
    """While a collection runs: the memory of all its processes, and how long another process waits for the lock."""
    mine = watched([bench.program, "--repo", ours, "gc"], ours)
    other = watched([bench.cfsctl, "--repo", theirs, "--no-upgrade", "gc"], theirs)
    yield _memory("gc-memory", "cfs-tag gc", "cfsctl gc", mine, other)
    note = f"longest time that another process waited for the shared lock; with cfsctl {other.wait:.2f} s"
    figure = (mine.wait, mine.wait, mine.wait)
    yield Row("collecting", "gc-wait", "cfs-tag gc", "cfsctl gc", None, figure, "s", 0.5, note=note)


def _memory(name: str, ours: str, peer: str, mine: Watched, other: Watched) -> Row:
    ratio = mine.memory / other.memory
    note = f"memory of all processes together (PSS): {mine.memory / MIB:.0f} MiB, the peer's {other.memory / MIB:.0f} MiB"
    return Row("collecting", name, ours, peer, None, (ratio, ratio, ratio), "x", 1.5, note=note)


GROUPS: dict[str, Callable[[Bench], Iterator[Row]]] = {"collecting": collecting}
"""As ``rows.GROUPS``."""
