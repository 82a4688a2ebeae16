"""Paths are followed from a held directory through no link: both ways of doing it, ``openat2`` and the walk."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cfs_tags.repo import beneath, fsops
from support.sandbox import forked, without_openat2

WAYS = ["walk", "openat2"]


@pytest.fixture(params=WAYS)
def within(request: pytest.FixtureRequest) -> Callable[[Callable[[], object]], object]:
    """Runs something in a process that walks, or in one that has done enough to take ``openat2``."""

    def run(function: Callable[[], object]) -> object:
        def prepared() -> object:
            if request.param == "walk":
                without_openat2()
            fd = os.open("/", os.O_RDONLY)
            for _ in range(1000):
                beneath.status(fd, "proc/sys/kernel")
            assert (beneath._kernel.openat2() is not None) == (request.param == "openat2")
            return function()

        return forked(prepared)

    return run


@pytest.fixture
def top(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "top/a/b").mkdir(parents=True)
    (tmp_path / "top/a/b/file").write_text("inside")
    (tmp_path / "away/b").mkdir(parents=True)
    (tmp_path / "away/b/file").write_text("outside")
    (tmp_path / "top/beside").symlink_to("a")
    (tmp_path / "top/out").symlink_to("../away")
    (tmp_path / "top/absolute").symlink_to(tmp_path / "away")
    (tmp_path / "top/a/loop").symlink_to("loop")
    (tmp_path / "top/a/last").symlink_to("b/file")
    fd = os.open(tmp_path / "top", os.O_RDONLY)
    yield fd
    os.close(fd)


def outcome(function: Callable[[], object]) -> object:
    """The result, or the name of the error's number."""
    try:
        return function()
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def read(fd: int, path: str) -> str:
    opened = beneath.open_at(fd, path, os.O_RDONLY)
    try:
        return os.read(opened, 100).decode()
    finally:
        os.close(opened)


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("a/b/file", "inside"),
        ("beside/b/file", "ELOOP"),
        ("out/b/file", "ELOOP"),
        ("absolute/b/file", "ELOOP"),
        ("a/loop/file", "ELOOP"),
        ("a/last", "ELOOP"),
        ("out", "ELOOP"),
        ("../away/b/file", "EXDEV"),
        ("a/../../away/b/file", "EXDEV"),
        ("a/../a/b/file", "EXDEV"),
        ("a/b/..", "EXDEV"),
        ("..", "EXDEV"),
        ("a/b/none", "ENOENT"),
        ("a/none/file", "ENOENT"),
        ("none", "ENOENT"),
        ("a/b/file/x", "ENOTDIR"),
    ],
)
def test_a_path_is_followed_through_directories_alone(
    within: Callable[[Callable[[], object]], object], top: int, path: str, wanted: str
) -> None:
    assert within(lambda: outcome(lambda: read(top, path))) == wanted


@pytest.mark.parametrize("path", ["a/b\0c/file", "a\0"])
def test_a_path_with_a_zero_byte_is_refused_and_not_cut(
    within: Callable[[Callable[[], object]], object], top: int, path: str
) -> None:
    def refused() -> object:
        try:
            return read(top, path)
        except ValueError as error:
            return str(error)

    assert within(refused) == "embedded null byte"


@pytest.mark.parametrize("name", ["beside", "out", "absolute", "a/loop", "a/last", "a/b/file"])
def test_a_directory_that_is_none_is_not_opened_as_one(
    within: Callable[[Callable[[], object]], object], top: int, name: str
) -> None:
    wanted = "ENOTDIR" if name == "a/b/file" else "ELOOP"

    assert within(lambda: outcome(lambda: beneath.open_at(top, name, os.O_RDONLY | os.O_DIRECTORY))) == wanted


@pytest.mark.parametrize(("depth", "name"), [(300, "d"), (40, "é" * 120)])
def test_a_path_may_be_longer_than_the_system_takes_at_once(
    within: Callable[[Callable[[], object]], object], top: int, depth: int, name: str
) -> None:
    path = "/".join([name] * depth)
    fd = os.dup(top)
    for _ in range(depth):
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.mkdir("end", dir_fd=fd)
    wanted = os.stat("end", dir_fd=fd).st_ino

    assert within(lambda: beneath.status(top, f"{path}/end").st_ino) == wanted
    assert within(lambda: os.fstat(beneath.open_at(top, f"{path}/end", os.O_RDONLY)).st_ino) == wanted


def test_no_descriptor_is_left_open(within: Callable[[Callable[[], object]], object], top: int) -> None:
    def leaked() -> int:
        before = len(os.listdir("/proc/self/fd"))
        for path in ("a/b/file", "a/b/none", "out/b/file", "a/b/file/x", "../x", "a/.."):
            outcome(lambda path=path: beneath.status(top, path))  # type: ignore[misc]
            outcome(lambda path=path: read(top, path))  # type: ignore[misc]
            outcome(lambda path=path: fsops.remove(top, f"{path}/none"))  # type: ignore[misc]
        return len(os.listdir("/proc/self/fd")) - before

    assert within(leaked) == 0


# -- what changes the disk ---------------------------------------------------------------------------------------------

CHANGES: dict[str, Callable[[int, str], object]] = {
    "make_directory": lambda fd, path: fsops.make_directory(fd, f"{path}/new"),
    "make_link": lambda fd, path: fsops.make_link(fd, f"{path}/new", "x"),
    "rename from": lambda fd, path: fsops.rename(fd, f"{path}/file", "a/got"),
    "rename to": lambda fd, path: fsops.rename(fd, "a/b/file", f"{path}/file"),
    "exchange from": lambda fd, path: fsops.exchange(fd, f"{path}/file", "a/b/file"),
    "exchange to": lambda fd, path: fsops.exchange(fd, "a/b/file", f"{path}/file"),
    "remove": lambda fd, path: fsops.remove(fd, f"{path}/file"),
    "remove_directory": lambda fd, path: fsops.remove_directory(fd, f"{path}/empty"),
    "create_file": lambda fd, path: fsops.create_file(fd, f"{path}/new", b"x"),
    "replace_file": lambda fd, path: fsops.replace_file(fd, f"{path}/file", b"x", "a/temporary"),
    "replace_file by": lambda fd, path: fsops.replace_file(fd, "a/b/file", b"x", f"{path}/temporary"),
    "rewrite_file": lambda fd, path: fsops.rewrite_file(fd, f"{path}/file", b"x", "a/temporary"),
    "append": lambda fd, path: fsops.append(fd, f"{path}/file", b"x"),
    "append new": lambda fd, path: fsops.append(fd, f"{path}/new", b"x"),
    "truncate": lambda fd, path: fsops.truncate(fd, f"{path}/file", 0),
    "open_unnamed": lambda fd, path: fsops.adopt_object(fsops.open_unnamed(fd, path), fd, "a/named"),
    "adopt_object": lambda fd, path: fsops.adopt_object(fsops.open_unnamed(fd, "a"), fd, f"{path}/named"),
    "sync": lambda fd, path: fsops.sync(fd, path),
}


def contents(place: Path) -> dict[str, tuple[int, str | bytes | None]]:
    found: dict[str, tuple[int, str | bytes | None]] = {}
    for path in sorted(place.rglob("*")):
        mode = path.lstat().st_mode
        body = path.read_bytes() if stat.S_ISREG(mode) else os.readlink(path) if stat.S_ISLNK(mode) else None
        found[str(path.relative_to(place))] = (mode, body)
    return found


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("link", ["in the middle", "at the end", "absolute"])
def test_no_change_goes_through_a_link(
    within: Callable[[Callable[[], object]], object], tmp_path: Path, change: str, link: str
) -> None:
    for place in ("top/a/b", "away/c/d", "away/c/d/empty"):
        (tmp_path / place).mkdir(parents=True)
    for file in ("top/a/b/file", "away/c/d/file"):
        (tmp_path / file).write_text(file)
    path, name, target = {
        "in the middle": ("a/c/d", "c", "../../away/c"),
        "at the end": ("a/d", "d", "../../away/c/d"),
        "absolute": ("a/r/c/d", "r", f"{tmp_path}/away"),
    }[link]
    (tmp_path / "top/a" / name).symlink_to(target)
    before = contents(tmp_path)
    fd = os.open(tmp_path / "top", os.O_RDONLY)

    assert within(lambda: outcome(lambda: CHANGES[change](fd, path))) == "ELOOP"

    assert contents(tmp_path) == before
    os.close(fd)


@pytest.mark.parametrize("change", CHANGES)
def test_the_same_change_is_made_where_no_link_is_in_the_way(
    within: Callable[[Callable[[], object]], object], tmp_path: Path, change: str
) -> None:
    for place in ("top/a/b", "top/a/c/d", "top/a/c/d/empty"):
        (tmp_path / place).mkdir(parents=True)
    for file in ("top/a/b/file", "top/a/c/d/file"):
        (tmp_path / file).write_text(file)
    before = contents(tmp_path)
    fd = os.open(tmp_path / "top", os.O_RDONLY)

    assert within(lambda: outcome(lambda: CHANGES[change](fd, "a/c/d")) in (None, True, False))

    assert (contents(tmp_path) != before) == (change != "sync")
    os.close(fd)


# -- bytes of files that are not ours ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["hard link", "pipe", "link", "directory", "socket"])
@pytest.mark.parametrize("change", ["append", "truncate"])
def test_only_a_file_with_one_name_is_appended_to_or_cut(tmp_path: Path, kind: str, change: str) -> None:
    path, other = tmp_path / "file", tmp_path / "other"
    other.write_text("of someone else")
    if kind == "hard link":
        os.link(other, path)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(other)
    elif kind == "directory":
        path.mkdir()
    else:
        os.mknod(path, stat.S_IFSOCK | 0o600)
    fd = os.open(tmp_path, os.O_RDONLY)

    with pytest.raises(OSError):  # noqa: PT011  (which number is the system's affair)
        fsops.append(fd, "file", b"x") if change == "append" else fsops.truncate(fd, "file", 0)

    assert other.read_text() == "of someone else"
    os.close(fd)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("change", ["append", "truncate"])
def test_the_file_of_another_user_is_not_appended_to_or_cut(tmp_path: Path, change: str) -> None:
    path = tmp_path / "file"
    path.write_text("of someone else")
    os.chown(path, 4711, 4711)
    fd = os.open(tmp_path, os.O_RDONLY)

    with pytest.raises(fsops.NotOurs, match="belongs to user 4711"):
        fsops.append(fd, "file", b"x") if change == "append" else fsops.truncate(fd, "file", 0)

    assert (path.read_text(), path.stat().st_uid) == ("of someone else", 4711)
    os.close(fd)
