"""An import of the same image again mends it, whatever is missing or cut."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cfs_tags.apps.importing.choose import Options
from cfs_tags.errors import FormatError
from cfs_tags.repo import fsops
from cfs_tags.repo.incoming import INCOMING
from support.images import (
    Image,
    Layer,
    base_layer,
    build_artifact,
    build_image,
    directory,
    file,
    host_image,
    pull_image,
    random_bytes,
)
from support.importing import export_image, import_image
from support.interrupt import every_stop, kill_after
from support.peers import Cfsctl
from support.trees import copy_tree, tree

NewRepo = Callable[..., Path]


def remove(path: Path) -> None:
    path.unlink()


def cut_to_nothing(path: Path) -> None:
    os.truncate(path, 0)


def cut_by_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def replace_by_a_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def replace_by_a_link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def replace_by_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_a_link_of_the_same_length(path: Path) -> None:
    size = path.stat().st_size
    path.unlink()
    path.symlink_to("./" * (min(size, 4094) // 2) + "x" * (size % 2))


SPOILS = [
    *(remove, cut_to_nothing, cut_by_half),
    *(replace_by_a_link, replace_by_a_link_to_itself, replace_by_a_link_of_the_same_length, replace_by_a_pipe),
]


@pytest.fixture
def image(tmp_path: Path) -> Image:
    layers = [
        base_layer(),
        Layer([directory("usr"), *(file(f"usr/{n}", random_bytes(str(n), 100 + n * 900)) for n in range(5))], "zstd"),
        Layer([file("usr/again", random_bytes("1", 1000)), file("usr/small", b"x")], "none"),
    ]
    made = build_image(tmp_path / "layout", "app", layers)
    build_artifact(tmp_path / "layout", "signature", [("text/plain", b"signed" * 20)], subject=made)
    return made


def imported(repo: Path, image: Image) -> None:
    import_image(repo, image.source, "app", Options(home="shared"))


@pytest.mark.parametrize("spoil", SPOILS)
def test_each_object_that_is_missing_or_cut_is_there_again(
    spoil: Callable[[Path], None], cfsctl: Cfsctl, repo: Path, image: Image
) -> None:
    imported(repo, image)
    before = tree(repo, ("cfs-tags",))
    objects = sorted((repo / "objects").glob("*/*"))
    assert len(objects) > 12
    for path in objects:
        spoil(path)
        imported(repo, image)
        assert tree(repo, ("cfs-tags",)) == before, path
    for path in objects:
        spoil(path)
    imported(repo, image)
    assert tree(repo, ("cfs-tags",)) == before
    cfsctl.assert_healthy(repo)


@pytest.mark.parametrize("size", [5000, 4096, 300])
def test_a_directory_in_the_place_of_an_object_is_no_object_and_stays(repo: Path, tmp_path: Path, size: int) -> None:
    """Whatever length the system gives it: it is refused with its path, and may hold anything."""
    image = build_image(tmp_path / "layout", "app", [base_layer(), Layer([file("usr/large", bytes(size))])])
    imported(repo, image)
    large = next(path for path in (repo / "objects").glob("*/*") if path.read_bytes() == bytes(size))
    large.unlink()
    large.mkdir()
    (large / "kept").write_bytes(b"")

    with pytest.raises(FormatError, match=large.name):
        imported(repo, image)

    assert (large / "kept").exists()


def test_each_link_that_is_missing_is_there_again(cfsctl: Cfsctl, repo: Path, image: Image) -> None:
    imported(repo, image)
    before = tree(repo, ("cfs-tags",))
    links = [path for path in sorted((repo / "streams").rglob("*")) if path.is_symlink()]
    assert len(links) > 7
    for path in links:
        path.unlink()
        imported(repo, image)
        assert tree(repo, ("cfs-tags",)) == before, path
    for path in links:
        path.unlink()
    imported(repo, image)
    assert tree(repo, ("cfs-tags",)) == before
    cfsctl.assert_healthy(repo)


@pytest.mark.parametrize("spoil", SPOILS)
def test_what_cfsctl_pulled_is_mended_under_its_tag_and_under_another(
    spoil: Callable[[Path], None], cfsctl: Cfsctl, repo: Path, image: Image, tmp_path: Path
) -> None:
    """But for the EROFS image, which cfsctl makes: nothing is lost of what is there of that."""
    pull_image(cfsctl, repo, image)
    before = tree(repo, ("cfs-tags",))
    files = [random_bytes(str(n), 100 + n * 900) for n in range(5)]
    spoiled = [path for path in (repo / "objects").glob("*/*") if path.read_bytes() in files]
    assert len(spoiled) == 5
    for path in spoiled:
        spoil(path)
    import_image(repo, image.source, "another", Options(home="shared"))
    after = tree(repo, ("cfs-tags",))
    assert {path: found for path, found in before.items() if after.get(path) != found} == {}
    cfsctl.assert_healthy(repo)
    export_image(repo, image.ref, f"oci:{tmp_path}/out:app")


@pytest.mark.parametrize("left", ["nothing", "a link in its place", "a pipe in its place"])
def test_an_erofs_image_that_is_gone_with_its_link_keeps_no_image_from_being_mended(
    left: str, cfsctl: Cfsctl, repo: Path, tmp_path: Path
) -> None:
    image = host_image(tmp_path / "layout", "41.1")
    pull_image(cfsctl, repo, image, bootable=True)
    for link in [path for path in (repo / "images").iterdir() if path.is_symlink()]:
        gone = link.resolve()
        link.unlink()
        gone.unlink()
        if left == "a link in its place":
            gone.symlink_to("nowhere")
        elif left == "a pipe in its place":
            os.mkfifo(gone)
    program = random_bytes("init 41.1", 8000)
    lost = next(path for path in (repo / "objects").glob("*/*") if path.is_file() and path.read_bytes() == program)
    lost.unlink()

    import_image(repo, image.source, "again", Options(home="shared"))

    assert lost.read_bytes() == program
    export_image(repo, "again", f"oci:{tmp_path}/out:again")


def test_an_image_of_which_only_its_tag_is_left_is_there_again(cfsctl: Cfsctl, repo: Path, image: Image) -> None:
    imported(repo, image)
    before = tree(repo, ("cfs-tags",))
    for path in (repo / "streams").iterdir():
        if path.is_symlink():
            path.unlink()
    for path in (repo / "objects").glob("*/*"):
        path.unlink()
    imported(repo, image)
    assert tree(repo, ("cfs-tags",)) == before
    cfsctl.assert_healthy(repo)


# -- beside others -----------------------------------------------------------------------------------------------------


def cut_all(repo: Path) -> None:
    for path in (repo / "objects").glob("*/*"):
        os.truncate(path, 0)


def test_what_an_import_is_about_to_put_in_place_is_not_cleared_by_other_writers(
    cfsctl: Cfsctl, repo: Path, image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of its steps takes long, and another process changes a tag meanwhile."""
    imported(repo, image)
    mine = set((repo / "objects").glob("*/*"))
    other = build_image(tmp_path / "layout", "other", [base_layer("other", 9)])
    import_image(repo, other.source, "other", Options(home="shared"))
    before = tree(repo, ("cfs-tags",))
    for path in mine:
        cut_to_nothing(path)
    rename, renamed = fsops.rename, []

    def slow(dir_fd: int, old: str, new: str) -> None:
        if old.startswith(INCOMING):
            renamed.append(new)
            words = ["create", f"race:{len(renamed)}", "other"]
            subprocess.run([sys.executable, "-m", "cfs_tags", "--repo", repo, *words], check=True, timeout=60)
            assert (repo / old).exists()
        rename(dir_fd, old, new)

    monkeypatch.setattr(fsops, "rename", slow)
    imported(repo, image)
    monkeypatch.undo()
    assert len(renamed) > 12
    after = tree(repo, ("cfs-tags",))
    assert {path: found for path, found in before.items() if after.get(path) != found} == {}
    assert len(list((repo / "streams/refs/oci").glob("race:*"))) == len(renamed)
    cfsctl.assert_healthy(repo)


def test_what_a_killed_import_left_is_cleared_by_the_next_but_not_that_of_a_running_one(repo: Path, image: Image) -> None:
    imported(repo, image)
    path = next((repo / "objects").glob("*/*"))
    cut_to_nothing(path)
    place = repo / INCOMING
    (place / "left").mkdir(parents=True)
    (place / "left/object").write_bytes(b"left")
    running = os.open(place / "left", os.O_RDONLY)
    fcntl.flock(running, fcntl.LOCK_EX)
    imported(repo, image)
    assert [str(left.relative_to(place)) for left in place.rglob("*")] == ["left", "left/object"]
    os.close(running)
    cut_to_nothing(path)
    imported(repo, image)
    assert list(place.iterdir()) == []


def test_an_import_that_mends_may_be_stopped_at_any_step(
    cfsctl: Cfsctl, new_repo: NewRepo, image: Image, tmp_path: Path
) -> None:
    whole = new_repo(tmp_path / "whole")
    imported(whole, image)
    wanted = tree(whole, ("cfs-tags",))
    cut_all(whole)

    def prepare(number: int) -> Path:
        return copy_tree(whole, tmp_path / f"{number}")

    for attempt in every_stop(prepare, lambda path: imported(path, image), kill_after, sample=3):
        imported(attempt.subject, image)
        assert tree(attempt.subject, ("cfs-tags",)) == wanted, attempt.number
        assert not list((attempt.subject / INCOMING).glob("*"))
