"""Content that is being added beside other writers, and what a killed import had not on disk."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cfs_tags import Repository, gc
from cfs_tags.apps.importing.choose import Options
from cfs_tags.cli.main import main
from cfs_tags.errors import CfsTagsError
from cfs_tags.fsck.check import check, fsck
from cfs_tags.fsck.repair import repair
from cfs_tags.repo import fsops, incoming
from cfs_tags.repo.incoming import INCOMING, Incoming
from cfs_tags.repo.store import ReadRepo, WriteRepo
from support import tagging
from support.images import Image, app_image, build_index
from support.importing import import_image
from support.interrupt import count_calls, every_stop, kill_after
from support.peers import Cfsctl
from support.stock import before_call, without_exchange
from support.trees import copy_tree, tree

SHARED = Options(home="shared")
MOVED = Options(home="shared", force=True)


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return app_image(tmp_path / "layout", "one")


@pytest.fixture
def other(tmp_path: Path) -> Image:
    return app_image(tmp_path / "layout", "two")


def content(repo: Path) -> set[str]:
    return {path for path, node in tree(repo, ("cfs-tags",)).items() if node.kind != "dir"}


def names(act: Callable[[], object]) -> list[str]:
    with count_calls() as calls:
        act()
    return [f"{name} {args[1]}" if len(args) > 1 else name for name, args in calls.made]


# -- what a killed import left -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("again", ["import", "create"])
def test_content_of_a_killed_import_is_synced_before_another_command_relies_on_it(
    repo: Path, image: Image, tmp_path: Path, again: str
) -> None:
    """It mends an image whose tag is there: nothing but the content changes, and the next one finds everything."""
    import_image(repo, image.source, "app", SHARED)
    lost = sorted((repo / "objects").glob("*/*"))[::2]
    for path in lost:
        path.unlink()
    whole = 0
    for attempt in every_stop(
        lambda number: copy_tree(repo, tmp_path / f"{number}"),
        lambda path: import_image(path, image.source, "app", SHARED),
        kill_after,
    ):
        path = attempt.subject
        is_whole = all((path / old.relative_to(repo)).exists() for old in lost)
        left = list((path / INCOMING).glob("*"))
        whole += is_whole and attempt.interrupted
        assert left or not (attempt.interrupted and is_whole) or _is_synced(path, image)

        def act(path: Path = path) -> object:
            if again == "import":
                return import_image(path, image.source, "app", SHARED)
            with Repository.open(path, write=True) as opened:
                return tagging.create(opened, "app", f"@{image.manifest_digest}")

        if again == "create" and not is_whole:
            continue
        calls = names(act)
        assert not left or "sync_filesystem" in calls, attempt.number
        assert "sync streams/refs/oci" in calls
        assert list((path / INCOMING).glob("*")) == []
    assert whole > 1


def _is_synced(path: Path, image: Image) -> bool:
    """The killed run had come past its own sync: what was left to do was making refs."""
    return not any("sync_filesystem" in call for call in names(lambda: import_image(path, image.source, "app", SHARED)))


def test_what_is_unchanged_needs_no_sync_of_the_file_system(repo: Path, image: Image) -> None:
    import_image(repo, image.source, "app", SHARED)

    calls = names(lambda: import_image(repo, image.source, "app", SHARED))

    assert [call for call in calls if call.startswith("sync")] == ["sync streams/refs/oci"]


def test_an_import_beside_another_that_is_at_work_has_all_on_disk(repo: Path, image: Image) -> None:
    import_image(repo, image.source, "app", SHARED)
    with Repository.open(repo, write=True) as opened, Incoming(opened):
        calls = names(lambda: import_image(repo, image.source, "app", SHARED))

    assert calls.index("sync_filesystem") < calls.index("sync streams/refs/oci")


# -- a running one -----------------------------------------------------------------------------------------------------


WRITERS: dict[str, Callable[[Path], object]] = {
    "create": lambda path: _edit(path, lambda opened: tagging.create(opened, "more", "app")),
    "delete": lambda path: _edit(path, lambda opened: tagging.delete(opened, ["app"])),
    "gc": lambda path: _edit(path, lambda opened: gc.collect(opened, gc.GcOptions())),
    "fsck --repair": lambda path: _edit(path, lambda opened: repair(opened, jobs=1)),
    "rename": lambda path: _edit(path, lambda opened: tagging.rename(opened, "app", "moved")),
    "restore": lambda path: _edit(path, _deleted_and_back),
    "another import": lambda path: import_image(path, app_image(path.parent / "more", "more").source, "more", SHARED),
    "maintain": lambda path: main(["--repo", str(path), "maintain", "--no-sysroot", "--check-every", "0"]),
}


def _deleted_and_back(opened: WriteRepo) -> None:
    tagging.delete(opened, ["app"], expires="20990101T000000Z")
    tagging.restore(opened, "app")


def _edit(path: Path, act: Callable[..., object]) -> None:
    with Repository.open(path, write=True) as opened:
        act(opened)


@pytest.mark.parametrize("writer", WRITERS)
def test_what_a_running_import_has_under_way_is_left_alone(repo: Path, image: Image, writer: str) -> None:
    import_image(repo, image.source, "app", SHARED)
    with Repository.open(repo, write=True) as opened:
        with Incoming(opened) as mine:
            (repo / mine.path / "object").write_bytes(b"x")

            WRITERS[writer](repo)

            assert (repo / mine.path / "object").read_bytes() == b"x"
            with Repository.open(repo) as looking:
                assert not [one for one in check(looking).findings if one.code == "left-over-file"]
        assert not (repo / mine.path).exists()


def test_a_worker_whose_parent_was_killed_is_still_at_work(repo: Path, image: Image) -> None:
    """The lock is that of the open directory, not of a process with a number."""
    import_image(repo, image.source, "app", SHARED)
    reading, writing = os.pipe()
    parent = os.fork()
    if parent == 0:
        with Repository.open(repo, write=True) as opened:
            mine = Incoming(opened)
            child = os.fork()
            if child == 0:
                os.write(writing, f"{os.getpid()} {mine.path}".encode())
                signal.pause()
            signal.pause()
        os._exit(0)
    number, path = os.read(reading, 200).decode().split()
    try:
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        WRITERS["create"](repo)
        assert (repo / path).is_dir()
    finally:
        os.kill(int(number), signal.SIGKILL)
    for _ in range(200):
        if not _is_running(int(number)):
            break
    WRITERS["delete"](repo)
    assert not (repo / path).exists()


def _is_running(number: int) -> bool:
    state = subprocess.run(["ps", "-o", "state=", "-p", str(number)], capture_output=True, text=True, check=False).stdout
    return state.strip() not in ("", "Z")


def test_what_a_killed_import_left_is_named_until_the_next_writer(repo: Path, image: Image) -> None:
    import_image(repo, image.source, "app", SHARED)
    (repo / INCOMING / "left/").mkdir(parents=True)
    with Repository.open(repo) as looking:
        assert [one.path for one in fsck(looking).findings if one.code == "left-over-file"] == [f"{INCOMING}/left"]

    WRITERS["fsck --repair"](repo)

    assert list((repo / INCOMING).iterdir()) == []


@pytest.mark.parametrize("strange", ["directory", "pipe", "link", "file"])
def test_what_no_writer_made_in_the_directory_holds_nothing_up(repo: Path, image: Image, strange: str) -> None:
    import_image(repo, image.source, "app", SHARED)
    place = repo / INCOMING / "left"
    place.mkdir(parents=True)
    {
        "directory": lambda: (place / "below/more").mkdir(parents=True),
        "pipe": lambda: os.mkfifo(place / "pipe"),
        "link": lambda: (place / "link").symlink_to("/etc/passwd"),
        "file": lambda: (repo / INCOMING / "file").write_bytes(b"x"),
    }[strange]()
    before = content(repo)

    WRITERS["create"](repo)
    import_image(repo, image.source, "again", SHARED)

    assert before < content(repo)
    assert Path("/etc/passwd").exists()


def test_a_directory_that_is_cleared_before_it_is_locked_is_made_again(repo: Path) -> None:
    cleared: list[str] = []

    def clear(opened: object, path: str) -> None:
        if not cleared:
            cleared.append(path)
            os.rmdir(repo / path)

    original = incoming._locked

    def late(opened: object, path: str) -> int | None:
        clear(opened, path)
        return original(opened, path)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch, Repository.open(repo, write=True) as opened:
        patch.setattr(incoming, "_locked", late)
        with Incoming(opened) as mine:
            assert mine.path not in cleared
            assert (repo / mine.path).is_dir()


# -- without an exchange -----------------------------------------------------------------------------------------------


def test_an_import_that_moves_a_tag_has_the_lock_that_it_needs(repo: Path, image: Image, other: Image, cfsctl: Cfsctl) -> None:
    import_image(repo, image.source, "app", SHARED)
    with without_exchange():
        done = import_image(repo, other.source, "app", MOVED, timeout=2)

    assert [result.done for result in done.tags.results] == ["moved"]
    assert os.readlink(repo / "streams/refs/oci/app").endswith(other.manifest_digest)
    cfsctl.assert_healthy(repo)


def test_content_that_is_collected_while_the_lock_changes_hands_is_added_again(
    repo: Path, image: Image, other: Image, cfsctl: Cfsctl
) -> None:
    import_image(repo, image.source, "app", SHARED)
    collected: list[bool] = []

    def refuse(dir_fd: int, first: str, second: str) -> None:
        raise fsops.ExchangeUnsupported(22, "Invalid argument", second)

    locked = ReadRepo.locked

    def collect_first(self: ReadRepo, mode: str = "shared", timeout: float = 30.0) -> object:
        if mode == "exclusive" and not collected:
            collected.append(True)
            cfsctl(repo, "gc")
        return locked(self, mode, timeout)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fsops, "exchange", refuse)
        patch.setattr(ReadRepo, "locked", collect_first)
        import_image(repo, other.source, "app", MOVED, timeout=5)

    assert collected
    cfsctl.assert_healthy(repo)
    with Repository.open(repo) as opened:
        assert not [one for one in fsck(opened).findings if one.fails]


def test_all_images_of_an_index_move_their_tags_without_an_exchange(repo: Path, tmp_path: Path, cfsctl: Cfsctl) -> None:
    layout = tmp_path / "layout"
    for version in ("1", "2"):
        images = {arch: app_image(layout, f"{arch}-{version}") for arch in ("amd64", "arm64")}
        build_index(layout, f"all-{version}", images)
    options = Options(home="shared", force=True, all_platforms=True, keep_index=True)
    import_image(repo, f"oci:{layout}:all-1", "app", options)
    before = {path.name: os.readlink(path) for path in (repo / "streams/refs/oci").iterdir()}

    with without_exchange():
        import_image(repo, f"oci:{layout}:all-2", "app", options, timeout=2)

    after = {path.name: os.readlink(path) for path in (repo / "streams/refs/oci").iterdir()}
    assert before.keys() == after.keys()
    assert all(before[name] != after[name] for name in before)
    cfsctl.assert_healthy(repo)


def test_a_tag_that_leads_nowhere_moves_without_an_exchange(repo: Path, image: Image, cfsctl: Cfsctl) -> None:
    import_image(repo, image.source, "app", SHARED)
    (repo / f"streams/oci-manifest-{image.manifest_digest}").unlink()
    with without_exchange():
        import_image(repo, image.source, "app", MOVED, timeout=2)

    assert (repo / "streams/refs/oci/app").exists()
    cfsctl.assert_healthy(repo)


def test_a_killed_import_that_moves_a_tag_without_an_exchange_is_finished_by_the_next(
    repo: Path, image: Image, other: Image, tmp_path: Path, cfsctl: Cfsctl
) -> None:
    import_image(repo, image.source, "app", SHARED)
    with without_exchange():
        for attempt in every_stop(
            lambda number: copy_tree(repo, tmp_path / f"{number}"),
            lambda path: import_image(path, other.source, "app", MOVED, timeout=2),
            kill_after,
        ):
            import_image(attempt.subject, other.source, "app", MOVED, timeout=2)

            assert os.readlink(attempt.subject / "streams/refs/oci/app").endswith(other.manifest_digest), attempt.number
            cfsctl.assert_healthy(attempt.subject)


def test_a_tag_that_a_peer_moves_while_the_lock_changes_hands_is_moved_from_there(
    repo: Path, image: Image, other: Image, tmp_path: Path, cfsctl: Cfsctl
) -> None:
    third = app_image(tmp_path / "layout", "three")
    import_image(repo, third.source, "third", SHARED)
    import_image(repo, image.source, "app", SHARED)
    moved: list[bool] = []
    locked = ReadRepo.locked

    def move_first(self: ReadRepo, mode: str = "shared", timeout: float = 30.0) -> object:
        if mode == "exclusive" and not moved:
            moved.append(True)
            cfsctl(repo, "oci", "tag", third.manifest_digest, "app")
        return locked(self, mode, timeout)  # type: ignore[arg-type]

    with without_exchange(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReadRepo, "locked", move_first)
        done = import_image(repo, other.source, "app", MOVED, timeout=5)

    assert moved
    [result] = done.tags.results
    assert third.manifest_digest in str(result.old)
    assert os.readlink(repo / "streams/refs/oci/app").endswith(other.manifest_digest)
    cfsctl.assert_healthy(repo)


def test_an_import_that_makes_a_new_tag_needs_no_exclusive_lock(repo: Path, image: Image, cfsctl: Cfsctl) -> None:
    reading = os.open(repo, os.O_RDONLY)
    fcntl.flock(reading, fcntl.LOCK_SH)
    with without_exchange():
        import_image(repo, image.source, "app", SHARED, timeout=1)
    os.close(reading)
    cfsctl.assert_healthy(repo)


def test_an_import_that_is_refused_leaves_no_directory(repo: Path, image: Image, other: Image) -> None:
    import_image(repo, image.source, "app", SHARED)
    with before_call("sync_filesystem", _fail), pytest.raises((CfsTagsError, OSError)):
        import_image(repo, other.source, "other", SHARED)

    assert list((repo / INCOMING).iterdir()) == []


def _fail() -> None:
    raise OSError(5, "Input/output error")
