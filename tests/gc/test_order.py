"""In which order a collection changes the disk: refs, sync, then links, sync, then objects.

A crash keeps any of the changes that were not synced, and not always the first ones.  With this order none of them can be on
disk without those that make it harmless.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest

from cfs_tags import Repository, gc
from cfs_tags.gc import Pace
from cfs_tags.repo import fsops
from deployments.conftest import view_of
from support import tagging
from support.collecting import collect
from support.garbage import add_artifact, names, object_paths, settle
from support.stock import refs
from support.sysroots import Host

PAST = "20200101T000000Z"
CREATING = ("make_link", "adopt_object", "create_file")
REMOVING = ("remove", "rename", "exchange")


class Step(NamedTuple):
    """One change, or one wait for the disk; ``paths`` are what it names, from the repository on (``.`` is that itself)."""

    name: str
    paths: tuple[str, ...]

    def touches(self, top: str) -> bool:
        return any(path.startswith(f"{top}/") for path in self.paths)


@contextmanager
def recorded(repo: Path) -> Iterator[list[Step]]:
    """What is changed and waited for, in order."""
    steps: list[Step] = []

    def watch(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **keywords: Any) -> Any:
            home = next(os.readlink(f"/proc/self/fd/{one}") for one in args if isinstance(one, int))
            texts = [one for one in args if isinstance(one, str)]
            if name == "make_link":
                texts = texts[:1]  # the other is what it says
            paths = tuple(os.path.relpath(os.path.join(home, text), repo) for text in texts or ["."])
            done = original(*args, **keywords)
            steps.append(Step(name, paths))
            return done

        return watched

    with ExitStack() as stack:
        for name in fsops.MUTATING:
            stack.enter_context(patch.object(fsops, name, watch(name, getattr(fsops, name))))
        yield steps


def is_ref(step: Step) -> bool:
    return step.name in (*CREATING, *REMOVING) and any(step.touches(top) for top in ("streams/refs", "images/refs"))


def is_link(step: Step) -> bool:
    return step.name in REMOVING and not is_ref(step) and any(step.touches(top) for top in ("streams", "images"))


def is_object(step: Step) -> bool:
    return step.name in REMOVING and step.touches("objects")


@pytest.fixture
def littered(three: Host) -> Host:
    """Something of each kind: a lease and trash that have run out, a deployment to adopt and one to retire, a referrer
    without its subject, EROFS images that nothing names any more."""
    with Repository.open(three.repo, write=True) as repo:
        gc.collect(repo, read_view=lambda: view_of(three))
        web, db = three.pool.apps
        tagging.create(repo, "leased", web, expires=PAST)
        tagging.delete(repo, [web])
        tagging.delete(repo, [db], expires=PAST)
    add_artifact(three.repo, "of web", three.pool.apps[web].manifest_digest)
    three.undeploy("old")
    for path in three.repo.glob(f"*/refs/cfs-tags/*/{three.id('new')}"):
        path.unlink()
    three.untag_bootc()
    settle()
    return three


@pytest.mark.parametrize("slices", ["one", "many"])
def test_refs_are_on_disk_before_the_first_link_goes_and_links_before_the_first_object(littered: Host, slices: str) -> None:
    pace = Pace(slice=0.0005, pause=0.0, threads=2, batch=1) if slices == "many" else Pace()
    repo = littered.repo
    before = refs(repo), names(repo, "streams"), names(repo, "images"), set(object_paths(repo))

    with recorded(repo) as steps:
        done = collect(repo, lambda: view_of(littered), prune_referrers=True, retire_grace=0.0, pace=pace)

    after = refs(repo), names(repo, "streams"), names(repo, "images"), set(object_paths(repo))
    assert {change.action for change in done.changes} == {"adopt", "expire", "retire", "prune"}
    assert (done.slices > 5) == (slices == "many")
    changed = [at for at, step in enumerate(steps) if is_ref(step)]
    links = [at for at, step in enumerate(steps) if is_link(step)]
    objects = [at for at, step in enumerate(steps) if is_object(step)]
    # all that went and came is among them
    assert before[0].keys() ^ after[0].keys() <= {path for at in changed for path in steps[at].paths}
    for tree, old, new in (("streams", before[1], after[1]), ("images", before[2], after[2])):
        assert {f"{tree}/{name}" for name in old - new} == {
            path for at in links for path in steps[at].paths if path.startswith(f"{tree}/")
        }
        assert old - new
    assert len(objects) == len(before[3] - after[3]) > 0

    assert max(changed) < min(links)
    assert max(links) < min(objects)
    between = steps[max(changed) : min(links)]
    assert [step for step in between if step.name == "sync_filesystem"], "the refs are on disk"
    for tree in ("streams", "images"):
        last = max(at for at in links if steps[at].touches(tree))
        assert Step("sync", (tree,)) in steps[last : min(objects)], f"the names in {tree}/ are on disk"


def test_a_ref_that_is_made_is_on_disk_before_any_ref_goes(littered: Host) -> None:
    """Adopting comes first: what a ref kept that goes may be all that keeps a deployment."""
    with recorded(littered.repo) as steps:
        done = collect(littered.repo, lambda: view_of(littered), prune_referrers=True, retire_grace=0.0)
    made = {change.path for change in done.changes if change.new is not None}
    gone = {change.path for change in done.changes if change.new is None}
    assert made
    assert gone
    came = max(at for at, step in enumerate(steps) if made & set(step.paths))
    went = min(at for at, step in enumerate(steps) if gone & set(step.paths))
    assert came < went
    synced = {path for step in steps[came:went] if step.name in ("sync", "sync_filesystem") for path in step.paths}
    assert "." in synced or {os.path.dirname(path) for path in made} <= synced
