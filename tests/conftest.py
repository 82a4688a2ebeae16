"""Fixtures for the whole suite: the real peers, and repositories that the real cfsctl made."""

from __future__ import annotations

import gc
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Protocol

import pytest
from hypothesis import HealthCheck, settings

import cfs_tags.cli  # noqa: F401
from support import machine, stock
from support.peers import MISSING, PEERS, Cfsctl, peer_or_skip, short_directory
from support.trees import copy_tree, unpack

# The same examples on every machine and in every run: a failure can be looked at again.  A deadline for one example
# would measure the machine, not the code.
settings.register_profile(
    "cfs-tags",
    deadline=None,
    derandomize=True,
    print_blob=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("cfs-tags")

# Where the run was started in the background, interrupts are ignored, in all that it starts, too.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Importing the command line turns it off until main() is called; all tests are one process, which others fork.
gc.enable()

# pytest imports readline, which puts COLUMNS where os.environ does not see it and every child does.
os.unsetenv("COLUMNS")
os.unsetenv("LINES")
# A pager would wait for a key.
os.environ["PAGER"] = "cat"

# Hooks and policies of this machine's administrator would be asked about what tests do.
machine.hide("/etc/cfs-tags")


class NewRepo(Protocol):
    """Makes repositories: see :func:`new_repo`."""

    def __call__(self, path: Path | None = None, algorithm: str = "sha512", meta: bool = True) -> Path:
        """Make one at ``path``."""


class FilledRepo(Protocol):
    """Makes filled repositories: see :func:`filled_repo`."""

    def __call__(
        self, key: str, fill: Callable[[Cfsctl, Path], object], path: Path | None = None, algorithm: str = "sha512"
    ) -> Path:
        """Make one at ``path``."""


# -- peers -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def cfsctl(tmp_path_factory: pytest.TempPathFactory) -> Cfsctl:
    """The real cfsctl, 0.9.4 or newer: ``cfsctl(repo, "oci", "images")``; see :class:`support.peers.Cfsctl`."""
    return Cfsctl(peer_or_skip("cfsctl"), tmp_path_factory.mktemp("cfsctl-home"))


@pytest.fixture(scope="session")
def skopeo() -> Path:
    """The path of skopeo."""
    return peer_or_skip("skopeo")


@pytest.fixture(scope="session")
def umoci() -> Path:
    """The path of umoci."""
    return peer_or_skip("umoci")


@pytest.fixture(scope="session")
def podman() -> Path:
    """The path of podman."""
    return peer_or_skip("podman")


@pytest.fixture
def podman_home() -> Iterator[Path]:
    """A directory for podman, with a short path."""
    with short_directory() as home:
        yield Path(home)


@pytest.fixture(scope="session")
def crane() -> Path:
    """The path of crane."""
    return peer_or_skip("crane")


@pytest.fixture(scope="session")
def conformance() -> Path:
    """The path of the conformance suite of the OCI distribution specification."""
    return peer_or_skip("conformance")


@pytest.fixture(scope="session")
def registry() -> Path:
    """The path of distribution's registry."""
    return peer_or_skip("registry")


@pytest.fixture(scope="session")
def chromium() -> Path:
    """The path of a browser."""
    return peer_or_skip("chromium")


# -- repositories ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def _pristine(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Builds a repository once for each key and keeps it for copying; never handed to a test itself."""
    home = tmp_path_factory.mktemp("pristine")
    known: dict[str, Path] = {}
    numbers = count()  # not the length of known: one build may ask for another

    def get(key: str, build: Callable[[Path], object]) -> Path:
        if key not in known:
            path = home / f"{next(numbers)}"
            build(path)
            known[key] = path
        return known[key]

    return get


@pytest.fixture
def new_repo(cfsctl: Cfsctl, _pristine: Callable[[str, Callable[[Path], object]], Path], tmp_path: Path) -> NewRepo:
    """Makes an empty repository by ``cfsctl init --insecure``: ``new_repo()``, ``new_repo(path, "sha256")``.

    Without ``meta`` there is no ``meta.json``, as in repositories made before composefs-rs 0.7.  The default path is
    ``tmp_path / "composefs"``.
    """

    def make(path: Path | None = None, algorithm: str = "sha512", meta: bool = True) -> Path:
        def build(where: Path) -> None:
            cfsctl(None, "init", "--insecure", "--algorithm", f"fsverity-{algorithm}-12", where)
            if not meta:
                (where / "meta.json").unlink()
                for name in ("objects", "streams", "images"):
                    (where / name).mkdir()

        return copy_tree(_pristine(f"empty {algorithm} {meta}", build), path or tmp_path / "composefs")

    return make


@pytest.fixture
def filled_repo(
    cfsctl: Cfsctl, _pristine: Callable[[str, Callable[[Path], object]], Path], new_repo: NewRepo, tmp_path: Path
) -> FilledRepo:
    """Makes a copy of a repository that ``fill(cfsctl, repo)`` filled once in this session, for a given ``key``.

    ``filled_repo("two apps", fill)`` is for fills that take several pulls and serve many tests.  Files that ``fill``
    needs beside the repository belong in ``repo.parent``, which is its own.
    """

    def make(key: str, fill: Callable[[Cfsctl, Path], object], path: Path | None = None, algorithm: str = "sha512") -> Path:
        def build(where: Path) -> None:
            fill(cfsctl, new_repo(where / "composefs", algorithm))

        return copy_tree(_pristine(f"filled {algorithm} {key}", build) / "composefs", path or tmp_path / "composefs")

    return make


@pytest.fixture
def stocked(filled_repo: FilledRepo) -> Path:
    """The repository of :mod:`support.stock`, the test's own."""
    return filled_repo("stock", stock.fill)


@pytest.fixture(scope="module")
def ram() -> Iterator[Path]:
    """A directory in memory."""
    with stock.in_memory() as home:
        yield home


@pytest.fixture
def repo(new_repo: NewRepo) -> Path:
    """An empty sha512 repository."""
    return new_repo()


@pytest.fixture(scope="session")
def _example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("example")
    unpack(Path(__file__).parent.parent / "examples" / "host.tar.gz", target)
    return target


@pytest.fixture(scope="session")
def hosts() -> Path:
    """The directory of recorded bootc hosts (see its README.md): ``<name>.tar.gz`` with ``<name>.json``."""
    return Path(__file__).parent / "data" / "hosts"


@pytest.fixture(scope="session")
def _unpacked_hosts(hosts: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    home = tmp_path_factory.mktemp("hosts")

    def get(name: str) -> Path:
        target = home / name
        if not target.exists():
            unpack(hosts / f"{name}.tar.gz", target)
        return target

    return get


@pytest.fixture
def bootc_host(_unpacked_hosts: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """Makes a copy of a recorded bootc host, the test's own: ``bootc_host("life-staged")`` gives its sysroot."""

    def make(name: str) -> Path:
        return copy_tree(_unpacked_hosts(name), tmp_path / name)

    return make


_FIGURE = "figure"


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Says a figure at the end of the run, whichever process the test was run in."""
    return lambda text: record_property(_FIGURE, text)


# -- reporting ---------------------------------------------------------------------------------------------------------


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that asks for a peer; files with slow tests come first: at the end no process is alone with one."""
    for item in items:
        if set(getattr(item, "fixturenames", ())) & set(PEERS):
            item.add_marker("peer")
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say the figures that tests have told; name the peers that were missing, and say how many tests each of them cost."""
    figures = [
        f"{report.nodeid}: {value}"
        for outcome in ("passed", "failed")
        for report in terminalreporter.getreports(outcome)
        for name, value in report.user_properties
        if name == _FIGURE
    ]
    if figures:
        terminalreporter.section("figures")
        terminalreporter.write("\n".join([*sorted(figures), ""]))
    skipped: Counter[str] = Counter()
    reasons: dict[str, str] = {}
    for report in terminalreporter.getreports("skipped"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        _, found, rest = reason.partition(f"{MISSING}: ")
        if found:
            name, _, why = rest.partition(": ")
            skipped[name] += 1
            reasons[name] = why
    if skipped:
        terminalreporter.section("missing peers", yellow=True)
        for name, count in sorted(skipped.items()):
            terminalreporter.write_line(f"{name}: {count} tests skipped ({reasons[name]})", yellow=True)
        terminalreporter.write_line("CFS_TAGS_REQUIRE_PEERS=1 makes this a failure; .ci/run installs all of them")


@pytest.fixture(autouse=True)
def _no_inherited_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The developer's own settings do not reach a test."""
    for name in [name for name in os.environ if name.startswith("CFS_TAG_")]:
        monkeypatch.delenv(name)
