"""Repositories for collecting: a pool that the real cfsctl filled, once for each algorithm and in memory, and copies."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from deployments.conftest import fill_three
from support import stock
from support.garbage import add_foreign, copy_of, fill_pool, settle
from support.peers import Cfsctl
from support.sysroots import Host, Pool, fill_hosts, new_host


@pytest.fixture(scope="session")
def ram() -> Iterator[Path]:
    """A directory in memory."""
    with stock.in_memory() as home:
        yield home


@pytest.fixture(scope="session")
def pools(cfsctl: Cfsctl, ram: Path) -> Callable[[str], Path]:
    """The pool of an algorithm (see :func:`support.garbage.fill_pool`); only ever copied.

    ``sha512`` has EROFS images of version 1, ``sha512 erofs 2`` of that version, ``sha512 erofs 1 2`` of both.
    """

    def get(kind: str) -> Path:
        algorithm, _, versions = kind.partition(" erofs ")
        default, *extra = (versions or "1").split()
        path = ram / kind.replace(" ", "-") / "composefs"
        if not path.exists():
            path.mkdir(parents=True)
            words = ("--algorithm", f"fsverity-{algorithm}-12", "--erofs-version", default)
            cfsctl(None, "init", "--insecure", *words, path)
            if extra:  # no option of cfsctl says so
                meta = json.loads((path / "meta.json").read_text())
                meta["erofs_formats"]["extra"] = [int(version) for version in extra]
                (path / "meta.json").write_text(json.dumps(meta))
            fill_pool(cfsctl, path)
            add_foreign(path)
        return path

    return get


@pytest.fixture
def fresh(pools: Callable[[str], Path], ram: Path, request: pytest.FixtureRequest) -> Callable[[], Path]:
    """Makes copies of the sha512 pool, each the test's own."""
    numbers = count()

    def make(source: Path | None = None) -> Path:
        return copy_of(
            source or pools("sha512"), ram / f"{request.node.name[:60].replace('/', '-')}-{next(numbers)}" / "composefs"
        )

    return make


@pytest.fixture
def repo(fresh: Callable[[], Path]) -> Path:
    """A copy of the sha512 pool."""
    return fresh()


@pytest.fixture(scope="session")
def host_pool(cfsctl: Cfsctl, tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """The repository of a host: see :func:`support.sysroots.fill_hosts`."""
    return fill_hosts(cfsctl, tmp_path_factory.mktemp("gc-hosts"))


@pytest.fixture
def three(host_pool: Pool, tmp_path: Path) -> Host:
    """A host with three deployments."""
    host = fill_three(new_host(tmp_path / "host", host_pool))
    settle()
    return host
