"""Repositories of other users, and things of root's beside them that must not change."""

from __future__ import annotations

import importlib
import os
import pkgutil
import shutil
import stat
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import pytest

import cfs_tags
from cfs_tags.cli.main import main
from support.images import Image, app_image
from support.trees import copy_tree, unpack

EXAMPLE = Path(__file__).parent.parent.parent / "examples/host.tar.gz"
APP = "streams/refs/cfs-tags/tags/app"
"""The ref of the tag ``app``: private, because bootc's collector would fail at an image that it cannot boot."""
USER = 4711
"""A user whom the system's tables do not know."""

for _module in pkgutil.walk_packages(cfs_tags.__path__, "cfs_tags."):
    importlib.import_module(_module.name)  # once, and not in every fork

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


class Result(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def is_sound(self) -> bool:
        """Whether it ended by itself, with one of the statuses that are documented, and without a mistake of the program."""
        said = self.out + self.err
        return self.status in range(8) and "internal error" not in said and "Traceback" not in said


def run(*words: str | Path, stdin: int | None = None) -> Result:
    """Run ``cfs-tag`` in a fork of this process, which may become another user."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err, open(os.devnull) as nothing:
        pid = os.fork()
        if pid == 0:
            status = 99
            try:
                for number, fd in enumerate((nothing.fileno() if stdin is None else stdin, out.fileno(), err.fileno())):
                    os.dup2(fd, number)
                sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
                status = main([str(word) for word in words])
                sys.stdout.flush()
                sys.stderr.flush()
            except BaseException:
                os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(status)
        ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        out.seek(0)
        err.seek(0)
        return Result(ended, out.read(), err.read())


def run_alone(*words: str | Path, env: dict[str, str]) -> Result:
    """Run ``cfs-tag`` in a process that has this program in its own environment."""
    command = [sys.executable, "-m", "cfs_tags", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env={**os.environ, **env}, cwd="/")
    return Result(done.returncode, done.stdout, done.stderr)


def give(path: Path, uid: int) -> None:
    """Everything there belongs to this user and group from now on."""
    for place in (path, *path.rglob("*")):
        os.chown(place, uid, uid, follow_symlinks=False)


State = dict[str, tuple[object, ...]]


def state(place: Path) -> State:
    """All that could be changed in a tree: kinds, modes, owners, numbers of links, times of change, texts and bytes."""
    found: State = {}
    for path in (place, *place.rglob("*")):
        status = path.lstat()
        facts = (status.st_mode, status.st_uid, status.st_gid, status.st_nlink, status.st_mtime_ns, status.st_ino)
        body: object = None
        if stat.S_ISREG(status.st_mode):
            body = sha256(path.read_bytes()).hexdigest()
        elif stat.S_ISLNK(status.st_mode):
            body = os.readlink(path)
        found[str(path.relative_to(place))] = (*facts, body)
    return found


def changes(before: State, after: State) -> list[str]:
    """The paths that differ.  A file may have fewer names: one in a repository can be replaced there, as any file of its."""
    return sorted(path for path in {*before, *after} if _differ(before.get(path, ()), after.get(path, ())))


def _differ(before: tuple[object, ...], after: tuple[object, ...]) -> bool:
    if before and after and stat.S_ISREG(before[0]) and after[3] < before[3]:  # type: ignore[arg-type, operator]
        before, after = (*before[:3], *before[4:]), (*after[:3], *after[4:])
    return before != after


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory that every user can come to."""
    path = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def _image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    layout = tmp_path_factory.mktemp("layout") / "layout"
    app_image(layout, "fresh", size=300_000)
    return app_image(layout, "app")


@pytest.fixture
def image(_image: Image, home: Path) -> Path:
    """An OCI layout with the images ``app`` and ``fresh``, which every user can read."""
    return copy_tree(_image.layout, home / "layout")


@pytest.fixture
def host(home: Path, image: Path) -> Path:
    """A sysroot with two deployments and a tag ``app``, all of it root's."""
    unpack(EXAMPLE, home / "host")
    subprocess.run(["chmod", "-R", "go+rX", home / "host"], check=True)
    done = run("--repo", home / "host/composefs", "import", f"oci:{image}:app", "app")
    assert done.status == 0, done
    return home / "host"


@pytest.fixture
def repo(host: Path) -> Path:
    """The repository of :func:`host`."""
    return host / "composefs"


class Outside(NamedTuple):
    """A tree of root's beside a repository, like one, and its state at the beginning."""

    path: Path
    before: State

    def changed(self) -> list[str]:
        """What is not as it was."""
        return changes(self.before, state(self.path))

    def again(self) -> Outside:
        """The same with the state of now for the beginning."""
        return Outside(self.path, state(self.path))


@pytest.fixture
def outside(home: Path, repo: Path) -> Callable[[], Outside]:
    """Makes a tree beside the repository with everything that the repository has, so that whatever is done there by
    mistake finds what it looks for; and with directories of our state, all of them with files."""

    def make() -> Outside:
        path = copy_tree(repo, home / "outside")
        for number in range(256):
            for name in (f"objects/{number:02x}/{'ab' * 63}", f"cfs-tags/reflog/{number:02x}"):
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                (path / name).write_text("root's\n")
        for name in (
            "tmp/0123.0",
            "journal/x.json",
            "undo/x.origin",
            "quarantine/x.json",
            "pins/mine/pin.json",
            "pins/mine/origin",
            "seen.json",
            "refs.lock",
        ):
            (path / "cfs-tags" / name).parent.mkdir(parents=True, exist_ok=True)
            (path / "cfs-tags" / name).write_text("root's\n")
        (path / "empty").mkdir()
        (path / "secret").write_text("root's\n")
        (path / "secret").chmod(0o600)
        for link in ("streams/refs/oci/mine", "streams/refs/cfs-tags/tags/mine"):
            (path / link).parent.mkdir(parents=True, exist_ok=True)
            (path / link).symlink_to("../../none")
        return Outside(path, {}).again()

    return make
