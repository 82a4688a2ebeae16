"""Where the real cfsctl collects rightly, so do we: the same tree is left, and neither finds anything after the other."""

from __future__ import annotations

import os
import shutil
import struct
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


def erofs_versions(repo: Path) -> set[int]:
    """Of its images (composefs-rs 0.9.4, ``erofs/format.rs``: magic, version, flags, version of composefs)."""
    found = [struct.unpack("<4I", (repo / "images" / name).read_bytes()[:16]) for name in names(repo, "images")]
    assert {magic for magic, *_ in found} == {0xD078629A}
    return {version for *_, version in found}


@pytest.mark.parametrize(
    ("kind", "versions"),
    [
        ("sha512", {1}),
        ("sha256", {1}),
        ("sha512 erofs 2", {2}),
        ("sha256 erofs 2", {2}),
        ("sha512 erofs 1 2", {1, 2}),
    ],
)
def test_the_same_tree_is_left_whatever_refs_there_are(
    kind: str, versions: set[int], pools: Callable[[str], Path], cfsctl: Cfsctl, ram: Path
) -> None:
    pool = pools(kind)
    assert erofs_versions(pool) == versions
    all_refs = sorted(refs(pool))
    streams = sorted(names(pool, "streams"))
    images = sorted(names(pool, "images"))
    numbers = count()

    # making an example smaller takes minutes, and the draws say what it is
    @settings(max_examples=12, phases=(Phase.explicit, Phase.generate))
    @given(st.data())
    def check(data: st.DataObject) -> None:
        home = ram / f"like-{kind}-{next(numbers)}"
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


@pytest.mark.parametrize("algorithm", ["sha512", "sha256"])
def test_where_nothing_is_left_meta_json_tells_the_algorithm(
    pools: Callable[[str], Path], fresh: Callable[[Path], Path], cfsctl: Cfsctl, algorithm: str
) -> None:
    """One from before composefs-rs 0.7: without objects no program could open it again.  cfsctl writes the file at any time."""
    mine = fresh(pools(algorithm))
    (mine / "meta.json").unlink()
    theirs = copy_of(mine, mine.with_name("theirs"))
    for tree in ("streams", "images"):
        shutil.rmtree(mine / tree / "refs")
    before = outside_state(mine)

    planned = plan(mine)
    assert outside_state(mine) == before
    done = collect(mine)
    cfsctl(theirs, "gc")

    assert (planned.meta, done.meta) == (True, True)
    assert object_paths(mine) == {}
    assert (mine / "meta.json").read_bytes() == (theirs / "meta.json").read_bytes()
    again = collect(mine)
    assert (again.swept, again.meta, plan(mine).meta) == (gc.Swept(), False, False)
    assert removed_nothing(cfsctl(mine, "--no-upgrade", "gc").stdout)


def test_a_meta_json_that_is_there_stays_as_it_is(fresh: Fresh) -> None:
    path = fresh()
    text = (path / "meta.json").read_text().replace('"compatible": []', '"compatible": ["something"]', 1)
    (path / "meta.json").write_text(text)
    assert not collect(path).meta
    assert (path / "meta.json").read_text() == text


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
