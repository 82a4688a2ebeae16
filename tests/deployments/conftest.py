"""Fixtures: pools filled once, hosts made of them, and ``on``, which calls the program on a host."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Protocol

import pytest

from cfs_tags import Repository
from cfs_tags.formats import fsverity
from cfs_tags.host import lookup, refs
from cfs_tags.host.sysroot import Sysroot, SysrootView
from cfs_tags.values import Algorithm
from cli.conftest import Run, Said, call  # noqa: F401  (call is a fixture here too)
from support.peers import Cfsctl
from support.sysroots import Host, Pool, fill_hosts, fill_rivals, fill_twins, new_host, with_old_headers
from support.trees import copy_tree


class Hosts(Protocol):
    def __call__(self, pool: str = "sha512") -> Host:
        """A host around a copy of a pool: ``sha512``, ``sha256``, ``old headers``, ``rivals``, ``twins annotated one`` …"""


class On(Protocol):
    def __call__(self, host: Host, *words: str | Path, ok: bool = False) -> Said:
        """Call ``cfs-tag`` on a host: the first word is the command, the places of the host are named after it."""


@pytest.fixture(scope="session")
def pools(cfsctl: Cfsctl, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pool]:
    home = tmp_path_factory.mktemp("pools")
    known: dict[str, Pool] = {}

    def get(key: str) -> Pool:
        if key not in known:
            where = home / key.replace(" ", "-")
            kind, _, rest = key.partition(" ")
            if kind == "twins":
                made, last, *rewound = rest.split()
                known[key] = fill_twins(cfsctl, where, made, last, rewound=bool(rewound))
            elif key == "rivals":
                known[key] = fill_rivals(cfsctl, where)
            elif key == "old headers":
                pool = get("sha512")
                repo = with_old_headers(pool.repo, where / "composefs", lambda data: fsverity.measure(data, Algorithm.SHA512))
                known[key] = pool._replace(repo=repo)
            else:
                known[key] = fill_hosts(cfsctl, where, key)
        return known[key]

    return get


@pytest.fixture
def hosts_of(pools: Callable[[str], Pool], tmp_path: Path) -> Hosts:
    numbers = count()

    def make(pool: str = "sha512") -> Host:
        return new_host(tmp_path / f"host{next(numbers)}", pools(pool))

    return make


@pytest.fixture
def host(hosts_of: Hosts) -> Host:
    """A host without deployments, sha512."""
    return hosts_of()


@pytest.fixture
def three(host: Host) -> Host:
    """Booted ``same``, rollback ``old`` (from before bootc 1.15), staged ``new``."""
    return fill_three(host)


def fill_three(host: Host) -> Host:
    host.deploy("same")
    host.deploy("old", digest=False, imginfo=True)
    host.deploy("new")
    host.boot_entries("same", "old")
    host.boot_entries("new", "same", staged=True)
    host.stage("new")
    host.boot("same")
    return host


@pytest.fixture
def on(call: Run) -> On:  # noqa: F811
    def run(host: Host, *words: str | Path, ok: bool = False) -> Said:
        return call("--sysroot", host.root, words[0], *host.options, *words[1:], ok=ok)

    return run


def sysroot_of(host: Host, **changes: object) -> Sysroot:
    """The places of a host for the library; ``changes`` replace fields."""
    found = Sysroot.find(
        str(host.root),
        boot=str(host.root / "boot"),
        esp=str(host.root / "efi") if host.has_esp else None,
        run=str(host.root / "run"),
        cmdline=f"root=UUID=1 composefs={host.booted}" if host.booted else "root=UUID=1",
        without=() if host.has_esp else ("esp",),
    )
    return found._replace(mounts=())._replace(**changes)  # type: ignore[arg-type]


def view_of(host: Host, **changes: object) -> SysrootView:
    """What the library sees of a host."""
    with Repository.open(host.repo) as repo:
        return SysrootView.read(sysroot_of(host, **changes), repo.algorithm)


@pytest.fixture
def recorded(bootc_host: Callable[[str], Path], _example: Path, tmp_path: Path) -> Callable[[str], Path]:
    """The sysroot of a recorded host; ``example`` is the one of ``examples/``."""

    def make(name: str) -> Path:
        return copy_tree(_example, tmp_path / "example") if name == "example" else bootc_host(name)

    return make


@pytest.fixture
def lost(three: Host) -> Host:
    """All three have their refs; the state directories and entries of ``old`` and ``new`` are gone."""
    with Repository.open(three.repo, write=True) as repo:
        refs.adopt(repo, view_of(three))
    for name in ("old", "new"):
        three.undeploy(name)
    shutil.rmtree(three.root / "boot/loader/entries.staged")
    (three.root / "run/composefs/staged-deployment").unlink()
    three.boot_entries("same")
    return three


def retired_on(host: Host, sysroot: Callable[[], Sysroot]) -> dict[str, tuple[str, str]]:
    """What becomes of the refs of each deployment, by its name, and why."""
    with Repository.open(host.repo, write=True) as repo:
        made = refs.retire(repo, lambda: SysrootView.read(sysroot(), repo.algorithm, lookup.known(repo)), grace=0, timeout=5)
    names = {deployed.id: name for name, deployed in host.pool.images.items()}
    return {names[row.id]: (row.done, row.reason) for row in made.rows}
