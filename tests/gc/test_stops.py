"""A collection that is stopped anywhere leaves a correct repository, and the next one finishes it."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from cfs_tags import Repository, gc
from cfs_tags.errors import SystemFailure
from cfs_tags.fsck.check import fsck
from cfs_tags.repo import fsops, reflog
from cfs_tags.repo.lock import Lock
from deployments.conftest import view_of
from support import tagging
from support.collecting import NO_PAUSE, collect, plan, unresolve
from support.garbage import (
    add_artifact,
    add_stream,
    copy_of,
    manifest_of,
    model,
    names,
    object_paths,
    outside_state,
    random_bytes,
    settle,
)
from support.images import Layer, build_image, directory, file, pull_image
from support.interrupt import EVERY_STOP, Interruption, Stopped, every_stop, failed_after, kill_after, stopped_after
from support.peers import Cfsctl
from support.stock import disk_full_after, hard_copy, refs
from support.sysroots import Host
from support.trees import copy_tree

Fresh = Callable[..., Path]
PAST = "20200101T000000Z"


def broken_links(repo: Path) -> list[str]:
    return [
        f"{tree}/{name}" for tree in ("streams", "images") for name in names(repo, tree) if not (repo / tree / name).exists()
    ]


@pytest.fixture
def littered(fresh: Fresh) -> Path:
    """Two dead images, one of them kept by a lease until 2020, one by the trash until then, and a signature without subject."""
    path = fresh()
    with Repository.open(path, write=True) as repo:
        tagging.create(repo, "leased", "one", expires=PAST)
        tagging.delete(repo, ["one"])
        tagging.delete(repo, ["two"], expires=PAST)
    add_artifact(path, "of two", manifest_of_stream(path))
    settle()
    return path


def manifest_of_stream(path: Path) -> str:
    trash = next(ref for ref in refs(path) if "/trash/" in ref)
    return os.readlink(path / trash).rpartition("oci-manifest-")[2]


OPTIONS: dict[str, Any] = {"prune_referrers": True, "pace": NO_PAUSE}


def assert_sound(path: Path, cfsctl: Cfsctl) -> None:
    """Both programs' checks find nothing, and the stock collector would run."""
    cfsctl.assert_healthy(path)
    with Repository.open(path) as repo:
        assert [one for one in fsck(repo).findings if one.severity == "error"] == []


@pytest.mark.parametrize("how", [stopped_after, kill_after, failed_after(errno.EIO)])
def test_the_next_collection_comes_to_the_same_end(littered: Path, ram: Path, cfsctl: Cfsctl, how: Interruption) -> None:
    end = copy_of(littered, ram / "stops-end")
    collect(end, **OPTIONS)
    wanted = outside_state(end)
    assert not [ref for ref in refs(end) if PAST in ref]
    live = model(end, cfsctl).objects

    def prepare(number: int) -> Path:
        path = hard_copy(littered, ram / "stops-attempt")
        time.sleep(0.012)  # no dry run here: a tick of the clock is enough
        return path

    for attempt in every_stop(prepare, lambda path: collect(path, **OPTIONS), how):
        path = attempt.subject
        assert broken_links(path) == []
        assert live <= set(object_paths(path))
        if EVERY_STOP or attempt.number % (3 if how is kill_after else 11) == 0:
            assert_sound(path, cfsctl)
        collect(path, **OPTIONS)
        assert outside_state(path) == wanted, attempt.number
    cfsctl(path, "--no-upgrade", "gc")
    assert outside_state(path) == wanted


def test_so_does_one_after_a_kill_that_was_to_free_so_many_bytes(littered: Path, ram: Path, cfsctl: Cfsctl) -> None:
    end = copy_of(littered, ram / "free-end")
    some = collect(end, **OPTIONS).swept.allocated // 2
    wanted = outside_state(end)
    live = model(end, cfsctl).objects

    def prepare(number: int) -> Path:
        path = hard_copy(littered, ram / "free-attempt")
        time.sleep(0.012)
        return path

    for attempt in every_stop(prepare, lambda path: collect(path, free_bytes=some, **OPTIONS), kill_after, sample=5):
        path = attempt.subject
        assert broken_links(path) == []
        assert live <= set(object_paths(path))
        assert_sound(path, cfsctl)
        assert collect(path, free_bytes=some, **OPTIONS).swept.objects > 0, attempt.number
        collect(path, **OPTIONS)
        assert outside_state(path) == wanted, attempt.number


def test_so_does_one_after_a_kill_that_keeps_what_is_young(littered: Path, ram: Path, cfsctl: Cfsctl) -> None:
    """Two streams without a ref, one over the other, as a program leaves them that is not done."""

    def prepare(number: int) -> tuple[Path, float]:
        path = hard_copy(littered, ram / "grace-attempt")
        time.sleep(0.15)
        between = time.time()
        time.sleep(0.15)
        inner = add_stream(path, "young-inner", objects=[random_bytes("young inner", 800)], content_type=0x99)
        add_stream(path, "young-outer", objects=[random_bytes("young", 700)], named={"inner": inner}, content_type=0x99)
        return path, between

    def act(subject: tuple[Path, float]) -> gc.GcResult:
        path, between = subject
        return collect(path, grace=time.time() - between, **OPTIONS)

    end = prepare(-1)
    young = outside_state(end[0]) - outside_state(littered)
    assert act(end).swept.objects > 0
    wanted = outside_state(end[0])
    assert young <= wanted
    assert len([path for path in young if path.startswith("objects/")]) == 4
    live = model(end[0], cfsctl).objects

    for attempt in every_stop(prepare, act, kill_after, sample=5):
        path, _ = attempt.subject
        assert broken_links(path) == []
        assert young <= outside_state(path)
        assert live <= set(object_paths(path))
        assert_sound(path, cfsctl)
        act(attempt.subject)
        assert outside_state(path) == wanted, attempt.number


def test_so_does_one_after_a_kill_that_keeps_deployments_by_their_images_alone(three: Host, ram: Path, cfsctl: Cfsctl) -> None:
    unresolve(three, "old", "new")
    for tag in three.pool.apps:
        three.untag(tag)

    def prepare(number: int) -> Host:
        host = replace(three, root=ram / "image-only-attempt")
        if host.root.exists():
            shutil.rmtree(host.root)
        copy_tree(three.root, host.root)
        time.sleep(0.012)
        return host

    def act(host: Host) -> gc.GcResult:
        return collect(host.repo, lambda: view_of(host), pace=NO_PAUSE, image_only=True)

    end = prepare(-1)
    assert act(end).swept.objects > 0
    wanted = outside_state(end.repo)
    live = model(end.repo, cfsctl).objects
    assert len([ref for ref in refs(end.repo) if ref.startswith("images/refs/cfs-tags/deployments/")]) == 3

    for attempt in every_stop(prepare, act, kill_after, sample=5):
        host = attempt.subject
        assert broken_links(host.repo) == []
        assert live <= set(object_paths(host.repo))
        assert [host.missing("same"), host.missing("old", image_only=True), host.missing("new", image_only=True)] == [[]] * 3
        assert_sound(host.repo, cfsctl)
        act(host)
        assert outside_state(host.repo) == wanted, attempt.number


@pytest.mark.parametrize("how", [stopped_after, kill_after])
def test_a_repository_without_meta_json_can_be_opened_wherever_its_last_collection_stopped(
    fresh: Fresh, ram: Path, cfsctl: Cfsctl, how: Interruption
) -> None:
    source = fresh()
    for ref in refs(source):
        if "referrers" not in ref:
            (source / ref).unlink()
    collect(source, pace=NO_PAUSE)  # few objects: each is a copy
    for ref in refs(source):
        (source / ref).unlink()
    (source / "meta.json").unlink()

    def prepare(number: int) -> Path:
        path = hard_copy(source, ram / "no-meta-attempt")
        time.sleep(0.012)
        return path

    for attempt in every_stop(prepare, collect, how):
        assert (attempt.subject / "meta.json").exists() or object_paths(attempt.subject).keys() == object_paths(source).keys()
        with Repository.open(attempt.subject) as repo:
            assert repo.algorithm.value == "sha512"
        collect(attempt.subject, pace=NO_PAUSE)
    assert object_paths(attempt.subject) == {}
    cfsctl(attempt.subject, "--no-upgrade", "fsck")


@pytest.mark.parametrize("tag", ["two", "host-new"])
def test_what_is_pulled_or_tagged_after_a_kill_is_whole(
    fresh: Fresh, pools: Callable[[str], Path], cfsctl: Cfsctl, tag: str
) -> None:
    """A pull that finds the name of a config, and a tag for which a manifest's is enough, look no further."""
    layout = pools("sha512").parent / "layout"
    manifest = manifest_of(pools("sha512"), tag if tag == "two" else "localhost/bootc-new")
    pulled = tagged = 0
    for number in count():
        path = fresh()
        for ref in refs(path):
            (path / ref).unlink()
        settle()
        killed = kill_after(number, lambda path=path: collect(path))  # type: ignore[misc]
        left = names(path, "streams")
        if not killed or not left:
            break
        if f"oci-manifest-{manifest}" in left:
            with Repository.open(path, write=True) as repo:
                tagging.create(repo, "again", f"@{manifest}")
            tagged += 1
        else:
            cfsctl(path, "oci", "pull", *(["--bootable"] if tag != "two" else []), f"oci:{layout}:{tag}", "again")
            pulled += 1
        wanted = model(path, cfsctl).objects
        cfsctl(path, "--no-upgrade", "oci", "fsck")
        cfsctl(path, "--no-upgrade", "gc")
        assert wanted <= set(object_paths(path)), number
    assert min(pulled, tagged) > 3


# -- a full disk -------------------------------------------------------------------------------------------------------


def test_a_full_disk_does_not_keep_a_collector_from_making_room(littered: Path) -> None:
    wanted = plan(littered).swept
    with disk_full_after(0) as seen:
        done = collect(littered)
    assert seen["failed"] > 0
    assert done.swept.objects >= wanted.objects > 0
    assert not [ref for ref in refs(littered) if PAST in ref]


def test_on_a_full_disk_no_referrer_loses_what_its_ref_leads_to(littered: Path, cfsctl: Cfsctl) -> None:
    with disk_full_after(0):
        collect(littered, prune_referrers=True)
    cfsctl(littered, "--no-upgrade", "gc", "-n")
    assert set(object_paths(littered)) == model(littered, cfsctl).objects
    collect(littered, prune_referrers=True)
    assert len([ref for ref in refs(littered) if "oci-referrers" in ref]) == 1, "that of an index that was never here"


def test_on_a_full_disk_what_has_run_out_goes_while_nobody_else_is_at_work(
    littered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be no room for the lock of the refs."""
    with Repository.open(littered) as opened:
        lock = Lock.of(opened.fd, ".", opened.path)
    remove = fsops.remove
    modes: list[str | None] = []

    def watched(fd: int, path: str) -> None:
        if PAST in path:
            modes.append(lock.mode)
        remove(fd, path)

    monkeypatch.setattr(fsops, "remove", watched)
    with disk_full_after(0):
        collect(littered)
    assert modes == ["exclusive"] * 2


def test_nothing_fails_where_only_the_log_has_no_room(littered: Path) -> None:
    with disk_full_after(0, operations=("append",)):
        collect(littered)
    assert not [ref for ref in refs(littered) if PAST in ref]


@pytest.mark.parametrize("killed", [False, True])
def test_what_went_without_a_log_entry_gets_one_with_the_next_collection(littered: Path, killed: bool) -> None:
    run_out = [ref for ref in refs(littered) if PAST in ref]
    remove = fsops.remove

    def removes_one(fd: int, path: str) -> None:
        remove(fd, path)
        if killed and PAST in path:
            raise Stopped

    with (
        disk_full_after(0, operations=("append",)),
        patch.object(fsops, "remove", removes_one),
        pytest.raises(Stopped) if killed else nullcontext(),
    ):
        collect(littered)
    gone = [ref for ref in run_out if ref not in refs(littered)]
    assert len(gone) == (1 if killed else len(run_out))

    collect(littered)

    with Repository.open(littered) as repo:
        last = [reflog.last_value(repo, ref) for ref in run_out]
    assert [(entry.action, entry.new) for entry in last if entry is not None] == [("expire", None)] * len(run_out)
    assert not list((littered / "streams/refs/cfs-tags").glob("*/*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    where = tmp_path / "disk"
    where.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", where], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield where
    subprocess.run(["umount", "--lazy", where], check=True)


def test_a_disk_that_is_really_full_is_collected(small_disk: Path, cfsctl: Cfsctl, tmp_path: Path) -> None:
    path = small_disk / "composefs"
    path.mkdir()
    cfsctl(None, "init", "--insecure", path)
    layers = [Layer([directory("usr"), *(file(f"usr/{n}", random_bytes(f"full {n}", 20_000)) for n in range(40))])]
    image = build_image(tmp_path / "layout", "app", layers)
    pull_image(cfsctl, path, image, "app")
    cfsctl(path, "oci", "untag", "app")
    with (small_disk / "rest").open("wb", buffering=0) as rest, pytest.raises(OSError, match="No space left"):
        rest.writelines(b"x" * 4096 for _ in range(1000))
    settle()

    (path / "meta.json").unlink()

    done = collect(path)

    assert done.swept.objects > 40
    assert object_paths(path) == {}
    assert done.meta
    cfsctl(path, "--no-upgrade", "fsck")


def test_what_cannot_be_helped_is_said(littered: Path) -> None:
    """Nothing can be deleted and nothing can be written: that is an error, not silence."""
    with (
        disk_full_after(0, operations=("append", "create_file", "replace_file", "remove", "rename")),
        pytest.raises(SystemFailure),
    ):
        collect(littered)


# -- signals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_collection_cleanly(fresh: Fresh, cfsctl: Cfsctl, number: signal.Signals, tmp_path: Path) -> None:
    path = fresh()
    for tag in ("one", "two", "three"):
        (path / "streams/refs/oci" / tag).unlink()
    program = (
        "import sys, time\n"
        "from functools import partial\n"
        "from cfs_tags import gc\n"
        "from cfs_tags.repo import fsops\n"
        "from cfs_tags.cli.main import main\n"
        "gc.collect = partial(gc.collect, pace=gc.Pace(batch=1))\n"
        "remove = fsops.remove\n"
        "def slowly(fd, name):\n"
        "    remove(fd, name)\n"
        "    print('.', file=sys.stderr, flush=True)\n"
        "    time.sleep(0.2)\n"
        "fsops.remove = slowly\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, "--repo", str(path), "gc"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    assert process.stderr.read(1) == b"."
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130, (out, err)
    assert b"interrupted" in err
    assert b"Traceback" not in err
    assert broken_links(path) == []
    cfsctl(path, "--no-upgrade", "fsck")
    settle()
    kept = model(path, cfsctl).objects
    collect(path)
    assert set(object_paths(path)) == kept


def test_what_expired_is_in_the_log(littered: Path) -> None:
    collect(littered)
    with Repository.open(littered) as repo:
        actions = [entry.action for entry in reflog.all_entries(repo).entries if entry.new is None and PAST in entry.ref]
    assert actions == ["expire", "expire"]
    assert not list((littered / "streams/refs/cfs-tags").glob("*/*"))


def test_two_collections_at_once_come_to_one_end(littered: Path, ram: Path, cfsctl: Cfsctl) -> None:
    kept = model(littered, cfsctl, [ref for ref in refs(littered) if PAST not in ref]).objects
    command = [sys.executable, "-m", "cfs_tags", "--repo", str(littered), "gc"]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) for _ in range(4)]
    said = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, said
    assert set(object_paths(littered)) == kept
