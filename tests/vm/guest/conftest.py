"""Fixtures inside the machine: cfs-tag and cfsctl as users run them, and repositories that need fs-verity."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import NoReturn

import pytest

from cfs_tags.cli.main import main
from support.images import Image, app_image, pull_image
from support.peers import Cfsctl, peer_or_skip
from vm.guest.rig import VERITY, NewRepo, Run, Said, Shop, guarded_copy, unguarded, unmount, verity_of

_USED = (
    *("cli.cmd_create", "cli.cmd_delete", "cli.cmd_list", "cli.cmd_log", "cli.cmd_resolve", "cli.cmd_show", "cli.cmd_update"),
    *("cli.cmd_fsck", "fsck.check", "cli.cmd_gc", "gc", "cli.cmd_import", "apps.importing", "repo.transaction.run"),
)
_numbers = count()


@pytest.fixture(scope="session")
def cfsctl() -> Cfsctl:
    """The real cfsctl."""
    return Cfsctl(peer_or_skip("cfsctl"), Path("/tmp"))


@pytest.fixture(scope="session")
def cfs_tag() -> Run:
    """Runs the program: ``cfs_tag(repo, "list", "--json")``.

    A process of its own each time, but a copy of this one, which has everything imported already: starting Python is what
    takes long here.
    """
    for name in _USED:
        importlib.import_module(f"cfs_tags.{name}")

    def run(repo: Path, *words: str | Path, status: int = 0, input: str = "") -> Said:
        command = ["--repo", str(repo), *map(str, words)]
        with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as error:
            source.write(input.encode())
            source.seek(0)
            child = os.fork()
            if child == 0:
                _become(command, source.fileno(), out.fileno(), error.fileno())
            found = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            out.seek(0)
            error.seek(0)
            said = Said(found, out.read().decode(), error.read().decode())
        assert said.status == status, f"{command}\nexit status {said.status}\n{said.out}\n{said.error}"
        return said

    return run


def _become(command: list[str], *streams: int) -> NoReturn:
    status = 99
    try:
        for number, fd in enumerate(streams):
            os.dup2(fd, number)
        sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
        status = main(command)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Image, Image]:
    """Two app images in one layout that share their first layer."""
    layout = tmp_path_factory.mktemp("images") / "layout"
    return app_image(layout, "first", size=9000), app_image(layout, "second", size=5000)


@pytest.fixture
def empty(cfsctl: Cfsctl) -> NewRepo:
    """Makes an empty secure repository: ``empty("sha256")``."""

    def make(algorithm: str = "sha512") -> Path:
        return _new(cfsctl, algorithm)

    return make


@pytest.fixture
def pulled(cfsctl: Cfsctl, empty: NewRepo, images: tuple[Image, Image]) -> Shop:
    """A secure repository with two images that cfsctl pulled."""
    return _fill(cfsctl, empty(), images)


@pytest.fixture(scope="session")
def _original(cfsctl: Cfsctl, images: tuple[Image, Image]) -> Shop:
    return _fill(cfsctl, _new(cfsctl, "sha512"), images)


@pytest.fixture
def shop(_original: Shop) -> Shop:
    """A copy of such a repository, fs-verity included: cfsctl pulls once for all the tests that take one."""
    return _original._replace(path=guarded_copy(_original.path, VERITY / f"{next(_numbers)}"))


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A directory to mount something at."""
    target = tmp_path / "mounted"
    target.mkdir()
    yield target
    if target.is_mount():
        unmount(target)


def _new(cfsctl: Cfsctl, algorithm: str) -> Path:
    path = VERITY / f"{next(_numbers)}"
    cfsctl(None, "init", "--algorithm", f"fsverity-{algorithm}-12", path)
    assert verity_of(path / "meta.json") is not None, "cfsctl did not make it secure"
    return path


def _fill(cfsctl: Cfsctl, path: Path, images: tuple[Image, Image]) -> Shop:
    for image in images:
        pull_image(cfsctl, path, image)
    assert unguarded(path) == []
    return Shop(path, *images)
