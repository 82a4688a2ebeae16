"""Beside other processes: what becomes live while a collection is under way stays, and none waits for ever."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

import support.soak
from cfs_tags import Repository, gc
from cfs_tags.errors import BrokenRoots
from cfs_tags.formats import fsverity
from cfs_tags.gc.mark import Marks
from cfs_tags.repo import fsops
from cfs_tags.repo.directory import Directory
from cfs_tags.repo.lock import Lock
from cfs_tags.repo.object_store import ObjectStore
from cfs_tags.values import Algorithm
from support.collecting import SMALL_SLICES, at_slice, collect, removed_nothing
from support.garbage import (
    HOSTS,
    add_stream,
    link_of,
    manifest_of,
    model,
    names,
    object_of,
    object_paths,
    outside_state,
    settle,
)
from support.images import Image, app_image, base_layer, random_bytes
from support.peers import Cfsctl
from support.stock import refs

Fresh = Callable[..., Path]


@pytest.fixture
def dead(fresh: Fresh) -> Path:
    """``one``, ``two`` and a bootable image are dead, the image ref of a directory is gone."""
    path = fresh()
    for ref in refs(path):
        if ref != "streams/refs/oci/three":
            (path / ref).unlink()
    return path


# -- at named points ---------------------------------------------------------------------------------------------------

PEERS = ["tag", "pull", "pull another", "pull bootable", "image ref", "create-image", "ours", "link"]


@pytest.mark.parametrize("slices", [1, 2, 3, 9])
@pytest.mark.parametrize("what", PEERS)
def test_what_comes_alive_between_marks_and_deletions_stays(
    dead: Path,
    fresh: Fresh,
    pools: Callable[[str], Path],
    cfsctl: Cfsctl,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    slices: int,
) -> None:
    pool = pools("sha512")
    layout = pool.parent / "layout"
    one = manifest_of(pool, "one")
    image = os.path.basename(os.readlink(pool / "images/refs/tree/named"))
    manifest = f"oci-manifest-{one}"
    if what == "pull another" and not (layout / "another").exists():
        app_image(layout, "another", [base_layer("runtime", 2000)], size=1000)

    def ours() -> None:
        program = "import sys; from cfs_tags.cli.main import main; sys.exit(main(sys.argv[1:]))"
        words = ["--repo", str(dead), "create", "again", f"@{one}", "--private"]
        subprocess.run([sys.executable, "-c", program, *words], check=True)

    actions: dict[str, tuple[str, Callable[[], object]]] = {
        "tag": (manifest, lambda: cfsctl(dead, "oci", "tag", one, "again")),
        "pull": ("", lambda: cfsctl(dead, "oci", "pull", f"oci:{layout}:one", "again")),
        "pull another": ("", lambda: cfsctl(dead, "oci", "pull", f"oci:{layout}:another", "again")),
        "pull bootable": ("", lambda: cfsctl(dead, "oci", "pull", "--bootable", f"oci:{layout}:host-{HOSTS[0]}", "again")),
        "image ref": (image, lambda: link_of(dead, "images/refs/again", image)),
        "create-image": ("", lambda: cfsctl(dead, "create-image", pool.parent / "tree-0", "again")),
        "ours": (manifest, ours),
        "link": (manifest, lambda: link_of(dead, "streams/refs/elsewhere/again", manifest)),
    }
    needs, act = actions[what]
    came = []

    def peer() -> None:
        if not needs or needs in names(dead, "streams") | names(dead, "images"):
            act()
            came.append(True)

    at_slice(monkeypatch, slices, peer)

    collect(dead, pace=SMALL_SLICES)

    assert came or slices > 1, "before the first slice nothing is gone"
    assert set(object_paths(dead)) >= model(dead, cfsctl).objects
    monkeypatch.undo()
    cfsctl(dead, "--no-upgrade", "fsck")
    if came and what not in ("image ref", "create-image"):
        cfsctl(dead, "--no-upgrade", "oci", "fsck")
    collect(dead, pace=SMALL_SLICES)
    assert set(object_paths(dead)) == model(dead, cfsctl).objects
    assert removed_nothing(cfsctl(dead, "--no-upgrade", "gc").stdout)


def test_a_tag_that_moves_to_something_dead_is_seen_by_its_target(
    fresh: Fresh, cfsctl: Cfsctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name was there before: names alone do not tell."""
    path = fresh()
    one = manifest_of(path, "one")
    (path / "streams/refs/oci/one").unlink()
    at_slice(monkeypatch, 1, lambda: cfsctl(path, "oci", "tag", one, "two"))
    collect(path, pace=SMALL_SLICES)
    assert manifest_of(path, "two") == one
    assert set(object_paths(path)) >= model(path, cfsctl).objects
    cfsctl(path, "--no-upgrade", "oci", "fsck")


def test_a_stream_that_is_written_again_keeps_what_it_leads_to(
    dead: Path, pools: Callable[[str], Path], cfsctl: Cfsctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link without a ref, as a pull leaves it that is not done yet: it is young."""
    layer = sorted(name for name in names(dead, "streams") if name.startswith("oci-layer-"))[0]
    target = os.readlink(dead / "streams" / layer)
    before = object_of(dead, f"streams/{layer}")

    def write() -> None:
        (dead / "streams" / "written-again").symlink_to(target)

    at_slice(monkeypatch, 1, write)
    collect(dead, pace=SMALL_SLICES)
    assert "written-again" in names(dead, "streams")
    assert before in object_paths(dead)
    cfsctl(dead, "--no-upgrade", "fsck")


@pytest.mark.parametrize("moment", range(1, 14))
def test_a_pull_at_any_moment_of_marking_is_no_dangling_ref(
    dead: Path, pools: Callable[[str], Path], cfsctl: Cfsctl, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """Links and refs are read one after the other, under the shared lock: others make both meanwhile."""
    layout = pools("sha512").parent / "layout"
    original = Directory.directory
    opened = []

    def directory(self: Directory, path: str) -> int | None:
        if Lock.of(self.fd, ".", self.path).mode == "shared":
            opened.append(path)
            if len(opened) == moment:
                cfsctl(dead, "oci", "pull", f"oci:{layout}:one", "just-now")
        return original(self, path)

    shutil.rmtree(dead / "streams/refs/cfs-tags", ignore_errors=True)
    (dead / "streams" / f"oci-manifest-{manifest_of(pools('sha512'), 'one')}").unlink()
    monkeypatch.setattr(Directory, "directory", directory)
    collect(dead)
    monkeypatch.undo()

    assert len(opened) >= moment
    assert manifest_of(dead, "just-now") == manifest_of(pools("sha512"), "one")
    cfsctl(dead, "--no-upgrade", "oci", "fsck")
    assert set(object_paths(dead)) >= model(dead, cfsctl).objects


def test_a_listing_that_misses_what_is_renamed_meanwhile_is_no_dangling_ref(
    fresh: Fresh, cfsctl: Cfsctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pull puts a new link in the place of the old one; a directory that is read then may show neither."""
    path = fresh()
    wanted = model(path, cfsctl).objects
    manifest = f"oci-manifest-{manifest_of(path, 'one')}"
    original = Directory.names
    missed = []

    def names_of(self: Directory, directory: str) -> list[str] | None:
        found = original(self, directory)
        if directory == "streams" and found and not missed:
            missed.append(found.remove(manifest))
        return found

    monkeypatch.setattr(Directory, "names", names_of)
    collect(path)
    assert missed
    assert wanted == set(object_paths(path))


@pytest.mark.parametrize("number", [2, 6, 10, 14])
def test_what_is_pulled_while_half_of_the_names_are_gone_is_whole(
    dead: Path,
    pools: Callable[[str], Path],
    cfsctl: Cfsctl,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    layout = pools("sha512").parent / "layout"
    remove = fsops.remove

    def slowly(fd: int, path: str) -> None:
        remove(fd, path)
        time.sleep(0.001)  # one in each slice

    monkeypatch.setattr(fsops, "remove", slowly)
    left = []

    def pull() -> None:
        left.extend(names(dead, "streams"))
        cfsctl(dead, "oci", "pull", f"oci:{layout}:one", "again")

    at_slice(monkeypatch, number, pull)
    collect(dead, pace=SMALL_SLICES)
    monkeypatch.undo()
    wanted = model(dead, cfsctl).objects
    assert left
    assert wanted <= set(object_paths(dead))
    cfsctl(dead, "--no-upgrade", "gc")
    assert wanted <= set(object_paths(dead))


def in_one_directory(count: int) -> list[bytes]:
    """Contents of objects of one directory."""
    found: dict[str, list[bytes]] = {}
    number = 0
    while True:
        data = random_bytes(f"one directory {number}", 200)
        mine = found.setdefault(str(fsverity.measure(data, Algorithm.SHA512))[:2], [])
        mine.append(data)
        if len(mine) == count:
            return mine
        number += 1


@pytest.mark.parametrize("deleted", [1, 4])
def test_what_comes_alive_in_a_directory_that_is_half_done_stays(
    dead: Path, monkeypatch: pytest.MonkeyPatch, deleted: int
) -> None:
    """What is dead in a directory is known from before; a pull finds the rest of it there and stores nothing anew."""
    files = in_one_directory(6)
    add_stream(dead, "taken", objects=files)
    ours = {str(fsverity.measure(data, Algorithm.SHA512)) for data in files}
    settle()
    original, remove = Lock.hold, fsops.remove
    left: list[int] = []

    def slowly(fd: int, path: str) -> None:
        remove(fd, path)
        time.sleep(0.001)  # one in each slice

    def hold(self: Lock, mode: str, dir_fd: int, name: str, *words: object, **named: object) -> object:
        if mode == "exclusive" and name == "." and not left and len(ours & set(object_paths(dead))) <= 6 - deleted:
            left.append(len(ours & set(object_paths(dead))))
            add_stream(dead, "again", objects=files)
            link_of(dead, "streams/refs/other/again", "again")
        return original(self, mode, dir_fd, name, *words, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(fsops, "remove", slowly)
    monkeypatch.setattr(Lock, "hold", hold)
    collect(dead, pace=SMALL_SLICES)

    assert left
    assert left[0] > 0
    assert ours <= set(object_paths(dead))


def test_an_object_that_is_written_while_marks_are_made_stays(dead: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a process that has not named it yet."""
    written: list[str] = []
    original = Marks.mark

    def mark(self: Marks, *words: Any) -> None:
        original(self, *words)
        if not written:
            with Repository.open(dead, write=True) as other:
                written.append(str(ObjectStore(other).add(random_bytes("young", 300))))
            settle()

    monkeypatch.setattr(Marks, "mark", mark)
    collect(dead)
    assert written[0] in object_paths(dead)


def test_nobody_deletes_without_the_lock_wherever_an_interrupt_comes(dead: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without = []
    with Repository.open(dead, write=True) as opened:
        lock = Lock.of(opened.fd, ".", opened.path)
        remove, start = fsops.remove, Thread.start

        def watched(fd: int, path: str) -> None:
            if "/" not in path:
                time.sleep(0.01)
                if lock.mode != "exclusive":
                    without.append(path)
            remove(fd, path)

        def interrupted(self: Thread) -> None:
            start(self)
            raise KeyboardInterrupt  # it runs, and is not waited for

        monkeypatch.setattr(fsops, "remove", watched)
        monkeypatch.setattr(Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            gc.collect(opened)
        time.sleep(0.3)
    assert without == []


def test_a_collection_comes_forward_however_long_it_looks(dead: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listdir = os.listdir

    def slowly(path: Any = ".") -> list[str]:
        if isinstance(path, int):
            time.sleep(0.01)
        return listdir(path)

    monkeypatch.setattr(os, "listdir", slowly)
    assert collect(dead, pace=gc.Pace(slice=0.005, pause=0.0)).slices < 400


@pytest.mark.parametrize("free", [None, 1 << 40], ids=["all", "until enough is free"])
def test_a_slice_without_any_time_deletes_something(dead: Path, free: int | None) -> None:
    with Repository.open(dead, write=True) as repo:
        swept = gc.collect(repo, gc.GcOptions(free_bytes=free), pace=gc.Pace(slice=0.0, pause=0.0, batch=1)).swept
    assert swept.objects
    assert collect(dead).swept.objects == 0


def test_a_ref_to_what_is_gone_stops_the_rest(dead: Path, cfsctl: Cfsctl, monkeypatch: pytest.MonkeyPatch) -> None:
    at_slice(monkeypatch, 1, lambda: link_of(dead, "streams/refs/oci/dangling", f"oci-manifest-sha256:{'00' * 32}"))
    before = outside_state(dead)
    with pytest.raises(BrokenRoots):
        collect(dead)
    assert outside_state(dead) - before == {"streams/refs/oci/dangling"}


# -- all at once -------------------------------------------------------------------------------------------------------


def soak_seconds() -> float:
    """A minute; ``make soak`` asks for more, an impatient developer for less."""
    return float(os.environ.get("CFS_TAGS_SOAK_SECONDS", "60"))


def contents(image: Image) -> set[str]:
    digests = {image.manifest_digest.removeprefix("sha256:"), image.config_digest.removeprefix("sha256:")}
    files = (entry.content for layer in image.layers for entry in layer.entries if len(entry.content) > 64)
    return digests | {hashlib.sha256(data).hexdigest() for data in files}


@pytest.mark.slow
def test_nothing_live_is_lost_and_nobody_waits_for_ever(cfsctl: Cfsctl, tmp_path: Path) -> None:
    repo = tmp_path / "composefs"
    layout = tmp_path / "layout"
    repo.mkdir()
    cfsctl(None, "init", "--insecure", repo)
    images = {}
    for number in range(support.soak.IMAGES):
        shared = [base_layer(f"base-{number % 2}", 3000), base_layer("all", 2000)]
        images[f"app-{number}"] = app_image(layout, f"app-{number}", shared, size=1500)
    for number in range(2):
        (tmp_path / f"tree-{number}/usr").mkdir(parents=True)
        for index in range(5):
            (tmp_path / f"tree-{number}/usr/{index}").write_bytes(random_bytes(f"{number * (index % 2)} {index}", 1000))
    cfsctl(repo, "oci", "pull", f"oci:{layout}:app-0", "held")
    seconds = soak_seconds()

    roles: Sequence[str] = ["puller", "puller", "puller", "tagger", "tagger", "gc", "gc", "stock gc"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    started = time.monotonic()
    processes = [
        subprocess.Popen(
            [sys.executable, support.soak.__file__, role, repo, f"{seconds}", f"{seed}", cfsctl.program, layout],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
        )
        for seed, role in enumerate(roles)
    ]
    said = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=max(1.0, seconds + 120 - (time.monotonic() - started)))
            assert process.returncode == 0, err
            said.append(json.loads(out))
    finally:
        for process in processes:
            process.kill()
            process.wait()

    assert all(one["longest"] < support.soak.DEADLINE for one in said)
    collected = [one["done"] for one, role in zip(said, roles, strict=True) if role == "gc"]
    assert sum(done["collections"] for done in collected) > 2
    assert sum(done["objects"] for done in collected) > 0
    assert sum(one["done"].get("stock collections", 0) for one in said) > 0
    time.sleep(2.1)  # the last leases run out
    with Repository.open(repo, write=True) as opened:
        result = gc.collect(opened)
    assert result.problems == ()
    cfsctl(repo, "--no-upgrade", "fsck")
    cfsctl(repo, "--no-upgrade", "oci", "fsck")
    assert removed_nothing(cfsctl(repo, "--no-upgrade", "gc").stdout)
    hashes = {hashlib.sha256(path.read_bytes()).hexdigest() for path in object_paths(repo).values()}
    tags = cfsctl.tags(repo)
    expected = {"held": "app-0"} | {tag: name for one in said for tag, name in one["tags"].items()}
    for tag, name in expected.items():
        assert tags[tag] == images[name].manifest_digest
        assert contents(images[name]) <= hashes, tag
    assert set(object_paths(repo)) == model(repo, cfsctl).objects
