"""What is broken: nothing that it may still lead to is lost, and what comes back is followed again."""

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cfs_tags.errors import BrokenRoots
from cfs_tags.gc import Pace
from cfs_tags.gc.mark import MOST_REFS
from cfs_tags.repo import beneath, fsops
from cfs_tags.repo.lock import Lock
from support.collecting import at_slice, collect, plan
from support.garbage import (
    add_stream,
    content,
    link_of,
    manifest_of,
    model,
    names,
    object_of,
    object_paths,
    outside_state,
    parse_stream,
    settle,
)
from support.peers import Cfsctl
from support.stock import refs


def keep_only(repo: Path, ref: str) -> None:
    for other in refs(repo):
        if other != ref:
            (repo / other).unlink()


def named_by(repo: Path, object_id: str) -> dict[str, str]:
    return parse_stream(content(repo, object_id).read_bytes(), 64).named


# -- what still leads somewhere ----------------------------------------------------------------------------------------


def damage_names(data: bytearray) -> None:
    info = struct.unpack_from("<Q", data, 16)[0]
    data[struct.unpack_from("<8Q", data, info)[6]] ^= 0xFF


def make_newer(data: bytearray) -> None:
    data[11] = 1


def damage_magic(data: bytearray) -> None:
    data[0] ^= 1


def rewrite(place: Path, damage: Callable[[bytearray], None]) -> None:
    data = bytearray(place.read_bytes())
    damage(data)
    place.unlink()
    place.write_bytes(data)


@pytest.mark.parametrize("damage", [damage_names, make_newer, damage_magic])
def test_of_a_stream_that_cannot_be_read_all_that_its_tables_name_stays(
    repo: Path, cfsctl: Cfsctl, damage: Callable[[bytearray], None]
) -> None:
    before = model(repo, cfsctl).objects
    rewrite(content(repo, object_of(repo, "streams/refs/oci/three")), damage)
    settle()

    assert collect(repo, keep_broken=True).problems
    assert before <= set(object_paths(repo))


def test_an_image_that_lost_its_link_stays_for_its_ref(repo: Path, cfsctl: Cfsctl) -> None:
    kept = model(repo, cfsctl, ["images/refs/tree/named"]).objects
    keep_only(repo, "images/refs/tree/named")
    (repo / "images" / os.path.basename(os.readlink(repo / "images/refs/tree/named"))).unlink()
    settle()

    collect(repo, keep_broken=True)
    assert kept <= set(object_paths(repo))


def test_a_manifest_that_lost_its_link_stays_for_its_ref(repo: Path, cfsctl: Cfsctl) -> None:
    """Which of the streams without a name it was cannot be told: all of them stay."""
    kept = model(repo, cfsctl, ["streams/refs/oci/one"]).objects
    keep_only(repo, "streams/refs/oci/one")
    (repo / "streams" / f"oci-manifest-{manifest_of(repo, 'one')}").unlink()
    settle()
    before = len(object_paths(repo))

    assert plan(repo, keep_broken=True).swept == collect(repo, keep_broken=True).swept
    assert kept <= set(object_paths(repo))
    assert len(object_paths(repo)) < before, "and the rest goes"


@pytest.mark.parametrize("tree", ["streams", "images"])
@pytest.mark.parametrize("link", ["../../../{tree}/{name}", "../{name}", "/sysroot/composefs/{tree}/{name}"])
def test_a_ref_that_is_written_otherwise_keeps_what_cfsctl_takes_it_for(
    repo: Path, cfsctl: Cfsctl, tree: str, link: str
) -> None:
    """cfsctl looks at the last part of the link alone."""
    cfsctl(repo, "--no-upgrade", "gc")
    ref = {"streams": "streams/refs/oci/one", "images": "images/refs/tree/named"}[tree]
    kept = model(repo, cfsctl, [ref]).objects
    keep_only(repo, ref)
    name = os.path.basename(os.readlink(repo / ref))
    (repo / ref).unlink()
    (repo / ref).symlink_to(link.format(tree=tree, name=name))
    settle()

    with pytest.raises(BrokenRoots):
        collect(repo)
    assert collect(repo, keep_broken=True).problems

    assert kept == set(object_paths(repo))
    assert name in names(repo, tree)


def unreadable(monkeypatch: pytest.MonkeyPatch, repo: Path, object_id: str) -> None:
    """The system refuses to read an object, as a kernel with fs-verity does where a block was changed."""
    place = content(repo, object_id)
    original = beneath.open_at

    def fail(fd: int, path: str, *rest: Any) -> int:
        if path.endswith(place.name):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return original(fd, path, *rest)

    monkeypatch.setattr(beneath, "open_at", fail)


@pytest.mark.parametrize("which", ["manifest", "layer", "image"])
def test_what_the_system_does_not_give_may_lead_to_anything_and_stops_even_keep_broken(
    repo: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    manifest = object_of(repo, "streams/refs/oci/three")
    layers = [one for key, one in named_by(repo, manifest).items() if key.startswith("sha256:")]
    target = {"manifest": manifest, "layer": layers[0], "image": object_of(repo, "images/refs/tree/named")}[which]
    (repo / "streams/refs/oci/one").unlink()
    before = outside_state(repo)

    unreadable(monkeypatch, repo, target)
    for keep_broken in (False, True):
        with pytest.raises(BrokenRoots) as error:
            collect(repo, keep_broken=keep_broken)
        assert any(os.strerror(errno.EIO) in message for message, _ in error.value.problems)
    monkeypatch.undo()

    assert outside_state(repo) == before
    collect(repo)
    assert outside_state(repo) < before


@pytest.mark.parametrize("tree", ["streams", "images"])
def test_so_does_what_a_dangling_ref_may_lead_to(repo: Path, monkeypatch: pytest.MonkeyPatch, tree: str) -> None:
    """Its link was removed: nothing says that this is what the ref needs, and nothing that it is not."""
    if tree == "streams":
        target = add_stream(repo, "lost", objects=[b"needed by it" * 100])
        link_of(repo, "streams/refs/other/lost", "lost")
        (repo / "streams/lost").unlink()
    else:
        target = next(object_of(repo, f"images/{name}") for name in names(repo, "images"))
        for name in names(repo, "images"):
            if object_of(repo, f"images/{name}") == target:
                link_of(repo, "images/refs/lost", target)
                (repo / "images" / name).unlink()
    settle()
    before = outside_state(repo)
    unreadable(monkeypatch, repo, target)
    for what in (plan, collect):
        with pytest.raises(BrokenRoots) as caught:
            what(repo, keep_broken=True)
        lost = "streams/refs/other/lost" if tree == "streams" else "images/refs/lost"
        assert any(lost in needed and os.strerror(errno.EIO) in message for message, needed in caught.value.problems)
    monkeypatch.undo()
    assert outside_state(repo) == before


def test_so_does_a_ref_that_the_system_does_not_give(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (repo / "streams/refs/oci/one").unlink()
    before = outside_state(repo)
    original = os.readlink

    def fail(path: Any, **named: Any) -> Any:
        if str(path).rpartition("/")[2] == "three":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return original(path, **named)

    monkeypatch.setattr(os, "readlink", fail)
    with pytest.raises(BrokenRoots, match=os.strerror(errno.EIO)):
        collect(repo, keep_broken=True)
    monkeypatch.undo()
    assert outside_state(repo) == before


def test_what_a_damaged_stream_leads_to_stays_where_that_is_damaged_too(repo: Path, cfsctl: Cfsctl) -> None:
    before = model(repo, cfsctl).objects
    manifest = object_of(repo, "streams/refs/oci/three")
    layers = [one for key, one in named_by(repo, manifest).items() if key.startswith("sha256:")]
    config = next(one for key, one in named_by(repo, manifest).items() if key.startswith("config:"))
    for damaged in (manifest, config, *layers):
        rewrite(content(repo, damaged), damage_magic)
    settle()

    assert collect(repo, keep_broken=True).problems
    assert before <= set(object_paths(repo))


@pytest.mark.parametrize("broken", [True, False])
def test_a_signature_stays_while_its_subject_may_be_behind_what_is_broken(repo: Path, broken: bool) -> None:
    if broken:
        add_stream(repo, "outer", named={"inner": object_of(repo, "streams/refs/oci/one")})
        content(repo, object_of(repo, "streams/outer")).unlink()
        link_of(repo, "streams/refs/other/outer", "outer")
    (repo / "streams/refs/oci/one").unlink()
    referrers = [ref for ref in refs(repo) if "oci-referrers" in ref]
    settle()
    collect(repo, keep_broken=True, prune_referrers=True)
    left = [ref for ref in refs(repo) if "oci-referrers" in ref]
    assert left == referrers if broken else len(left) == 1, "that of an index that was never here"


def test_a_stream_that_is_named_like_an_image_is_followed(repo: Path, cfsctl: Cfsctl) -> None:
    """As cfsctl follows it, which goes by the link."""
    inner = add_stream(repo, "inner", objects=[b"inner" * 100])
    add_stream(repo, "outer", named={"composefs.image": inner})
    link_of(repo, "streams/refs/other/outer", "outer")
    settle()
    collect(repo)
    assert model(repo, cfsctl).objects <= set(object_paths(repo))
    cfsctl(repo, "--no-upgrade", "fsck")


# -- what comes back ---------------------------------------------------------------------------------------------------


def test_an_image_that_is_made_again_meanwhile_is_followed(
    repo: Path, pools: Callable[[str], Path], cfsctl: Cfsctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its ref and its link are what they were: only the object tells."""
    tree = pools("sha512").parent / "tree-0"
    content(repo, object_of(repo, "images/refs/tree/named")).unlink()
    keep_only(repo, "images/refs/tree/named")
    settle()
    at_slice(monkeypatch, 1, lambda: cfsctl(repo, "create-image", tree, "tree/named"))

    assert collect(repo, keep_broken=True).problems == ()
    assert model(repo, cfsctl).objects <= set(object_paths(repo))


def test_an_image_that_is_made_again_is_followed_whatever_else_had_missed_it(
    repo: Path, pools: Callable[[str], Path], cfsctl: Cfsctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that names it gets a ref first: to it the image is an object, to the image's own ref all its files."""
    tree = pools("sha512").parent / "tree-0"
    commit = os.path.basename(os.readlink(repo / "streams/refs/ostree/stable/x86_64"))
    content(repo, object_of(repo, "images/refs/tree/named")).unlink()
    keep_only(repo, "images/refs/tree/named")
    settle()
    original = Lock.hold
    slices: list[int] = []

    def hold(self: Lock, mode: str, dir_fd: int, name: str, *words: object, **named: object) -> object:
        if mode == "exclusive" and name == ".":
            slices.append(len(slices))
            if len(slices) == 1:
                link_of(repo, "streams/refs/ostree/again", commit)
            elif len(slices) == 2:
                cfsctl(repo, "create-image", tree, "tree/named")
        return original(self, mode, dir_fd, name, *words, **named)  # type: ignore[arg-type]

    remove = fsops.remove

    def slowly(fd: int, path: str) -> None:
        remove(fd, path)
        time.sleep(0.001)  # one in each slice

    monkeypatch.setattr(fsops, "remove", slowly)
    monkeypatch.setattr(Lock, "hold", hold)

    assert collect(repo, pace=Pace(slice=0.0005, pause=0.0), keep_broken=True).problems == ()
    monkeypatch.undo()
    assert model(repo, cfsctl).objects <= set(object_paths(repo))


@pytest.mark.parametrize("grace", [False, True])
def test_an_image_that_is_pulled_again_meanwhile_is_followed(
    repo: Path, pools: Callable[[str], Path], cfsctl: Cfsctl, monkeypatch: pytest.MonkeyPatch, grace: bool
) -> None:
    layout = pools("sha512").parent / "layout"
    manifest = repo / "streams" / f"oci-manifest-{manifest_of(repo, 'one')}"
    found = [object_of(repo, f"streams/{name}") for name in names(repo, "streams") if name.startswith("oci-config-")]
    needed = model(repo, cfsctl, ["streams/refs/oci/one"]).objects
    config = next(one for one in found if one in needed)
    link = next(name for name in names(repo, "streams") if object_of(repo, f"streams/{name}") == config)
    if grace:
        keep_only(repo, "streams/refs/oci/two")
    content(repo, config).unlink()
    settle()

    def pull() -> None:
        manifest.unlink()
        (repo / "streams" / link).unlink()
        cfsctl(repo, "oci", "pull", f"oci:{layout}:one", "one")

    at_slice(monkeypatch, 1, pull)
    collect(repo, **({"grace": 3600.0} if grace else {"keep_broken": True}))
    monkeypatch.undo()

    assert model(repo, cfsctl).objects <= set(object_paths(repo))
    cfsctl(repo, "--no-upgrade", "oci", "fsck")


def test_something_broken_that_gets_a_ref_meanwhile_stops_the_rest(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for tag in ("one", "two", "three"):
        (repo / "streams/refs/oci" / tag).unlink()
    settle()

    def peer() -> None:
        inner = add_stream(repo, "inner", objects=[b"i" * 300])
        add_stream(repo, "outer", named={"inner": inner})
        content(repo, inner).unlink()
        (repo / "streams/inner").unlink()
        link_of(repo, "streams/refs/other/outer", "outer")

    at_slice(monkeypatch, 1, peer)
    with pytest.raises(BrokenRoots, match="missing"):
        collect(repo)


@pytest.mark.parametrize("by", ["another process", "this collection"])
def test_what_a_ref_may_lead_to_that_is_made_meanwhile_stays_too(
    repo: Path, cfsctl: Cfsctl, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """``cfsctl oci tag`` takes any digest; the stream is there, and its link was removed."""
    one = manifest_of(repo, "one")
    kept = model(repo, cfsctl, ["streams/refs/oci/one"]).objects
    keep_only(repo, "streams/refs/oci/three")
    link = repo / "streams" / f"oci-manifest-{one}"
    if by == "another process":
        link.unlink()
    settle()
    original, remove = Lock.hold, fsops.remove
    came = []

    def slowly(fd: int, path: str) -> None:
        remove(fd, path)
        time.sleep(0.001)  # one in each slice

    def hold(self: Lock, mode: str, dir_fd: int, name: str, *words: object, **named: object) -> object:
        if mode == "exclusive" and name == "." and not came and not link.is_symlink():
            came.append(cfsctl(repo, "oci", "tag", one, "again"))
        return original(self, mode, dir_fd, name, *words, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(fsops, "remove", slowly)
    monkeypatch.setattr(Lock, "hold", hold)

    assert collect(repo, pace=Pace(slice=0.0005, pause=0.0), keep_broken=True).problems
    assert kept <= set(object_paths(repo))


# -- what is said ------------------------------------------------------------------------------------------------------


def test_refs_of_a_problem_are_named_up_to_a_number(repo: Path) -> None:
    stream = f"oci-manifest-sha256:{'5' * 64}"
    add_stream(repo, stream, named={f"sha256:{number:064x}": f"{number + 1:0128x}" for number in range(300)})
    for number in range(300):
        link_of(repo, f"streams/refs/oci/tag-{number:05}", stream)
    with pytest.raises(BrokenRoots) as caught:
        plan(repo)
    assert len(caught.value.problems) == 300
    assert {len(needed) for _, needed in caught.value.problems} == {MOST_REFS}
