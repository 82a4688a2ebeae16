"""Where the real cfsctl collects rightly, so do we: the same tree is left, and neither finds anything after the other."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from cfs_tags import gc
from support.collecting import collect, plan, removed_nothing
from support.garbage import copy_of, link_of, model, names, object_paths, outside_state
from support.peers import Cfsctl
from support.stock import refs

Fresh = Callable[[], Path]


@pytest.mark.parametrize("algorithm", ["sha512", "sha256"])
def test_the_same_tree_is_left_whatever_refs_there_are(
    algorithm: str, pools: Callable[[str], Path], cfsctl: Cfsctl, ram: Path
) -> None:
    pool = pools(algorithm)
    all_refs = sorted(refs(pool))
    streams = sorted(names(pool, "streams"))
    images = sorted(names(pool, "images"))
    numbers = count()

    # making an example smaller takes minutes, and the draws say what it is
    @settings(max_examples=12, phases=(Phase.explicit, Phase.generate))
    @given(st.data())
    def check(data: st.DataObject) -> None:
        home = ram / f"like-{algorithm}-{next(numbers)}"
        mine = copy_of(pool, home / "mine")
        for ref in data.draw(st.sets(st.sampled_from(all_refs)), "refs that go"):
            (mine / ref).unlink()
        for number, name in enumerate(data.draw(st.lists(st.sampled_from(streams), max_size=2), "refs of others")):
            link_of(mine, f"streams/refs/foreign/{number}", name)
        rooted = data.draw(st.lists(st.sampled_from(images), max_size=2), "image refs")
        for number, name in enumerate(rooted):
            link_of(mine, f"images/refs/by-hand/{number}", name)
        needed = {os.path.basename(os.readlink(mine / ref)) for ref in refs(mine)}
        for name in data.draw(st.sets(st.sampled_from(images)), "images that lose their link") - needed:
            (mine / "images" / name).unlink()
        theirs = copy_of(mine, home / "theirs")
        kept = model(mine, cfsctl)

        planned = plan(mine)
        done = collect(mine)
        cfsctl(theirs, "--no-upgrade", "gc")

        assert (planned.swept, planned.live) == (done.swept, done.live)
        assert outside_state(mine) == outside_state(theirs)
        assert set(object_paths(mine)) == kept.objects
        assert (names(mine, "streams"), names(mine, "images")) == (kept.streams, kept.images)
        assert removed_nothing(cfsctl(mine, "--no-upgrade", "gc").stdout)
        assert collect(theirs).swept == gc.Swept()
        found = [cfsctl(path, "--no-upgrade", "fsck", check=False).stdout.splitlines() for path in (mine, theirs)]
        assert sorted(found[0]) == sorted(found[1])
        shutil.rmtree(home)

    check()


def test_nothing_is_left_where_there_is_no_ref(repo: Path, cfsctl: Cfsctl) -> None:
    for tree in ("streams", "images"):
        shutil.rmtree(repo / tree / "refs")

    collect(repo)

    assert object_paths(repo) == {}
    assert names(repo, "streams") == names(repo, "images") == set()
    assert removed_nothing(cfsctl(repo, "--no-upgrade", "gc").stdout)


def test_a_repository_that_is_empty_is_collected(new_repo: Callable[[], Path]) -> None:
    assert collect(new_repo()).swept == gc.Swept()


def test_what_is_in_objects_and_is_no_object_is_left_alone(repo: Path) -> None:
    odd = [repo / "objects/README", repo / "objects/ab/not-a-digest", repo / "objects/tmp/leftover"]
    for path in odd:
        path.parent.mkdir(exist_ok=True)
        path.write_text("odd")
    (repo / "objects/00").mkdir(exist_ok=True)
    (repo / "objects/00" / ("f" * 126)).mkdir()

    collect(repo)

    assert all(path.exists() for path in odd)
    assert (repo / "objects/00" / ("f" * 126)).is_dir()


def test_a_dry_run_says_what_the_run_does_and_changes_nothing(fresh: Fresh) -> None:
    path = fresh()
    for tag in ("one", "two"):
        (path / "streams/refs/oci" / tag).unlink()
    before = outside_state(path)

    planned = plan(path)

    assert outside_state(path) == before
    assert not (path / "cfs-tags" / "gc.stamp").exists()
    sizes = {one: place.stat().st_blocks * 512 for one, place in object_paths(path).items()}
    done = collect(path)
    gone = set(sizes) - set(object_paths(path))
    assert planned.swept == done.swept
    assert done.swept.objects == len(gone) > 0
    assert done.swept.allocated == sum(sizes[one] for one in gone)


def test_a_link_that_leads_to_no_object_is_not_ours_to_remove(repo: Path) -> None:
    for name, text in (("absolute", "/etc/passwd"), ("loop", "loop"), ("short", f"../objects/ab/{'0' * 62}")):
        (repo / "streams" / name).symlink_to(text)
        (repo / "images" / name).symlink_to(text)
    assert plan(repo).swept == collect(repo).swept
    assert {"absolute", "loop", "short"} <= names(repo, "streams") & names(repo, "images")


@pytest.mark.parametrize("share", [0.01, 0.3, 0.7, 1.0, 2.0])
def test_so_does_one_that_stops_when_enough_is_free(fresh: Fresh, share: float) -> None:
    path = fresh()
    for tag in ("one", "two", "three"):
        (path / "streams/refs/oci" / tag).unlink()
    all_of_it = plan(path).swept
    wanted = max(1, int(all_of_it.allocated * share))

    planned = plan(path, free_bytes=wanted)
    done = collect(path, free_bytes=wanted)

    assert planned.swept == done.swept
    assert done.swept.allocated >= min(wanted, all_of_it.allocated)
    assert done.swept.streams == all_of_it.streams
    if share < 1:
        assert done.swept.allocated < all_of_it.allocated
        assert done.stopped is not None
    rest = collect(path)
    assert done.swept.plus(rest.swept) == all_of_it


def test_a_splitstream_with_the_header_of_old_bootc_is_followed(fresh: Fresh, ram: Path, cfsctl: Cfsctl) -> None:
    from cfs_tags.formats import fsverity
    from cfs_tags.values import Algorithm
    from support.sysroots import with_old_headers

    source = fresh()
    for ref in refs(source):
        if "/oci/" not in ref:
            (source / ref).unlink()
    collect(source)  # what is left can be written again
    mine = with_old_headers(source, ram / "old-headers" / "mine", lambda data: fsverity.measure(data, Algorithm.SHA512))
    (mine / "streams/refs/oci/one").unlink()
    theirs = copy_of(mine, ram / "old-headers" / "theirs")

    done = collect(mine)
    cfsctl(theirs, "--no-upgrade", "gc")

    assert done.swept.objects > 0
    assert outside_state(mine) == outside_state(theirs)
    assert len(object_paths(mine)) > 20
